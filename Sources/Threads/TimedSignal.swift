// A wake-up call for a thread that also wakes by itself.

import Glibc
import KVBase

/// One thread waits, others wake it; wake-ups before a wait count as one.
///
/// `@unchecked`: the mark is under the monitor.
public final class TimedSignal: @unchecked Sendable {
    private let monitor = Monitor()
    private var isSet = false

    public init() {}

    /// Wakes the thread that waits, or the next one that would.
    public func signal() {
        monitor.locked {
            isSet = true
            monitor.wakeOne()
        }
    }

    /// Waits for a signal, `time` at most, and uses it up. Whether there was one.
    @discardableResult
    public func wait(_ time: Nanoseconds) -> Bool {
        var now = timespec()
        clock_gettime(CLOCK_MONOTONIC, &now)
        let end =
            Instant(nanoseconds: UInt64(now.tv_sec) * 1_000_000_000 + UInt64(now.tv_nsec)) + time
        return monitor.locked {
            while !isSet, monitor.wait(until: end) {}
            defer { isSet = false }
            return isSet
        }
    }
}
