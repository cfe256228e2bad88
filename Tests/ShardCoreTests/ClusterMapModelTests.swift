// The packed map against the plainest one: every shard in an array, searched from end to end.

import KVBase
import Testing

@testable import ShardCore

@Suite struct ClusterMapModelTests {
    /// What a map should answer.
    struct Model {
        var tables: [Table] = []
        var shards: [Shard] = []

        mutating func take(_ changes: [MapChange]) {
            for change in changes {
                switch change {
                case .table(let table):
                    tables.removeAll { $0.id == table.id }
                    tables.append(table)
                case .tableRemoved(let id):
                    tables.removeAll { $0.id == id }
                    shards.removeAll { $0.table == id }
                case .shard(let shard):
                    shards.removeAll { $0.id == shard.id }
                    shards.append(shard)
                case .shardRemoved(let id, _): shards.removeAll { $0.id == id }
                default: break
                }
            }
        }

        func shards(of table: TableID) -> [Shard] {
            shards.filter { $0.table == table }.sorted {
                compareBytes($0.range.start, $1.range.start) < 0
            }
        }

        func isTiled(_ table: TableID) -> Bool {
            var expected: Bytes? = []
            for shard in shards(of: table) {
                guard shard.range.start == expected, !shard.range.isEmpty else { return false }
                expected = shard.range.end
            }
            return expected == nil
        }

        var active: [Table] {
            tables.filter { $0.state == .active && isTiled($0.id) }.sorted { $0.name < $1.name }
        }
    }

    /// Makes changes of a map, mostly such as keep it whole.
    struct Generator {
        var random: SeededRandom
        var model = Model()
        var nextTable: UInt32 = 1
        var nextShard: UInt32 = 1
        let keyBytesMax: UInt64
        let shardsMax: UInt64

        mutating func key() -> Bytes {
            // Alike at the beginning, so that the common part of keys matters.
            let tail = (0..<1 + random.below(keyBytesMax)).map { _ in UInt8(random.below(5)) }
            return (random.chance(3, in: 4) ? Bytes("customer:".utf8) : []) + tail
        }

        mutating func shardID() -> ShardID {
            nextShard += 1
            return ShardID(nextShard)
        }

        mutating func shard(_ table: TableID, _ start: Bytes, _ end: Bytes?) -> Shard {
            Shard(
                id: shardID(), table: table, range: KeyRange(start: start, end: end),
                group: GroupID(UInt32(1 + random.below(9))), epoch: Epoch(1), state: .active)
        }

        mutating func create() -> [MapChange] {
            let id = TableID(nextTable)
            nextTable += 1
            let cuts = Set((0..<random.below(shardsMax)).map { _ in key() }).filter { !$0.isEmpty }
                .sorted { compareBytes($0, $1) < 0 }
            var shards: [Shard] = []
            for (start, end) in zip([[]] + cuts, cuts.map(Optional.some) + [nil]) {
                shards.append(shard(id, start, end))
            }
            shards.shuffle(using: &random)
            var changes: [MapChange] = shards.map { .shard($0) }
            // Now and then the shards come before their table.
            if random.chance(4, in: 5) { changes.append(.table(table(id))) }
            return changes
        }

        func table(_ id: TableID) -> Table {
            Table(
                id: id, name: "t\(id.rawValue % 7)-\(id)", partitioning: .range, engine: .lsm,
                replicas: 3, state: .active)
        }

        mutating func change() -> [MapChange] {
            guard let any = model.tables.randomElement(using: &random)?.id else { return create() }
            let own = model.shards(of: any)
            let place = Int(random.below(UInt64(max(1, own.count))))
            switch random.below(20) {
            case 0 where model.tables.count < 6: return create()
            case 1:
                let loose = Set(model.shards.map(\.table)).subtracting(model.tables.map(\.id))
                return loose.sorted().map { .table(table($0)) }
            case 2:
                return own.map { .shardRemoved($0.id, any) } + [.tableRemoved(any)]
            case 3:
                // Hidden, shown again, renamed.
                var changed = model.tables.first { $0.id == any }!
                changed.state = changed.state == .active ? .dropping : .active
                if random.chance(1, in: 3) { changed.name += "x" }
                return [.table(changed)]
            case 4 where !own.isEmpty && random.chance(1, in: 4):
                // Not whole afterwards.
                switch random.below(3) {
                case 0: return [.shardRemoved(own[place].id, any)]
                case 1: return [.shard(shard(any, key(), key()))]
                default:
                    var moved = own[place]
                    moved.range.end = key()
                    return [.shard(moved)]
                }
            case 5...11: return split(own, place)
            case 12...15: return merge(own, place)
            default:
                return own[place...].prefix(Int(1 + random.below(40))).map { shard in
                    var moved = shard
                    moved.group = GroupID(UInt32(1 + random.below(9)))
                    moved.epoch = moved.epoch.next()
                    return .shard(moved)
                }
            }
        }

