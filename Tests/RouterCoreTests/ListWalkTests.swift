// List walks against a sorted array: any cut into shards and groups, any page size, shards that
// change under way.

import KVBase
import RouterCore
import ShardCore
import Testing

@Suite struct ListWalkTests {
    /// A table's records, and nodes that answer pages of them.
    struct World {
        var map = ClusterMap()
        var keys: [Bytes] = []
        let partitioning: Partitioning
        private var revision: UInt64 = 0
        private var random: SeededRandom

        init(_ partitioning: Partitioning, keys count: Int, seed: UInt64) {
            self.partitioning = partitioning
            random = SeededRandom(seed: seed)
            var distinct: Set<Bytes> = []
            for _ in 0..<count {
                let length = random.below(4)
                distinct.insert((0..<length).map { _ in UInt8(0x61 + random.below(8)) })
            }
            keys = distinct.sorted { compareBytes($0, $1) < 0 }
            cut()
        }

        /// Places the table on shards and groups anew.
        mutating func cut() {
            revision += 1
            var changes: [MapChange] = [
                .table(
                    Table(
                        id: TableID(1), name: "t", partitioning: partitioning, engine: .lsm,
                        replicas: 3, state: .active))
            ]
            var ranges: [KeyRange] = []
            if case .hash(let count) = partitioning {
                ranges = (0..<count).map { partitioning.routedRange(ofVirtualRange: $0) }
            } else {
                var edges: [Bytes] = []
                for byte in 0x61...0x68 as ClosedRange<UInt8> where random.chance(1, in: 2) {
                    edges.append([byte])
                }
                ranges = zip([[]] + edges, edges.map(Optional.some) + [nil]).map {
                    KeyRange(start: $0, end: $1)
                }
            }
            for (place, range) in ranges.enumerated() {
                changes.append(
                    .shard(
                        Shard(
                            id: ShardID(UInt32(revision) * 1_000 + UInt32(place)),
                            table: TableID(1), range: range,
                            group: GroupID(UInt32(1 + random.below(3))),
                            epoch: Epoch(UInt32(revision)), state: .active)))
            }
            let isTaken = map.apply(
                MapUpdate(isFull: true, from: .none, to: Revision(revision), changes: changes))
            precondition(isTaken)
        }

        /// A node's answer; nil when the shards are not these any more.
        mutating func answer(_ request: ListRequest, pageMax: Int) -> ListPage? {
            var ranges: [KeyRange] = []
            for part in request.parts {
                var range: KeyRange?
                for named in map.activeTables {
                    named.index.forEachRange { location, keys in
                        if location.shard == part.shard, location.epoch == part.epoch {
                            range = keys
                        }
                    }
                }
                guard let range else { return nil }
                ranges.append(range)
            }
            let all = keys.filter { key in
                let routed = key.withUnsafeBytes { partitioning.routedKey($0) }
                let order = compareBytes(key, request.from)
                return ranges.contains { $0.contains(routed) }
                    && (request.isFromExclusive ? order > 0 : order >= 0)
                    && request.to.map { compareBytes(key, $0) < 0 } ?? true
            }
            let page = all.prefix(min(Int(request.limit), pageMax))
            return ListPage(
                count: UInt32(page.count), hasMore: page.count < all.count,
                lastKey: page.last ?? [],
                records: request.isCountOnly
                    ? [] : page.map { ListedRecord(key: $0, value: $0, sequencer: .zero) })
        }
    }

    private func run(
        _ query: ListWalk.Query, _ world: inout World, cutting: Bool, _ random: inout SeededRandom
    ) -> ListWalk {
        var walk = ListWalk(query)
        var waiting = walk.start(world.map)
        while !waiting.isEmpty {
            let request = waiting.remove(at: Int(random.below(UInt64(waiting.count))))
            if cutting, random.chance(1, in: 8) { world.cut() }
            if let page = world.answer(request.page, pageMax: Int(1 + random.below(5))) {
                waiting += walk.receive(source: request.source, page, world.map)
            } else if let requests = walk.restart(world.map) {
                waiting = requests
            } else {
                Issue.record("too many restarts")
                return walk
            }
        }
        #expect(walk.asked == 0)
        return walk
    }

    @Test(arguments: 1...30 as ClosedRange<UInt64>, [Partitioning.range, .hash(virtualRanges: 7)])
    func aListIsTheSortedRange(seed: UInt64, partitioning: Partitioning) {
        var random = SeededRandom(seed: seed)
        var world = World(partitioning, keys: Int(random.below(200)), seed: seed)
        for _ in 0..<8 {
            var query = ListWalk.Query(table: Bytes("t".utf8))
            query.limit = Int(1 + random.below(60))
            if random.chance(1, in: 2), let key = world.keys.randomElement(using: &random) {
                query.from = key
                query.isFromExclusive = random.chance(1, in: 2)
            }
            if random.chance(1, in: 2) { query.to = world.keys.randomElement(using: &random) }
            let expected = world.keys.filter { key in
                let order = compareBytes(key, query.from)
                return (query.isFromExclusive ? order > 0 : order >= 0)
                    && query.to.map { compareBytes(key, $0) < 0 } ?? true
            }
            let walk = run(query, &world, cutting: random.chance(1, in: 2), &random)
            #expect(walk.records.map(\.key) == Array(expected.prefix(query.limit)), "seed \(seed)")
            // "More" may be said wrongly at the very end, never left out.
            if walk.records.count < expected.count { #expect(walk.hasMore, "seed \(seed)") }
            if walk.records.count < query.limit { #expect(!walk.hasMore, "seed \(seed)") }
        }
    }

    @Test(arguments: 1...10 as ClosedRange<UInt64>, [Partitioning.range, .hash(virtualRanges: 7)])
    func aCountIsExact(seed: UInt64, partitioning: Partitioning) {
        var random = SeededRandom(seed: seed)
        var world = World(partitioning, keys: 150, seed: seed)
        var query = ListWalk.Query(table: Bytes("t".utf8))
        query.isCountOnly = true
        query.limit = .max
        query.bytesMax = .max
        let walk = run(query, &world, cutting: true, &random)
        #expect(walk.count == UInt64(world.keys.count), "seed \(seed)")
        #expect(walk.records.isEmpty)
    }

    @Test func aTableThatIsNotThereIsEmpty() {
        var walk = ListWalk(ListWalk.Query(table: Bytes("u".utf8)))
        #expect(walk.start(World(.range, keys: 5, seed: 1).map).isEmpty)
        #expect(!walk.hasMore && walk.records.isEmpty)
    }

    @Test func bytesBoundAPage() {
        var world = World(.range, keys: 0, seed: 1)
        world.keys = (0..<10).map { [UInt8(0x61 + $0)] }
        var query = ListWalk.Query(table: Bytes("t".utf8))
        query.bytesMax = 6
        var random = SeededRandom(seed: 1)
        let walk = run(query, &world, cutting: false, &random)
        #expect(walk.records.count == 3 && walk.hasMore)
    }
}
