// The instruments that programs update: counters, gauges and histograms.

import KVBase
import Synchronization

/// A number that only rises. Safe on every thread; an update is one atomic addition, which costs
/// most when several threads share one counter, so the hot path gives each thread its own.
public final class Counter: Sendable {
    private let count = Atomic<UInt64>(0)
    init() {}

    public func increment(by amount: UInt64 = 1) { count.wrappingAdd(amount, ordering: .relaxed) }
    public var value: UInt64 { count.load(ordering: .relaxed) }
}

/// A whole number that rises and falls. Safe on every thread.
public final class Gauge: Sendable {
    private let number = Atomic<Int64>(0)
    init() {}

    public func set(_ value: Int64) { number.store(value, ordering: .relaxed) }
    public func add(_ amount: Int64) { number.wrappingAdd(amount, ordering: .relaxed) }
    public var value: Int64 { number.load(ordering: .relaxed) }
}

/// Durations in seventeen buckets, each twice as wide as the one before, from 100 µs to 6.5536 s,
/// the same on every node, and one for what took longer. Safe on every thread; an observation adds
/// to one bucket and to the sum, and the buckets are cumulated when they are read.
public final class DurationHistogram: Sendable {
    /// The upper bound of the first bucket.
    public static let smallestBound = Nanoseconds.microseconds(100)
    public static let boundCount = 17

    private let buckets: [AtomicCell]
    private let sum = Atomic<UInt64>(0)

    private final class AtomicCell: Sendable {
        let count = Atomic<UInt64>(0)
    }

    init() { buckets = (0...Self.boundCount).map { _ in AtomicCell() } }

    /// Counts `count` events of this duration each.
    public func observe(_ duration: Nanoseconds, count: UInt64 = 1) {
        buckets[Self.bucket(of: duration)].count.wrappingAdd(count, ordering: .relaxed)
        sum.wrappingAdd(duration.count &* count, ordering: .relaxed)
    }

    /// The upper bound of bucket `index`, inclusive.
    public static func bound(_ index: Int) -> Nanoseconds {
        Nanoseconds(smallestBound.count << UInt64(index))
    }

    /// The first bucket whose bound is not below the duration.
    static func bucket(of duration: Nanoseconds) -> Int {
        guard duration > smallestBound else { return 0 }
        let units = (duration.count - 1) / smallestBound.count
        return min(boundCount, UInt64.bitWidth - units.leadingZeroBitCount)
    }

    /// The events in each bucket, not cumulated, and the sum of all durations.
    public func snapshot() -> (buckets: [UInt64], sum: Nanoseconds) {
        (
            buckets.map { $0.count.load(ordering: .relaxed) },
            Nanoseconds(sum.load(ordering: .relaxed))
        )
    }
}
