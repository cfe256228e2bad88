// Which key the next request is about.

import Glibc
import KVBase

/// Draws key numbers in `0..<records`. Equal seeds draw equal numbers.
struct KeyChooser {
    private let kind: BenchOptions.Keys
    private let hot: BenchOptions.HotPart?
    private let records: UInt64
    private var random: SeededRandom
    private var next: UInt64 = 0
    private let zipf: ZipfDistribution?

    init(
        _ kind: BenchOptions.Keys, hot: BenchOptions.HotPart?, records: Int, seed: UInt64
    ) {
        self.kind = kind
        self.hot = hot
        self.records = UInt64(records)
        random = SeededRandom(seed: seed)
        zipf = kind == .zipf ? ZipfDistribution(count: records) : nil
    }

    mutating func choose() -> UInt64 {
        if let hot { return choose(hot) }
        switch kind {
        case .uniform: return random.below(records)
        case .sequential:
            defer { next = next + 1 == records ? 0 : next + 1 }
            return next
        case .zipf:
            // The ranks are scattered over the keys, so that the frequent ones do not lie side by
            // side.
            return SeededRandom.mix(zipf!.rank(of: unit())) % records
        }
    }

    private mutating func choose(_ hot: BenchOptions.HotPart) -> UInt64 {
        let hotCount = UInt64(hot.keys.count)
        let coldCount = records - hotCount
        if coldCount == 0 || unit() < hot.share {
            return hot.keys.lowerBound + random.below(hotCount)
        }
        let cold = random.below(coldCount)
        return cold < hot.keys.lowerBound ? cold : cold + hotCount
    }

    /// A number in `0..<1`, of 53 bits.
    private mutating func unit() -> Double { Double(random.next() >> 11) * 0x1p-53 }
}

/// The distribution of Zipf with exponent 0.99, as YCSB draws it. Source: Gray et al., "Quickly
/// generating billion-record synthetic databases", SIGMOD 1994, section 3.2.
struct ZipfDistribution {
    private static let theta = 0.99
    private let count: Double
    private let zeta: Double
    private let alpha: Double
    private let eta: Double

    init(count: Int) {
        func harmonic(_ count: Int) -> Double {
            var sum = 0.0
            for rank in 1...count { sum += 1 / pow(Double(rank), Self.theta) }
            return sum
        }
        self.count = Double(count)
        zeta = harmonic(count)
        alpha = 1 / (1 - Self.theta)
        eta =
            count < 3
            ? 0 : (1 - pow(2 / Double(count), 1 - Self.theta)) / (1 - harmonic(2) / zeta)
    }

    /// The rank, 0 the most frequent, of a number drawn uniformly from `0..<1`.
    func rank(of unit: Double) -> UInt64 {
        let scaled = unit * zeta
        if scaled < 1 || count < 2 { return 0 }
        if scaled < 1 + pow(0.5, Self.theta) { return 1 }
        return UInt64(min(count - 1, count * pow(eta * unit - eta + 1, alpha)))
    }
}
