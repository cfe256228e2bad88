// Plans of splits, moves and merges: where they cut, where they move to, and what they refuse.

import KVBase
import ShardCore
import Testing

@testable import ControllerCore

@Suite struct ShardPlanTests {
    private typealias Base = ShardOperationTests

    private func message(_ body: () throws -> Void) -> String {
        do {
            try body()
            return "nothing was refused"
        } catch {
            return (error as? DatabaseError)?.message ?? "\(error)"
        }
    }

    @Test func refusalsSayWhatWouldWork() throws {
        let simulation = Base.cluster(seed: 20)
        simulation.request(
            1, ControllerSimulationTests.create("h", .hash(virtualRanges: 4)))
        simulation.request(2, ControllerSimulationTests.create("b", engine: .btree))
        simulation.run(for: .seconds(2))
        let controller = try #require(simulation.controller)
        func split(_ table: String, shard: ShardID? = nil, _ at: String?, to: MoveTarget? = nil)
            -> String
        {
            message {
                _ = try controller.plan(
                    split: SplitRequest(
                        table: table, shard: shard, at: at.map { Bytes($0.utf8) }, to: to),
                    now: simulation.now)
            }
        }
        func move(_ shard: UInt32, _ target: MoveTarget) -> String {
            message {
                _ = try controller.plan(moveOf: ShardID(shard), to: target, now: simulation.now)
            }
        }
        func merge(_ shard: UInt32) -> String {
            message { _ = try controller.plan(mergeOf: ShardID(shard), now: simulation.now) }
        }
        #expect(split("x", nil) == "there is no table named x; there are t, h, b")
        #expect(split("t", shard: ShardID(99), "a") == "there is no shard 99; see: kvctl shards")
        #expect(
            split("t", shard: ShardID(3), "a")
                == "shard 3 belongs to table h, not to t; the shards of t: 1, 2")
        #expect(
            split("t", shard: ShardID(1), "z")
                == "the key z is not inside shard 1, which has the keys up to m")
        #expect(
            split("t", "m")
                == "m is a boundary already: shard 2 begins there; give a key inside it, or none")
        #expect(split("t", "").hasPrefix("a table begins with the empty key"))
        #expect(split("t", nil).contains("give one with: kvctl split t --at KEY"))
        #expect(
            split("h", nil)
                == "shard 3 is one virtual range of HASH table h and cannot be cut; move it as it is "
                + "with: kvctl move 3")
        #expect(
            split("h", shard: ShardID(4), "key").contains(
                "is cut between virtual ranges only; shard 4 has the one virtual range 1"))
        #expect(split("t", "f", to: .group(GroupID(1))).contains("is in group 1 already"))
        #expect(
            move(1, .group(GroupID(9))) == "there is no group 9; groups that fit: 2, or --to new")
        #expect(
            move(1, .group(GroupID(1)))
                == "the shard is in group 1 already; groups that fit: 2, or --to new")
        #expect(
            move(1, .group(GroupID(3)))
                == "group 3 is a BTREE group of 3 replicas, table t lives on LSM groups of 3 "
                + "replicas; groups that fit: 2, or --to new")
        #expect(move(99, .any).contains("there is no shard 99"))
        #expect(
            merge(2)
                == "shard 2 is the last one of table t and has no right neighbour; merge it from the "
                + "left with: kvctl merge 1")
        #expect(merge(7).contains("it is the only one, there is nothing to merge"))
    }

    @Test func refusesWithoutAMajority() {
        let simulation = Base.cluster(seed: 22)
        let group = simulation.controller?.groups[GroupID(1)]?.record.placements ?? []
        for placement in group.prefix(2) {
            simulation.crash(node: simulation.nodes.firstIndex { $0.id == placement.node } ?? 0)
        }
        simulation.run(for: .seconds(2))
        simulation.operate(1, .split(SplitRequest(table: "t", at: Bytes("f".utf8), to: nil)))
        simulation.operate(2, .move(ShardID(1), to: .any))
        simulation.operate(3, .merge(ShardID(1)))
        for number in [UInt64(1), 2, 3] {
            #expect(Base.failure(simulation, number).contains("group 1 has 1 of 3 replicas live"))
        }
    }

    @Test func refusesWhileSomethingIsUnderWay() throws {
        let simulation = Base.cluster(seed: 21)
        simulation.holdsCopies = true
        simulation.operate(1, .move(ShardID(1), to: .any))
        simulation.run(for: .seconds(1))
        simulation.operate(2, .move(ShardID(1), to: .any))
        simulation.operate(3, .merge(ShardID(1)))
        for number in [UInt64(2), 3] {
            #expect(
                Base.failure(simulation, number)
                    == "operation 1 (move, copying) works on shard 1; wait for it, or stop it with: "
                    + "kvctl ops cancel 1")
        }
        simulation.holdsCopies = false
        simulation.run(for: .seconds(3))
        simulation.operate(4, .cancel(OperationID(1)))
        #expect(Base.failure(simulation, 4) == "operation 1 has ended: done")
        simulation.operate(5, .merge(ShardID(1)))
        simulation.run(for: .seconds(3))
        simulation.operate(6, .reverse(OperationID(2)))
        #expect(Base.failure(simulation, 6).contains("to undo: kvctl split t --at m --to none"))
        simulation.operate(7, .split(SplitRequest(table: "t", at: Bytes("c".utf8), to: nil)))
        simulation.run(for: .seconds(1))
        simulation.operate(8, .reverse(OperationID(3)))
        #expect(
            Base.failure(simulation, 8)
                == "operation 3 moved nothing; join the halves again with: kvctl merge 1")
        simulation.run(for: .seconds(1))
        let refused = simulation.store.durable.decisions.filter { $0.text.hasPrefix("refused") }
        #expect(refused.count == 5)
        ControllerSimulationTests.expectConverged(simulation, "refusals")
    }

    @Test func cutsWhereTheLoadIsHalved() throws {
        let simulation = Base.cluster(seed: 22)
        let half = Bytes("e".utf8)
        let middle = Bytes("g".utf8)
        simulation.sizes[ShardID(1)] = ShardReport(
            shard: ShardID(1), epoch: Epoch(1), bytes: 1_000, records: 10, middle: middle)
        simulation.run(for: .seconds(1))
        let request = SplitRequest(table: "t", to: .any)
        let idle = try #require(
            try simulation.controller?.plan(split: request, now: simulation.now))
        #expect(idle.work.cut == middle && idle.movesUpper && idle.bytes == 500)
        #expect(idle.grounds == "the key g halves 1000 B")
        simulation.loads[GroupID(1)] = LoadReport(
            groups: [GroupLoad(group: GroupID(1), reads: 900, writes: 100)],
            shards: [
                ShardLoad(
                    shard: ShardID(1), epoch: Epoch(1), reads: 900, writes: 100, median: half)
            ])
        simulation.run(for: .seconds(1))
        let busy = try #require(
            try simulation.controller?.plan(split: request, now: simulation.now))
        // The lower half has less to copy.
        #expect(busy.work.cut == half && !busy.movesUpper && busy.work.moving == ShardID(1))
        #expect(busy.grounds == "the key e halves 1000 requests/s")
        #expect(busy.groupsBefore.map(\.operations) == [1_000, 0])
        #expect(busy.groupsAfter.map(\.operations) == [500, 500])
        #expect(busy.groupsAfter.map(\.shards) == [1, 2])
        // A group that is busier than this one is no relief; without spares none is formed either.
        simulation.loads[GroupID(2)] = LoadReport(
            groups: [GroupLoad(group: GroupID(2), reads: 5_000, writes: 0)], shards: [])
        for index in simulation.nodes.indices { simulation.nodes[index].freeBytes = 1 << 20 }
        simulation.run(for: .seconds(1))
        let alone = try #require(
            try simulation.controller?.plan(split: request, now: simulation.now))
        #expect(!alone.moves && alone.formsOn.isEmpty)
        #expect(alone.grounds.contains("both halves stay in group 1: no other group can take it"))
        #expect(alone.grounds.contains("1.0 MiB free, 256.0 MiB needed"))
        let refused = message {
            _ = try simulation.controller?.plan(
                moveOf: ShardID(1), to: .any, now: simulation.now)
        }
        #expect(refused.contains("no other group can take it"))
    }

    @Test func keepsSparesForRepairs() throws {
        let simulation = Base.cluster(seed: 23, Base.options(nodes: 3, spares: 2))
        for index in 0..<3 { simulation.nodes[index].freeBytes = 1 << 20 }
        for index in 3..<5 { simulation.nodes[index].freeBytes = 1 << 40 }
        simulation.run(for: .seconds(1))
        let refused = message {
            _ = try simulation.controller?.plan(
                moveOf: ShardID(1), to: .new, now: simulation.now)
        }
        #expect(
            refused
                == "a new group of 3 replicas needs 3 live nodes with 256.0 MiB free, 1 there (1 of 2 "
                + "live spares are kept for repairs); add a node")
    }
}
