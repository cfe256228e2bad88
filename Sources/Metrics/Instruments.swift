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

/// Durations in seventeen buckets, each twice as wide as the one before, and one for what took
/// longer: `requests` unless told otherwise, the same on every node. Safe on every thread; an
/// observation adds to one bucket and to the sum, and the buckets are cumulated when they are read.
public final class DurationHistogram: Sendable {
    /// Where the buckets begin: what is measured, by how long it takes.
    public enum Scale: Sendable {
        /// From 100 µs to 6.5536 s.
        case requests
        /// Work of a disk in the background, from 10 ms to 655.36 s.
        case upkeep
        /// What goes on for minutes and hours, from 1 s to 65,536 s.
        case operations

        /// The upper bound of the first bucket.
        public var smallestBound: Nanoseconds {
            switch self {
            case .requests: .microseconds(100)
            case .upkeep: .milliseconds(10)
            case .operations: .seconds(1)
            }
        }

        /// The upper bound of bucket `index`, inclusive.
        public func bound(_ index: Int) -> Nanoseconds {
            Nanoseconds(smallestBound.count << UInt64(index))
        }

        /// The first bucket whose bound is not below the duration.
        func bucket(of duration: Nanoseconds) -> Int {
            guard duration > smallestBound else { return 0 }
            // Doublings of the smallest bound that the duration has room for; without a division,
            // which would be half of what an observation costs.
            let (unit, above) = (smallestBound.count, duration.count - 1)
            let doublings = unit.leadingZeroBitCount - above.leadingZeroBitCount
            return min(
                DurationHistogram.boundCount,
                unit << UInt64(doublings) > above ? doublings : doublings + 1)
        }
    }

    public static let boundCount = 17

    public let scale: Scale
    /// Side by side, so that an observation touches two cache lines at most.
    private let buckets: InlineArray<18, Atomic<UInt64>>
    private let sum = Atomic<UInt64>(0)

    init(_ scale: Scale) {
        self.scale = scale
        buckets = InlineArray { _ in Atomic(0) }
    }

    /// Counts `count` events of this duration each.
    public func observe(_ duration: Nanoseconds, count: UInt64 = 1) {
        buckets[scale.bucket(of: duration)].wrappingAdd(count, ordering: .relaxed)
        sum.wrappingAdd(duration.count &* count, ordering: .relaxed)
    }

    /// The events in each bucket, not cumulated, and the sum of all durations.
    public func snapshot() -> (buckets: [UInt64], sum: Nanoseconds) {
        var counts: [UInt64] = []
        counts.reserveCapacity(Self.boundCount + 1)
        for index in 0...Self.boundCount { counts.append(buckets[index].load(ordering: .relaxed)) }
        return (counts, Nanoseconds(sum.load(ordering: .relaxed)))
    }
}

/// Whether the series that depend on it are told at all. Off at first. Safe on every thread.
public final class MetricsSwitch: Sendable {
    private let state = Atomic<Bool>(false)
    public init() {}

    public var isOn: Bool {
        get { state.load(ordering: .relaxed) }
        set { state.store(newValue, ordering: .relaxed) }
    }
}