        private mutating func split(_ own: [Shard], _ place: Int) -> [MapChange] {
            guard !own.isEmpty else { return [] }
            var changes: [MapChange] = []
            for _ in 0..<1 + random.below(3) {
                let cut = key()
                guard var left = own.first(where: { $0.range.contains(cut) }),
                    left.range.start != cut,
                    !changes.contains(where: {
                        if case .shard(let shard) = $0 { return shard.id == left.id }
                        return false
                    })
                else { continue }
                let right = shard(left.table, cut, left.range.end)
                left.range.end = cut
                left.epoch = left.epoch.next()
                changes +=
                    random.chance(1, in: 2)
                    ? [.shard(left), .shard(right)]
                    : [
                        .shard(right), .shard(left),
                    ]
            }
            return changes
        }

        private mutating func merge(_ own: [Shard], _ place: Int) -> [MapChange] {
            let count = Int(random.chance(1, in: 8) ? random.below(700) : 1 + random.below(3))
            let run = own.dropFirst(place).prefix(1 + count)
            guard run.count > 1, var into = run.first else { return [] }
            into.range.end = run.last!.range.end
            into.epoch = into.epoch.next()
            var changes: [MapChange] = [.shard(into)]
            for other in run.dropFirst() { changes.append(.shardRemoved(other.id, other.table)) }
            if random.chance(1, in: 2) { changes.reverse() }
            return changes
        }
    }

