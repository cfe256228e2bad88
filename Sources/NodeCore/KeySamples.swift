// Which keys of one shard are asked for: a bounded sample, and what it says of the load.

import KVBase
import ShardCore

/// Where in a shard's keys its load falls.
public struct KeyFigures: Hashable, Sendable {
    /// As `ShardLoad.median`.
    public var median: Bytes?
    /// As `ShardLoad.hottest`.
    public var hottest: Bytes?
    public var hottestPercent: UInt8 = 0
    public var spread = KeySpread()

    public init() {}
}

/// A uniform sample of the keys offered in one window.
///
/// Source: algorithm R of Vitter, "Random sampling with a reservoir", ACM TOMS 11(1), 1985.
struct KeyReservoir: Sendable {
    struct Sample: Sendable {
        var key: Bytes
        /// In the order of arrival.
        var number: UInt64
    }

    static let samplesMax = 128

    private(set) var samples: [Sample] = []
    /// How many keys the samples stand for.
    private(set) var offered: UInt64 = 0

    mutating func offer(
        _ key: UnsafeRawBufferPointer, number: UInt64, _ generator: inout SeededRandom
    ) {
        offered += 1
        if samples.count < Self.samplesMax {
            samples.append(Sample(key: Bytes(key), number: number))
            return
        }
        let place = generator.below(offered)
        if place < UInt64(Self.samplesMax) {
            samples[Int(place)] = Sample(key: Bytes(key), number: number)
        }
    }

    /// Leaves the samples below the key here and returns those from it on. Each part stands for its
    /// share of what was offered.
    mutating func split(at key: Bytes) -> KeyReservoir {
        var upper = KeyReservoir()
        upper.samples = samples.filter { compareBytes($0.key, key) >= 0 }
        guard !samples.isEmpty else { return upper }
        upper.offered = offered * UInt64(upper.samples.count) / UInt64(samples.count)
        offered -= upper.offered
        samples.removeAll { compareBytes($0.key, key) >= 0 }
        return upper
    }
}

/// The samples of one shard in the window that runs and in the one before it.
struct KeySamples: Sendable {
    /// With fewer samples nothing is said of the keys.
    static let samplesMin = 64
    /// A median leaves at least one part in so many of the load on either side; else no key halves
    /// it, since one key has the most of it.
    private static let sideShare: UInt64 = 4
    /// A key with less than this part of the load is not named.
    private static let hottestPercentMin: UInt64 = 10

    var recent = KeyReservoir()
    var previous = KeyReservoir()
    /// What was last found, for the shard's epoch then, and when.
    private(set) var figures = KeyFigures()
    private(set) var epoch = Epoch.none
    private(set) var figuredAt = Instant.origin

    private struct Weighted {
        var key: Bytes
        var number: UInt64
        var weight: UInt64
    }

    var count: Int { recent.samples.count + previous.samples.count }

    /// There is something to be found, or something found that may not hold any more.
    var isWorthFiguring: Bool { count >= Self.samplesMin || figures != KeyFigures() }

    /// A new window begins.
    mutating func turn() {
        previous = recent
        recent = KeyReservoir()
    }

    mutating func split(at key: Bytes) -> KeySamples {
        var upper = KeySamples()
        upper.recent = recent.split(at: key)
        upper.previous = previous.split(at: key)
        figures = KeyFigures()
        figuredAt = .origin
        return upper
    }

    /// The weight of the samples below `key`, and of all. `part` of `whole` as in `figure`.
    func share(below key: Bytes, part: UInt64, whole: UInt64) -> (below: UInt64, all: UInt64) {
        var below: UInt64 = 0
        var all: UInt64 = 0
        for sample in weighted(part, whole) {
            all += sample.weight
            if compareBytes(sample.key, key) < 0 { below += sample.weight }
        }
        return (below, all)
    }

