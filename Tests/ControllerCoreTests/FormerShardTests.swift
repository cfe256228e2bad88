// What a move leaves in the group that the shard came from: kept for a time, deleted with proof.

import KVBase
import NodeCore
import ShardCore
import Testing

@testable import ControllerCore

@Suite struct FormerShardTests {
    private typealias Base = ShardOperationTests

    private static func cluster(
        seed: UInt64, keeps: Nanoseconds, groups: Int = 2
    ) -> ClusterSimulation {
        var options = Base.options()
        options.settings.releaseAfter = keeps
        options.settings.groupsInitial = groups
        return Base.cluster(seed: seed, options)
    }

    /// What group 1 holds of shard 1.
    private static func held(_ simulation: ClusterSimulation) -> OwnedShard? {
        simulation.states[GroupID(1)]?.state.shards[ShardID(1)]
    }

    private static func decisions(_ simulation: ClusterSimulation) -> [String] {
        simulation.store.durable.decisions.map(\.text)
    }

    @Test func keepsTheCopyForItsTimeOverAChangeOfController() throws {
        let simulation = Self.cluster(seed: 1, keeps: .seconds(20))
        simulation.operate(1, .move(ShardID(1), to: .group(GroupID(2))))
        simulation.run(for: .seconds(2))
        #expect(Base.steps(simulation) == [.done], "\(simulation.log.suffix(40))")
        let former = try #require(simulation.store.durable.former.first)
        #expect(former.group == GroupID(1) && former.epoch == Epoch(3))
        #expect(
            simulation.store.durable.operations.last?.outcome.hasSuffix(
                "; group 1 keeps its copy for 20s") == true)
        simulation.run(for: .seconds(8))
        simulation.crashController()
        simulation.run(for: .seconds(8))
        guard case .fenced = Self.held(simulation)?.phase else {
            Issue.record("gone too early: \(simulation.log.suffix(40))")
            return
        }
        // The time counts from the end of the move, whoever acts.
        simulation.run(for: .seconds(6))
        #expect(Self.held(simulation) == nil)
        #expect(
            Self.decisions(simulation).contains(
                "the former copy of shard 1 in group 1 is deleted: 3 replicas of group 2 agree on "
                    + "100 records of shard 1"), "\(Self.decisions(simulation))")
        ControllerSimulationTests.expectConverged(simulation, "kept")
    }

    @Test func theWayBackDoesNotWaitForTheTime() {
        let simulation = Self.cluster(seed: 2, keeps: .seconds(3_600))
        simulation.operate(1, .move(ShardID(1), to: .any))
        simulation.run(for: .seconds(2))
        simulation.operate(2, .reverse(OperationID(1)))
        simulation.run(for: .seconds(3))
        #expect(Base.steps(simulation) == [.done, .done], "\(simulation.log.suffix(40))")
        #expect(Self.held(simulation)?.phase == .owned)
        #expect(simulation.store.durable.former.map(\.group) == [GroupID(2)])
        simulation.operate(3, .configure(name: "release.after", value: "0s"))
        simulation.run(for: .seconds(3))
        ControllerSimulationTests.expectConverged(simulation, "back")
    }

    /// To another group, in pieces, joined again: the group that had it first is asked nothing of it.
    @Test func theShardMayBeCutMovedAndJoinedMeanwhile() {
        let simulation = Self.cluster(seed: 3, keeps: .seconds(30), groups: 3)
        let others: [OperationRequest] = [
            .move(ShardID(1), to: .group(GroupID(2))),
            .split(SplitRequest(table: "t", at: Bytes("f".utf8), to: .group(GroupID(3)))),
            .move(ShardID(1), to: .group(GroupID(3))),
            .merge(ShardID(1)),
        ]
        for (number, request) in others.enumerated() {
            simulation.operate(UInt64(number + 1), request)
            simulation.run(for: .seconds(3))
        }
        #expect(
            Base.steps(simulation) == [.done, .done, .done, .done], "\(simulation.log.suffix(40))")
        #expect(simulation.store.durable.former.count == 3)
        #expect(Self.held(simulation)?.shard.epoch == Epoch(1))
        // The whole comes back to where its parts may still lie.
        simulation.operate(9, .move(ShardID(1), to: .group(GroupID(1))))
        simulation.run(for: .seconds(3))
        #expect(Base.steps(simulation).last == .done)
        #expect(Self.held(simulation)?.phase == .owned)
        simulation.run(for: .seconds(40))
        ControllerSimulationTests.expectConverged(simulation, "meanwhile")
    }

    @Test func waitsWhileTheShardMovesOn() {
        let simulation = Self.cluster(seed: 4, keeps: .seconds(5), groups: 3)
        simulation.operate(1, .move(ShardID(1), to: .group(GroupID(2))))
        simulation.run(for: .seconds(2))
        simulation.holdsCopies = true
        simulation.operate(2, .move(ShardID(1), to: .group(GroupID(3))))
        simulation.run(for: .seconds(30))
        #expect(Base.steps(simulation) == [.done, .copying])
        #expect(
            simulation.controller?.former[OperationID(1)]?.note == "operation 2 works on shard 1")
        #expect(Self.held(simulation) != nil)
        simulation.holdsCopies = false
        simulation.run(for: .seconds(15))
        ControllerSimulationTests.expectConverged(simulation, "on")
    }

    @Test func keepsTheCopyWhileReplicasOfTheOwnerDiffer() throws {
        let simulation = Self.cluster(seed: 5, keeps: .seconds(3))
        simulation.operate(1, .move(ShardID(1), to: .any))
        simulation.run(for: .seconds(2))
        let target = try #require(
            simulation.store.durable.groups.first { $0.group.id == GroupID(2) })
        simulation.corruptReplica = target.group.placements[1].replica
        simulation.run(for: .seconds(30))
        let status = try #require(simulation.controller?.former[OperationID(1)])
        #expect(status.isDisputed, "\(status)")
        #expect(status.note.contains("different records of shard 1"))
        #expect(Self.held(simulation) != nil)
        #expect(
            Self.decisions(simulation).count {
                $0.hasPrefix("group 1 keeps its former copy of shard 1: replicas of group 2")
            } == 1)
        simulation.corruptReplica = nil
        simulation.run(for: .seconds(65))
        ControllerSimulationTests.expectConverged(simulation, "disputed")
    }

    /// A follower of the owner that is down is not waited for, a majority is.
    @Test func keepsTheCopyWhileTheOwnerCannotProve() {
        let simulation = Self.cluster(seed: 6, keeps: .seconds(5))
        simulation.operate(1, .move(ShardID(1), to: .any))
        simulation.run(for: .seconds(2))
        simulation.crash(node: 1)
        simulation.crash(node: 2)
        simulation.run(for: .seconds(20))
        #expect(Self.held(simulation) != nil)
        simulation.start(node: 1)
        simulation.run(for: .seconds(15))
        #expect(Self.held(simulation) == nil, "\(simulation.log.suffix(40))")
        simulation.start(node: 2)
        simulation.run(for: .seconds(5))
        ControllerSimulationTests.expectConverged(simulation, "majority")
    }

    @Test func aDroppedTableNeedsNoProof() {
        let simulation = Self.cluster(seed: 7, keeps: .seconds(10))
        simulation.operate(1, .move(ShardID(1), to: .any))
        simulation.run(for: .seconds(2))
        simulation.request(2, .drop(name: "t"))
        simulation.run(for: .seconds(3))
        #expect(simulation.store.durable.tables.isEmpty)
        #expect(Self.held(simulation) != nil)
        simulation.run(for: .seconds(8))
        ControllerSimulationTests.expectConverged(simulation, "dropped")
    }

    /// There, back before the time has passed, there again: with crashes after each transaction.
    @Test func resumesAfterACrashAtEveryStoredStep() {
        func cluster() -> ClusterSimulation { Self.cluster(seed: 8, keeps: .seconds(3_600)) }
        EveryMoment.crashController(storesMin: 13, in: cluster) { simulation in
            simulation.operate(1, .move(ShardID(1), to: .group(GroupID(2))))
            simulation.run(for: .seconds(4))
            simulation.operate(2, .move(ShardID(1), to: .group(GroupID(1))))
            simulation.run(for: .seconds(4))
            simulation.operate(3, .configure(name: "release.after", value: "1s"))
            simulation.run(for: .seconds(2))
        } checkModel: { model in
            #expect(Base.steps(model) == [.done, .done])
        } check: { simulation, comment in
            simulation.operate(4, .configure(name: "release.after", value: "0s"))
            simulation.run(for: .seconds(8))
            #expect(Base.steps(simulation).allSatisfy { $0 == .done }, comment)
        }
    }
}
