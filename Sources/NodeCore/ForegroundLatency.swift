// How long clients' requests take on a node, and whether the copy of a shard makes them slow.

import KVBase

/// Durations in buckets a quarter of a power of two wide, over the last second or so.
public struct LatencyWindow: Sendable {
    /// How often `advance` is to be called.
    public static let slice = Nanoseconds.milliseconds(250)
    static let slices = 4
    private static let bucketCount = 128

    private var counts = [[UInt32]](
        repeating: [UInt32](repeating: 0, count: bucketCount), count: slices)
    private var newest = 0

    public init() {}

    public mutating func add(microseconds: UInt32) {
        counts[newest][Self.bucket(of: microseconds)] &+= 1
    }

    /// The oldest slice is forgotten.
    public mutating func advance() {
        newest = (newest + 1) % Self.slices
        for bucket in counts[newest].indices { counts[newest][bucket] = 0 }
    }

    /// What 99 of 100 requests did not exceed; nil when there were too few to tell.
    public func percentile99(requestsMin: UInt64) -> Nanoseconds? {
        var sums = [UInt64](repeating: 0, count: Self.bucketCount)
        for slice in counts {
            for (bucket, count) in slice.enumerated() { sums[bucket] += UInt64(count) }
        }
        let total = sums.reduce(0, +)
        guard total >= max(1, requestsMin) else { return nil }
        var above = total / 100
        for bucket in sums.indices.reversed() where sums[bucket] > 0 {
            if sums[bucket] > above { return .microseconds(Self.bound(bucket)) }
            above -= sums[bucket]
        }
        return nil
    }

    static func bucket(of microseconds: UInt32) -> Int {
        guard microseconds >= 4 else { return Int(microseconds) }
        let power = UInt32.bitWidth - 1 - microseconds.leadingZeroBitCount
        return 4 * (power - 1) + Int(microseconds >> (power - 2)) - 4
    }

    /// The upper bound of a bucket in microseconds.
    static func bound(_ bucket: Int) -> UInt64 {
        guard bucket >= 4 else { return UInt64(bucket) }
        return UInt64(bucket % 4 + 5) << UInt64(bucket / 4 - 1) - 1
    }
}

/// The p99 of a node's requests against what it is without a copy.
public struct ForegroundLatency: Sendable {
    /// A copy may make requests take this long, however fast they are without it.
    public static let allowance = Nanoseconds.milliseconds(10)
    /// With fewer requests in a second there is no p99 to speak of.
    static let requestsMin: UInt64 = 20

    private var window = LatencyWindow()
    /// A moving average of the p99 in times without a copy; nil before the first.
    public private(set) var baseline: Nanoseconds?
    /// Of the last second.
    public private(set) var current: Nanoseconds?

    public init() {}

    public mutating func add(microseconds: UInt32) { window.add(microseconds: microseconds) }

    /// Called every `LatencyWindow.slice`. `isDisturbed`: a copy runs here, and not at its slowest.
    public mutating func advance(isDisturbed: Bool) {
        current = window.percentile99(requestsMin: Self.requestsMin)
        window.advance()
        guard !isDisturbed, let current else { return }
        baseline = baseline.map { Nanoseconds(($0.count * 7 + current.count) / 8) } ?? current
    }

    /// The p99 that a copy may cause.
    public var bound: Nanoseconds {
        max(Self.allowance, (baseline ?? .zero) * 2)
    }

    /// The present p99 in percent of the bound; 0 when hardly anything is asked for.
    public var strain: UInt32 {
        guard let current else { return 0 }
        return UInt32(clamping: current.count * 100 / bound.count)
    }
}