    /// Finds the figures anew. The window before counts with `part` of `whole`: as much of it as
    /// still lies in the last ten seconds.
    mutating func figure(
        _ owned: OwnedShard, part: UInt64, whole: UInt64, now: Instant
    ) {
        figuredAt = now
        epoch = owned.shard.epoch
        figures = KeyFigures()
        var samples = weighted(part, whole).filter { owned.shard.range.contains($0.key) }
        guard samples.count >= Self.samplesMin else { return }
        samples.sort { compareBytes($0.key, $1.key) < 0 }
        let total = samples.reduce(0) { $0 + $1.weight }
        nameHottest(samples, total)
        figures.median = median(samples, total, owned.partitioning)
        figures.spread = spread(of: samples, total)
    }

    private func spread(of samples: [Weighted], _ total: UInt64) -> KeySpread {
        var keys: [(key: Bytes, below: UInt64)] = []
        var below: UInt64 = 0
        for sample in samples {
            if keys.last?.key != sample.key { keys.append((sample.key, below)) }
            below += sample.weight
        }
        guard let last = keys.last else { return KeySpread() }
        return KeySpread(keys, greatest: last.key, own: total - last.below, of: total)
    }

    private mutating func nameHottest(_ samples: [Weighted], _ total: UInt64) {
        var most: UInt64 = 0
        var first = 0
        while first < samples.count {
            var end = first
            var weight: UInt64 = 0
            while end < samples.count, samples[end].key == samples[first].key {
                weight += samples[end].weight
                end += 1
            }
            if weight > most, weight * 100 >= total * Self.hottestPercentMin {
                most = weight
                figures.hottest = samples[first].key
                figures.hottestPercent = UInt8(weight * 100 / total)
            }
            first = end
        }
    }

    private func median(
        _ samples: [Weighted], _ total: UInt64, _ partitioning: Partitioning
    ) -> Bytes? {
        var below: UInt64 = 0
        var best: (position: Int, below: UInt64)?
        for position in 1..<samples.count {
            below += samples[position - 1].weight
            guard
                RoutedCut.isPossible(
                    samples[position - 1].key, samples[position].key, partitioning)
            else { continue }
            if let known = best, distance(known.below, total) <= distance(below, total) {
                continue
            }
            best = (position, below)
        }
        guard let best, min(best.below, total - best.below) * Self.sideShare >= total,
            !wanders(samples, at: best.position)
        else { return nil }
        return RoutedCut.key(
            between: samples[best.position - 1].key, samples[best.position].key, partitioning)
    }

    /// From the half, doubled.
    private func distance(_ below: UInt64, _ total: UInt64) -> UInt64 {
        max(2 * below, total) - min(2 * below, total)
    }

    /// Whether the load moves over the keys, as inserts in order do: of the older half of the samples
    /// far more lie on one side of the median than of the newer half. What halved the load then
    /// does not halve what comes.
    private func wanders(_ samples: [Weighted], at position: Int) -> Bool {
        let numbers = samples.map(\.number).sorted()
        let middle = numbers[numbers.count / 2]
        let older = numbers.count / 2
        let newer = numbers.count - older
        let olderBelow = samples[..<position].count(where: { $0.number < middle })
        let newerBelow = position - olderBelow
        return abs(olderBelow * newer - newerBelow * older) * 2 > older * newer
    }

    /// A sample weighs as much as the keys that it stands for, in 1,024ths.
    private func weighted(_ part: UInt64, _ whole: UInt64) -> [Weighted] {
        var all: [Weighted] = []
        all.reserveCapacity(recent.samples.count + previous.samples.count)
        for (reservoir, share) in [(recent, UInt64(1_024)), (previous, 1_024 * part / whole)] {
            guard !reservoir.samples.isEmpty, share > 0 else { continue }
            let weight = max(1, reservoir.offered * share / UInt64(reservoir.samples.count))
            for sample in reservoir.samples {
                all.append(Weighted(key: sample.key, number: sample.number, weight: weight))
            }
        }
        return all
    }
}
