// Latencies in buckets whose width grows with the value: quantiles to 1.6 %, in fixed memory.

/// Counts nanoseconds.
struct LatencyHistogram {
    /// Buckets for each power of two.
    private static let subBuckets = 64
    private static let subBits = 6
    private var counts = [UInt64](repeating: 0, count: 64 * subBuckets)
    private(set) var count: UInt64 = 0
    private(set) var max: UInt64 = 0
    private var sum: Double = 0

    mutating func record(_ nanoseconds: UInt64) {
        counts[Self.bucket(nanoseconds)] += 1
        count += 1
        sum += Double(nanoseconds)
        if nanoseconds > max { max = nanoseconds }
    }

    var mean: Double { count == 0 ? 0 : sum / Double(count) }

    /// The value that `share` (0...1) of all values are at or below; 0 when there is none.
    func quantile(_ share: Double) -> UInt64 {
        guard count > 0 else { return 0 }
        let wanted = UInt64((Double(count) * share).rounded(.up))
        var seen: UInt64 = 0
        for (bucket, number) in counts.enumerated() where number > 0 {
            seen += number
            if seen >= wanted { return min(max, Self.upperBound(bucket)) }
        }
        return max
    }

    private static func bucket(_ value: UInt64) -> Int {
        guard value >= UInt64(subBuckets) else { return Int(value) }
        let exponent = 63 - value.leadingZeroBitCount - subBits
        return (exponent + 1) * subBuckets + Int(value >> UInt64(exponent)) - subBuckets
    }

    private static func upperBound(_ bucket: Int) -> UInt64 {
        guard bucket >= subBuckets else { return UInt64(bucket) }
        let exponent = UInt64(bucket / subBuckets - 1)
        let mantissa = UInt64(bucket % subBuckets + subBuckets)
        return ((mantissa + 1) << exponent) - 1
    }
}
