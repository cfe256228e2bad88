// Time limits of blocking calls.

import Glibc

/// A point on the monotonic clock by which a call must be done.
public struct Deadline: Sendable {
    let nanoseconds: UInt64

    /// `seconds` from now.
    public init(seconds: Double) {
        nanoseconds = Self.now() + UInt64(max(0, seconds) * 1e9)
    }

    init(nanoseconds: UInt64) { self.nanoseconds = nanoseconds }

    /// The earlier of this one and `seconds` from now.
    public func limited(toSeconds seconds: Double) -> Deadline {
        Deadline(nanoseconds: min(nanoseconds, Deadline(seconds: seconds).nanoseconds))
    }

    public var hasPassed: Bool { Self.now() >= nanoseconds }

    /// Milliseconds left, rounded up, for `poll`; 0 when it has passed.
    var millisecondsLeft: Int32 {
        let now = Self.now()
        guard nanoseconds > now else { return 0 }
        return Int32(clamping: (nanoseconds - now + 999_999) / 1_000_000)
    }

    /// Nanoseconds on the monotonic clock.
    public static func now() -> UInt64 {
        var time = timespec()
        clock_gettime(CLOCK_MONOTONIC, &time)
        return UInt64(time.tv_sec) * 1_000_000_000 + UInt64(time.tv_nsec)
    }
}
