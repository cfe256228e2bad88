// kvsim map: what a cluster map of many shards costs a router, in memory and in time.

import Glibc
import KVBase
import ShardCore

/// Builds a map as a router does, from encoded pieces of a whole one, then looks up, splits, moves
/// and merges.
struct MapMeasurement {
    let shards: Int
    let keyBytes: Int
    let tables: Int
    let lookups: Int

    private static let groups = 1_000

    init(_ words: ArraySlice<String>) {
        let values = numbers(
            words,
            defaults: [
                ("shards", 1_000_000), ("key-bytes", 16), ("tables", 1), ("lookups", 2_000_000),
            ])
        shards = values["shards"]!
        keyBytes = max(8, values["key-bytes"]!)
        tables = min(values["tables"]!, shards)
        lookups = values["lookups"]!
    }

    func run() {
        print("\(shards) shards of \(tables) tables, start keys of \(keyBytes) bytes")
        let before = residentBytes()
        var map = load()
        let used = residentBytes() - before
        let count = map.shardCount
        var accounted = 0
        var keys = 0
        for named in map.activeTables {
            accounted += named.index.memory.bytes
            keys += named.index.memory.keyBytes
        }
        precondition(count == shards)
        func beyond(_ bytes: Int) -> String {
            "\(mebibytes(bytes)), \(tenths(Double(bytes - keys) / Double(count))) bytes per shard "
                + "beyond its key"
        }
        row("accounted by the index", beyond(accounted))
        row("resident memory", beyond(used))
        lookUp(map)
        change(&map)
    }

    private func name(_ table: Int) -> Bytes { Bytes("table-\(table)".utf8) }

    /// A key whose order is that of `number`: 8 bytes that are spread over the key space, behind
    /// zeros that all keys have in common.
    private func key(_ number: Int, of count: Int) -> Bytes {
        let step = UInt64.max / UInt64(count)
        let word = UInt64(number) * step
        return Bytes(repeating: 0x30, count: keyBytes - 8)
            + (0..<8).map { UInt8(truncatingIfNeeded: word >> UInt64(56 - 8 * $0)) }
    }

    private func shard(_ id: Int, table: Int, _ range: KeyRange, group: Int) -> Shard {
        Shard(
            id: ShardID(UInt32(id)), table: TableID(UInt32(table + 1)), range: range,
            group: GroupID(UInt32(group % Self.groups + 1)), epoch: Epoch(1), state: .active)
    }

    private func shardsOf(_ table: Int) -> Int {
        shards * (table + 1) / tables - shards * table / tables
    }

    private func load() -> ClusterMap {
        var changes: [MapChange] = []
        changes.reserveCapacity(shards + tables)
        var id = 0
        for table in 0..<tables {
            let count = shardsOf(table)
            for number in 0..<count {
                id += 1
                let range = KeyRange(
                    start: number == 0 ? [] : key(number, of: count),
                    end: number + 1 == count ? nil : key(number + 1, of: count))
                changes.append(.shard(shard(id, table: table, range, group: id)))
            }
        }
        for table in 0..<tables {
            changes.append(
                .table(
                    Table(
                        id: TableID(UInt32(table + 1)),
                        name: String(decoding: name(table), as: UTF8.self), partitioning: .range,
                        engine: .lsm, replicas: 3, state: .active)))
        }
        var encoded: [Bytes] = []
        for piece in MapUpdate(isFull: true, from: .none, to: Revision(1), changes: changes)
            .pieces()
        {
            var writer = ByteWriter()
            piece.encode(into: &writer)
            encoded.append(writer.take())
        }
        changes = []
        row(
            "whole map on the wire",
            "\(mebibytes(encoded.reduce(0) { $0 + $1.count })) in \(encoded.count) pieces")
        var map = ClusterMap()
        var decoding: UInt64 = 0
        var applying = Durations()
        for bytes in encoded {
            let start = nanoseconds()
            guard
                let piece = try? ByteReader.decode(
                    bytes,
                    { (reader) throws(DatabaseError) in
                        try MapUpdate(from: &reader)
                    })
            else { preconditionFailure("a piece that was just encoded") }
            decoding += nanoseconds() - start
            let isTaken = applying.measure { map.apply(piece) }
            precondition(isTaken)
        }
        row("decoding it", duration(decoding))
        row("taking over a piece", applying.description)
        return map
    }

