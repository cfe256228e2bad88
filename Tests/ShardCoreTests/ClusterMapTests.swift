import KVBase
import ShardCore
import Testing

/// Lets expectations call what changes the map.
private final class Follower {
    private(set) var map = ClusterMap()
    func apply(_ update: MapUpdate) -> Bool { map.apply(update) }
    func observeLeader(_ leader: GroupLeader) -> Bool { map.observeLeader(leader) }
    func table(_ name: String) -> Table? {
        Bytes(name.utf8).withUnsafeBytes { map.table(named: $0)?.table }
    }
}

@Suite struct ClusterMapTests {
    private func table(_ id: UInt32, _ name: String, _ state: Table.State = .active) -> Table {
        Table(
            id: TableID(id), name: name, partitioning: .range, engine: .lsm, replicas: 3,
            state: state)
    }

    private func shard(_ id: UInt32, _ table: UInt32, _ range: KeyRange) -> Shard {
        Shard(
            id: ShardID(id), table: TableID(table), range: range, group: GroupID(1),
            epoch: Epoch(1), state: .active)
    }

    private func update(_ from: UInt64, _ to: UInt64, full: Bool = false, _ changes: [MapChange])
        -> MapUpdate
    {
        MapUpdate(isFull: full, from: Revision(from), to: Revision(to), changes: changes)
    }

    @Test func showsOnlyActiveTablesThatAreTiled() {
        let follower = Follower()
        #expect(
            follower.apply(
                update(
                    0, 5, full: true,
                    [
                        .table(table(1, "stocks")), .shard(shard(1, 1, .all)),
                        .table(table(2, "bonds", .creating)), .shard(shard(2, 2, .all)),
                    ])))
        #expect(follower.table("stocks")?.id == TableID(1))
        #expect(follower.table("bonds") == nil)
        #expect(follower.apply(update(5, 6, [.table(table(2, "bonds"))])))
        #expect(follower.table("bonds")?.id == TableID(2))
        #expect(follower.map.activeTables.map(\.table.name) == ["bonds", "stocks"])
        #expect(
            follower.apply(
                update(6, 7, [.tableRemoved(TableID(1)), .shardRemoved(ShardID(1), TableID(1))])))
        #expect(follower.table("stocks") == nil)
    }

    @Test func refusesAnUpdateThatDoesNotFollow() {
        let follower = Follower()
        #expect(follower.apply(update(0, 5, full: true, [])))
        #expect(!follower.apply(update(4, 6, [.table(table(1, "stocks"))])))
        #expect(follower.map.revision == Revision(5))
    }

    @Test func reportsATableWithAHole() {
        let follower = Follower()
        let half = KeyRange(start: [], end: [9])
        #expect(
            !follower.apply(
                update(0, 1, full: true, [.table(table(1, "t")), .shard(shard(1, 1, half))])))
        #expect(follower.table("t") == nil)
    }

    @Test func keepsTheLeaderOfTheHighestTerm() {
        let follower = Follower()
        let leader = { (term: UInt64, node: UInt32) in
            GroupLeader(group: GroupID(1), term: Term(term), node: NodeID(node))
        }
        #expect(follower.observeLeader(leader(3, 1)))
        #expect(!follower.observeLeader(leader(2, 2)))
        #expect(!follower.observeLeader(leader(3, 1)))
        #expect(follower.observeLeader(leader(4, 2)))
        // A full map does not bring back an older leader.
        #expect(follower.apply(update(0, 9, full: true, [.leader(leader(3, 1))])))
        #expect(follower.map.leader(of: GroupID(1)) == leader(4, 2))
    }
}
