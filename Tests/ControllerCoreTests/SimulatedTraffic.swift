// Requests and records by key, so that what leaders report follows the shards wherever they go.

import KVBase
import NodeCore
import ShardCore

@testable import ControllerCore

struct SimulatedTraffic {
    struct Key {
        var key: Bytes
        /// Requests per second.
        var rate: UInt64
        var bytes: UInt64
    }

    /// In order of keys, each once.
    var keys: [Key]

    /// `count` keys under `prefix`, alike.
    static func even(
        _ count: Int, rate: UInt64 = 0, bytes: UInt64 = 0, prefix: String = "k"
    ) -> SimulatedTraffic {
        SimulatedTraffic(
            keys: (0..<count).map { number in
                let digits = "\(number)"
                let padded = String(repeating: "0", count: 5 - digits.utf8.count) + digits
                return Key(key: Bytes((prefix + padded).utf8), rate: rate, bytes: bytes)
            })
    }

    mutating func setRate(_ rate: UInt64) {
        for index in keys.indices { keys[index].rate = rate }
    }

    /// The key that halves what `weight` tells of the keys inside `range`, both sides not empty.
    private func half(of inside: ArraySlice<Key>, _ weight: (Key) -> UInt64) -> Bytes? {
        let total = inside.reduce(0) { $0 + weight($1) }
        guard total > 0 else { return nil }
        var below: UInt64 = 0
        var best: (distance: UInt64, key: Bytes)?
        for (index, key) in zip(inside.indices, inside) {
            if index > inside.startIndex, below > 0 {
                let distance = max(below * 2, total) - min(below * 2, total)
                if best.map({ distance < $0.distance }) ?? true { best = (distance, key.key) }
            }
            below += weight(key)
        }
        return best?.key
    }

    private func spread(of inside: ArraySlice<Key>, _ weight: (Key) -> UInt64) -> KeySpread {
        var total: UInt64 = 0
        let candidates = inside.map { key in
            defer { total += weight(key) }
            return (key: key.key, below: total)
        }
        guard let last = inside.last else { return KeySpread() }
        return KeySpread(candidates, greatest: last.key, own: weight(last), of: total)
    }

    private func inside(_ range: KeyRange) -> ArraySlice<Key> {
        let first = keys.firstIndex { range.contains($0.key) } ?? keys.endIndex
        let end = keys[first...].firstIndex { !range.contains($0.key) } ?? keys.endIndex
        return keys[first..<end]
    }

    func rate(of range: KeyRange) -> UInt64 { inside(range).reduce(0) { $0 + $1.rate } }

    private func load(of shard: Shard) -> ShardLoad {
        let inside = inside(shard.range)
        let rate = inside.reduce(0) { $0 + $1.rate }
        let hottest = inside.max { $0.rate < $1.rate }
        let percent = rate == 0 ? 0 : (hottest?.rate ?? 0) * 100 / rate
        return ShardLoad(
            shard: shard.id, epoch: shard.epoch, reads: UInt32(rate), writes: 0,
            median: half(of: inside) { $0.rate }, hottest: percent >= 10 ? hottest?.key : nil,
            hottestPercent: percent >= 10 ? UInt8(percent) : 0,
            spread: spread(of: inside) { $0.rate })
    }

    private func size(of shard: Shard) -> ShardReport {
        let inside = inside(shard.range)
        return ShardReport(
            shard: shard.id, epoch: shard.epoch, bytes: inside.reduce(0) { $0 + $1.bytes },
            records: UInt64(inside.count), middle: half(of: inside) { $0.bytes },
            spread: spread(of: inside) { $0.bytes })
    }

    /// The shards that a group answers for.
    private static func serving(_ group: SimulatedGroup?) -> [Shard] {
        (group?.state.shards.elements ?? []).compactMap { owned in
            if case .fenced = owned.phase { return nil }
            return owned.shard
        }
    }

    /// As nodes do: a shard on the move is not counted.
    private static func counted(_ group: SimulatedGroup?) -> [Shard] {
        (group?.state.shards.elements ?? []).filter { $0.phase == .owned }.map(\.shard)
    }

    func load(of node: ClusterSimulation.SimNode, _ states: [GroupID: SimulatedGroup])
        -> LoadReport
    {
        var report = LoadReport(groups: [], shards: [])
        for group in node.leads.keys.sorted() {
            let loads = Self.serving(states[group]).map { load(of: $0) }
            let rate = loads.reduce(0) { $0 + $1.operations }
            report.groups.append(GroupLoad(group: group, reads: UInt32(rate), writes: 0))
            report.shards += loads.filter { $0.operations > 0 }
        }
        report.shards.sort { ($1.operations, $0.shard) < ($0.operations, $1.shard) }
        report.shards = Array(report.shards.prefix(LoadReport.shardsMax))
        return report
    }

    func sizes(of node: ClusterSimulation.SimNode, _ states: [GroupID: SimulatedGroup])
        -> [ShardReport]
    {
        node.leads.keys.sorted().flatMap { group in
            Self.counted(states[group]).map { size(of: $0) }
        }
    }
}

extension ClusterSimulation {
    func sizes(of node: SimNode) -> [ShardReport] {
        traffic?.sizes(of: node, states) ?? sizes.keys.sorted().compactMap { sizes[$0] }
    }

    /// Requests per second that each group serves, by the map.
    func rates() -> [GroupID: UInt64] {
        var rates: [GroupID: UInt64] = [:]
        for shard in store.durable.shards {
            rates[shard.group, default: 0] += traffic?.rate(of: shard.range) ?? 0
        }
        return rates
    }
}
