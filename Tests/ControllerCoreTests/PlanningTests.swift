// Placement of replicas and shards, rules of tables, numbering of the map.

import KVBase
import ShardCore
import Testing

@testable import ControllerCore

@Suite struct PlanningTests {
    @Test func replicasGoToDistinctNodesZonesAndDisks() throws {
        var candidates = (1...6).map { index in
            ReplicaPlanner.Candidate(
                node: NodeID(UInt32(index)), zone: ["a", "a", "b", "b", "c", ""][index - 1],
                replicasPerDisk: [0, index == 1 ? nil : 0])
        }
        for _ in 0..<4 {
            let places = try #require(ReplicaPlanner.place(count: 3, on: &candidates))
            #expect(Set(places.map(\.0)).count == 3)
            let zones = places.map { place in
                candidates.first { $0.node == place.0 }?.zone ?? ""
            }.filter { !$0.isEmpty }
            #expect(Set(zones).count == zones.count)
        }
        #expect(candidates.map(\.replicas).sorted() == [2, 2, 2, 2, 2, 2])
        // The two replicas of a node lie on its two disks, unless one of them is ill.
        #expect(candidates[1].replicasPerDisk == [1, 1])
        #expect(candidates[0].replicasPerDisk == [2, nil])
        #expect(ReplicaPlanner.place(count: 7, on: &candidates) == nil)
        #expect(candidates.map(\.replicas).reduce(0, +) == 12)
    }

    @Test func aNewGroupTakesOverOnlyItsShareOfVirtualRanges() {
        for count in [2, 16, 64, 1_000] {
            var current: [GroupID?] = []
            for groupCount in 1...9 {
                let groups = (1...groupCount).map { GroupID(UInt32($0)) }
                let next = ShardPlanner.assign(
                    virtualRanges: count, groups: groups, current: current)
                let shares = groups.map { group in next.count { $0 == group } }
                #expect((shares.max() ?? 0) - (shares.min() ?? 0) <= 1, "\(count), \(groupCount)")
                if !current.isEmpty {
                    let moved = zip(current, next).filter { $0 != $1 }
                    #expect(moved.allSatisfy { $1 == groups.last }, "\(count), \(groupCount)")
                    #expect(moved.count == shares.last, "\(count), \(groupCount)")
                }
                current = next
            }
        }
    }

    @Test func rangeShardsGoWhereFewestAre() {
        let groups = ShardPlanner.spread(
            count: 4, over: [(GroupID(1), 3), (GroupID(2), 0), (GroupID(3), 2)])
        // Loads 0 and 1 of group 2 are lowest; at 2 the lower id wins, then group 3 has 2 to 3.
        #expect(groups == [GroupID(2), GroupID(2), GroupID(2), GroupID(3)])
    }