    // MARK: Look-up

    private func lookUp(_ map: ClusterMap) {
        var random = SeededRandom(seed: 1)
        // Keys and names lie packed, as in a read buffer; the next one is known early, as there.
        let slot = keyBytes
        var probes = Bytes()
        probes.reserveCapacity(1 << 16 * slot)
        for _ in 0..<1 << 16 {
            let word = random.next()
            probes += Bytes(repeating: 0x30, count: keyBytes - 8)
            probes += (0..<8).map { UInt8(truncatingIfNeeded: word >> UInt64(56 - 8 * $0)) }
        }
        let names = (0..<tables).map(name)
        var sum: UInt64 = 0
        let start = nanoseconds()
        probes.withUnsafeBytes { probes in
            for number in 0..<lookups {
                let offset = (number &* 40_503 & 0xFFFF) * slot
                let key = UnsafeRawBufferPointer(rebasing: probes[offset..<offset + slot])
                names[number % tables].withUnsafeBytes { name in
                    if let route = map.route(tableNamed: name, key: key) {
                        sum &+= UInt64(route.location.group.rawValue)
                    }
                }
            }
        }
        let elapsed = nanoseconds() - start
        precondition(sum > 0)
        row(
            "a look-up by table and key",
            "\(elapsed / UInt64(lookups)) ns (\(lookups) look-ups of 65536 random keys)")
    }

    // MARK: Changes

    private func change(_ map: inout ClusterMap) {
        var random = SeededRandom(seed: 2)
        var revision: UInt64 = 1
        var nextID = shards
        var splits = Durations()
        var moves = Durations()
        var merges = Durations()
        var rounds: [(left: Shard, right: Shard)] = []
        func apply(_ changes: [MapChange], _ durations: inout Durations) {
            let update = MapUpdate(
                isFull: false, from: Revision(revision), to: Revision(revision + 1),
                changes: changes)
            revision += 1
            let isTaken = durations.measure { map.apply(update) }
            precondition(isTaken, "a step that follows")
        }
        for _ in 0..<2_000 {
            let table = Int(random.below(UInt64(tables)))
            let count = shardsOf(table)
            let number = Int(random.below(UInt64(count - 1)))
            let start = number == 0 ? [] : key(number, of: count)
            let end = key(number + 1, of: count)
            let cut = start.isEmpty ? Bytes([1]) : start + [1]
            let found = name(table).withUnsafeBytes { name in
                start.withUnsafeBytes { map.route(tableNamed: name, key: $0) }
            }
            guard let old = found?.location,
                !rounds.contains(where: {
                    $0.left.range.start == start && $0.left.table.rawValue == UInt32(table + 1)
                })
            else { continue }
            nextID += 1
            var left = shard(
                Int(old.shard.rawValue), table: table, KeyRange(start: start, end: cut), group: 0)
            left.group = old.group
            left.epoch = old.epoch.next()
            var right = shard(nextID, table: table, KeyRange(start: cut, end: end), group: 0)
            right.group = old.group
            apply([.shard(left), .shard(right)], &splits)
            right.group = GroupID(UInt32(1 + random.below(UInt64(Self.groups))))
            right.epoch = right.epoch.next()
            apply([.shard(right)], &moves)
            rounds.append((left, right))
        }
        for (left, right) in rounds {
            var merged = left
            merged.range.end = right.range.end
            merged.epoch = merged.epoch.next()
            apply([.shard(merged), .shardRemoved(right.id, right.table)], &merges)
        }
        precondition(map.shardCount == shards)
        row("a split taken over", splits.description)
        row("a move taken over", moves.description)
        row("a merge taken over", merges.description)
    }
}
