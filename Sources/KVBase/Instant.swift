// Time inside the cores: a monotonic instant that is passed in, never read.

/// A point on a monotonic clock, in nanoseconds since an arbitrary origin of the process. Instants
/// of different processes are not comparable.
public struct Instant: Hashable, Comparable, Sendable {
    public var nanoseconds: UInt64
    public init(nanoseconds: UInt64) { self.nanoseconds = nanoseconds }
    public static let origin = Instant(nanoseconds: 0)
    /// Later than every real instant: "no deadline".
    public static let distantFuture = Instant(nanoseconds: .max)

    public static func < (left: Instant, right: Instant) -> Bool {
        left.nanoseconds < right.nanoseconds
    }

    /// Saturates at `distantFuture`.
    public static func + (left: Instant, right: Nanoseconds) -> Instant {
        let (sum, overflow) = left.nanoseconds.addingReportingOverflow(right.count)
        return overflow ? .distantFuture : Instant(nanoseconds: sum)
    }

    /// The time from `right` to `left`; zero when `right` is the later one.
    public static func - (left: Instant, right: Instant) -> Nanoseconds {
        left.nanoseconds > right.nanoseconds
            ? Nanoseconds(left.nanoseconds - right.nanoseconds) : .zero
    }
}

/// A length of time in whole nanoseconds, never negative.
public struct Nanoseconds: Hashable, Comparable, Sendable {
    public var count: UInt64
    public init(_ count: UInt64) { self.count = count }
    public static let zero = Nanoseconds(0)
    public static func microseconds(_ count: UInt64) -> Nanoseconds { Nanoseconds(count * 1_000) }
    public static func milliseconds(_ count: UInt64) -> Nanoseconds {
        Nanoseconds(count * 1_000_000)
    }
    public static func seconds(_ count: UInt64) -> Nanoseconds {
        Nanoseconds(count * 1_000_000_000)
    }

    /// Whole milliseconds, rounded up, so that a timer never fires early.
    public var millisecondsRoundedUp: UInt64 { (count + 999_999) / 1_000_000 }

    public static func < (left: Nanoseconds, right: Nanoseconds) -> Bool {
        left.count < right.count
    }
    public static func + (left: Nanoseconds, right: Nanoseconds) -> Nanoseconds {
        Nanoseconds(left.count + right.count)
    }
    /// Zero when `right` is longer.
    public static func - (left: Nanoseconds, right: Nanoseconds) -> Nanoseconds {
        left.count > right.count ? Nanoseconds(left.count - right.count) : .zero
    }
    public static func * (left: Nanoseconds, right: UInt64) -> Nanoseconds {
        Nanoseconds(left.count * right)
    }
}