    @Test func tablesKeepToTheRules() {
        func code(
            _ name: String = "t", _ partitioning: Partitioning = .range, replicas: UInt8? = nil,
            _ splits: [Bytes] = []
        ) -> ErrorCode? {
            TableRules.objection(
                to: .create(
                    name: name, partitioning: partitioning, engine: .lsm, replicas: replicas,
                    splitPoints: splits, ifMissing: false), splitBytesMax: 1_000)?.code
        }
        #expect(code() == nil)
        #expect(code("") == .invalidRequest)
        #expect(code("_system") == .invalidRequest)
        #expect(code("a b") == .invalidRequest)
        #expect(code(replicas: 2) == .invalidRequest)
        #expect(code(replicas: 5) == nil)
        #expect(code("t", .range, [[1], [2]]) == nil)
        #expect(code("t", .range, [[2], [1]]) == .invalidRequest)
        #expect(code("t", .range, [[1], [1]]) == .invalidRequest)
        #expect(code("t", .range, [[]]) == .invalidRequest)
        #expect(code("t", .range, [Bytes(repeating: 1, count: 1_001)]) == .tooLarge)
        #expect(
            code("t", .range, (0..<4_096).map { [UInt8($0 >> 8), UInt8($0 & 0xFF)] }) == .tooLarge)
        #expect(code("t", .hash(virtualRanges: 16)) == nil)
        #expect(code("t", .hash(virtualRanges: 1)) == .invalidRequest)
        #expect(code("t", .hash(virtualRanges: 16), [[1]]) == .invalidRequest)
    }

    @Test func followersGetStepsOrTheWholeMap() throws {
        let bench = try ControllerBench.threeNodes()
        var follower = ClusterMap()
        let full = bench.controller.mapUpdates(since: .none)
        #expect(full.first?.isFull == true)
        for update in full {
            let isTaken = follower.apply(update)
            #expect(isTaken)
        }
        #expect(follower.revision == bench.controller.mapRevision)
        #expect(follower.leader(of: GroupID(1))?.node == NodeID(1))
        #expect(bench.controller.mapUpdates(since: follower.revision).isEmpty)
        bench.step(.connectionClosed(ConnectionID(1)))
        let steps = bench.controller.mapUpdates(since: follower.revision)
        #expect(!steps.isEmpty && steps.allSatisfy { !$0.isFull })
        for update in steps {
            let isTaken = follower.apply(update)
            #expect(isTaken)
        }
        #expect(follower.leader(of: GroupID(1))?.node == NodeID.none)
        // A revision of another controller.
        #expect(bench.controller.mapUpdates(since: Revision(5 << 32)).first?.isFull == true)
    }

    @Test func nodesFollowTheMapWithoutShards() throws {
        let bench = try ControllerBench.threeNodes()
        var follower = ClusterMap(.withoutShards)
        func follow(_ update: MapUpdate) {
            let limited = update.limited(to: .withoutShards)
            #expect(limited.changes.allSatisfy { MapScope.withoutShards.includes($0) })
            // A controller that sends shards all the same does no harm.
            for update in [limited, update] {
                var copy = follower
                let isTaken = copy.apply(update)
                #expect(isTaken && copy.shardCount == 0)
            }
            let isTaken = follower.apply(limited)
            #expect(isTaken)
        }
        bench.controller.wholeMap(.withoutShards) { follow($0) }
        let before = follower.revision
        #expect(before == bench.controller.mapRevision)
        let table = Table(
            id: TableID(1), name: "t", partitioning: .range, engine: .lsm, replicas: 3,
            state: .active)
        let shard = Shard(
            id: ShardID(1), table: TableID(1), range: KeyRange(start: [], end: nil),
            group: GroupID(1), epoch: Epoch(1), state: .active)
        follow(
            MapUpdate(
                isFull: false, from: before, to: before.next(),
                changes: [.table(table), .shard(shard)]))
        #expect(follower.revision == before.next())
        #expect(follower.tables.elements.contains { $0.name == "t" })
        #expect(follower.groups.count == bench.controller.groups.count)
        #expect(follower.nodes.count == bench.controller.nodes.count)
    }

    @Test func aLargeMapComesInPiecesThatFollowersCanTake() {
        var journal = MapJournal()
        journal.begin(term: Term(3))
        var changes: [MapChange] = []
        let count = 40
        for index in 0..<count {
            let start = index == 0 ? [] : Bytes(repeating: UInt8(index), count: 200_000)
            let end = index + 1 == count ? nil : Bytes(repeating: UInt8(index + 1), count: 200_000)
            changes.append(
                .shard(
                    Shard(
                        id: ShardID(UInt32(index + 1)), table: TableID(1),
                        range: KeyRange(start: start, end: end), group: GroupID(1),
                        epoch: Epoch(1), state: .active)))
        }
        changes.append(
            .table(
                Table(
                    id: TableID(1), name: "t", partitioning: .range, engine: .lsm, replicas: 3,
                    state: .active)))
        _ = journal.append([])
        var pieces: [MapUpdate] = []
        var cutter = MapPieces(to: journal.revision)
        for change in changes { cutter.add(change) { pieces.append($0) } }
        cutter.end { pieces.append($0) }
        #expect(pieces.count > 3)
        var follower = ClusterMap()
        for (index, piece) in pieces.enumerated() {
            let isTaken = follower.apply(piece)
            #expect(isTaken)
            let isLast = index == pieces.count - 1
            #expect(follower.revision == (isLast ? journal.revision : .none))
            var writer = ByteWriter()
            piece.encode(into: &writer)
            #expect(writer.count < Limits.frameBytesMax)
        }
        #expect(follower.activeTables.first?.index.count == count)
    }
}
