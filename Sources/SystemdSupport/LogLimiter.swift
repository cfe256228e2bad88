// Keeps one kind of message from drowning the log, and its disk.

import Glibc
import KVBase
import Synchronization

/// Lets `burst` messages of each place in the sources through in ten seconds, and counts the rest.
/// Safe on every thread.
final class LogLimiter: Sendable {
    enum Verdict: Equatable {
        case write
        /// The first of `leftOut` messages that came before were left out.
        case writeAfter(leftOut: UInt64)
        /// The burst is used up with this one.
        case leaveOutFirst
        case leaveOut
    }

    /// A place in the sources that writes messages; there are as many as the program has.
    struct Site: Hashable, Sendable {
        let file: UInt
        let line: UInt
    }

    private struct Window: Sendable {
        var began: Instant
        var count = 0
        var leftOut: UInt64 = 0
    }

    static let windowLength = Nanoseconds.seconds(10)

    private let windows = Mutex<[Site: Window]>([:])

    /// `burst` 0 lets everything through.
    func judge(_ site: Site, burst: Int, now: Instant) -> Verdict {
        guard burst > 0 else { return .write }
        return windows.withLock { windows in
            var window = windows[site] ?? Window(began: now)
            defer { windows[site] = window }
            var leftOut: UInt64 = 0
            if now - window.began >= Self.windowLength {
                leftOut = window.leftOut
                window = Window(began: now)
            }
            window.count += 1
            guard window.count > burst else {
                return leftOut > 0 ? .writeAfter(leftOut: leftOut) : .write
            }
            window.leftOut += 1
            return window.leftOut == 1 ? .leaveOutFirst : .leaveOut
        }
    }

    static func now() -> Instant {
        var time = timespec()
        clock_gettime(CLOCK_MONOTONIC_COARSE, &time)
        return Instant(
            nanoseconds: UInt64(time.tv_sec) * 1_000_000_000 + UInt64(time.tv_nsec))
    }
}