    private func check(
        _ map: ClusterMap, _ model: Model, _ random: inout SeededRandom, _ comment: Comment
    ) {
        let active = model.active
        let served = map.activeTables
        #expect(served.map(\.table) == active, comment)
        #expect(
            map.shardCount
                == model.shards.count { shard in
                    active.contains { $0.id == shard.table }
                }, comment)
        guard let named = served.randomElement(using: &random) else { return }
        let expected = model.shards(of: named.table.id)
        var found: [ShardID] = []
        var ranges: [KeyRange] = []
        named.index.forEachRange { location, range in
            found.append(location.shard)
            ranges.append(range)
        }
        let isInOrder = found == expected.map(\.id) && ranges == expected.map(\.range)
        #expect(isInOrder, "\(comment): \(found)")
        for block in named.index.blocks {
            #expect(1...ShardBlock.entriesMax ~= block.count, comment)
        }
        for shard in expected {
            // The start key itself, and a little below and above it.
            var keys = [shard.range.start, shard.range.start + [0], shard.range.start + [9]]
            if let last = shard.range.start.last {
                keys.append(shard.range.start.dropLast() + [last &- 1])
            }
            for key in keys {
                let route = Bytes(named.table.name.utf8).withUnsafeBytes { name in
                    key.withUnsafeBytes { map.route(tableNamed: name, key: $0) }
                }
                let home = expected.last { compareBytes($0.range.start, key) <= 0 }
                guard let home, let route, route.location.shard == home.id,
                    route.location.group == home.group, route.location.epoch == home.epoch
                else {
                    Issue.record(
                        "\(comment): key \(key.prefix(40)) goes to \(String(describing: route))")
                    return
                }
            }
        }
    }

    @Test(arguments: 0..<24 as Range<UInt64>)
    func agreesWithTheModel(seed: UInt64) {
        var generator = Generator(
            random: SeededRandom(seed: seed), keyBytesMax: seed % 6 == 5 ? 9_000 : 2 + seed % 8,
            shardsMax: seed % 6 == 5 ? 60 : [4, 40, 300, 1_200][Int(seed % 4)])
        var map = ClusterMap()
        var revision: UInt64 = 0
        for step in 0..<80 {
            let comment: Comment = "seed \(seed), step \(step)"
            revision += 1
            var update = MapUpdate(
                isFull: false, from: Revision(revision - 1), to: Revision(revision),
                changes: generator.change())
            generator.model.take(update.changes)
            if generator.random.chance(1, in: 12) {
                update.isFull = true
                update.changes = generator.model.shards.map { .shard($0) }
                update.changes.shuffle(using: &generator.random)
                update.changes += generator.model.tables.map { .table($0) }
            }
            let before = map
            var isTaken = true
            let pieces = update.pieces(
                bytesMax: generator.random.chance(1, in: 2) ? 1 << 22 : 4_000)
            for (place, piece) in pieces.enumerated() {
                isTaken = map.apply(piece) && isTaken
                if place + 1 < pieces.count, isTaken {
                    // Nothing shows before the last piece.
                    #expect(map.revision == before.revision, comment)
                    #expect(map.shardCount == before.shardCount, comment)
                }
            }
            if pieces.count > 64, !update.isFull {
                #expect(!isTaken, comment)
                map = before
                update.isFull = true
                update.changes =
                    generator.model.shards.map { .shard($0) }
                    + generator.model.tables.map { .table($0) }
                isTaken = map.apply(update)
            }
            let hidden = generator.model.tables.contains { table in
                table.state == .active && !generator.model.isTiled(table.id)
            }
            #expect(isTaken || hidden, comment)
            #expect(map.revision == Revision(revision), comment)
            check(map, generator.model, &generator.random, comment)
        }
    }

    @Test func aShardCostsLittleBesideItsKey() throws {
        var generator = Generator(
            random: SeededRandom(seed: 7), keyBytesMax: 12, shardsMax: 20_000)
        var map = ClusterMap()
        var isTaken = map.apply(
            MapUpdate(
                isFull: false, from: .none, to: Revision(1),
                changes: generator.create().filter {
                    if case .table = $0 { return false }
                    return true
                } + [.table(generator.table(TableID(1)))]))
        #expect(isTaken)
        // Splits leave blocks half full, and cost no more for it.
        for revision in 1..<1_500 as Range<UInt64> {
            let cut = generator.key()
            let location = try #require(map.activeTables.first).index
            let (old, end) = cut.withUnsafeBytes { location.locateWithEnd($0) }
            let start = location.start(of: cut.withUnsafeBytes { location.position(of: $0) })!
            guard start != cut else {
                isTaken = map.apply(
                    MapUpdate(
                        isFull: false, from: Revision(revision), to: Revision(revision + 1),
                        changes: []))
                continue
            }
            let left = Shard(
                id: old.shard, table: TableID(1), range: KeyRange(start: start, end: cut),
                group: old.group, epoch: old.epoch.next(), state: .active)
            isTaken = map.apply(
                MapUpdate(
                    isFull: false, from: Revision(revision), to: Revision(revision + 1),
                    changes: [
                        .shard(left), .shard(generator.shard(TableID(1), cut, end)),
                    ]))
            #expect(isTaken)
        }
        let index = try #require(map.activeTables.first).index
        let memory = index.memory
        let each = Double(memory.bytes - memory.keyBytes) / Double(index.count)
        #expect(index.count > 3_000)
        #expect(each < 20, "\(each) bytes per shard beside its key")
    }

    @Test func aWholeMapTakesEffectWithItsLastPiece() {
        var generator = Generator(
            random: SeededRandom(seed: 3), keyBytesMax: 6, shardsMax: 500)
        func whole(_ revision: UInt64) -> [MapUpdate] {
            var changes: [MapChange] = []
            while changes.count < 100 { changes = generator.create() }
            changes.append(.table(generator.table(TableID(generator.nextTable - 1))))
            return MapUpdate(
                isFull: true, from: .none, to: Revision(revision), changes: changes
            ).pieces(bytesMax: 2_000)
        }
        var map = ClusterMap()
        func take(_ update: MapUpdate) {
            let isTaken = map.apply(update)
            #expect(isTaken, "piece \(update.piece) of \(update.to)")
        }
        for piece in whole(5) { take(piece) }
        let count = map.shardCount
        let newer = whole(9)
        let newerTables = [TableID(generator.nextTable - 1)]
        let older = whole(7)
        #expect(newer.count > 3 && older.count > 3)
        // A controller that is behind talks in between; the connection breaks once.
        for piece in newer.dropLast() {
            take(piece)
            take(older[min(Int(piece.piece), older.count - 1)])
        }
        #expect(map.revision == Revision(5) && map.shardCount == count)
        let step = MapUpdate(isFull: false, from: Revision(5), to: Revision(6), changes: [])
        take(step)
        for piece in newer { take(piece) }
        #expect(map.revision == Revision(9))
        #expect(map.activeTables.map(\.table.id) == newerTables)
    }
}
