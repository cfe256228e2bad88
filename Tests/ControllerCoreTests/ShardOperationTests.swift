// Split, move and merge against simulated nodes whose groups keep their shards as real ones do.

import KVBase
import NodeCore
import ShardCore
import Testing

@testable import ControllerCore

@Suite struct ShardOperationTests {
    static func options(nodes: Int = 3, spares: Int = 0) -> ClusterSimulation.Options {
        var options = ClusterSimulation.Options()
        options.nodes = nodes
        options.spares = spares
        return options
    }

    /// Two groups and table `t` with the boundary `m`: shard 1 in group 1, shard 2 in group 2.
    static func cluster(
        seed: UInt64, _ options: ClusterSimulation.Options = options()
    ) -> ClusterSimulation {
        let simulation = ClusterSimulation(seed: seed, options)
        simulation.run(for: .seconds(3))
        simulation.request(1_000, ControllerSimulationTests.create("t", splits: ["m"]))
        simulation.run(for: .milliseconds(500))
        return simulation
    }

    static func steps(_ simulation: ClusterSimulation) -> [OperationRecord.Step] {
        simulation.store.durable.operations.map(\.step)
    }

    static func shards(_ simulation: ClusterSimulation) -> [Shard] {
        simulation.store.durable.shards
    }

    static func failure(_ simulation: ClusterSimulation, _ number: UInt64) -> String {
        switch simulation.operationAnswers[RequestID(number)] {
        case .failure(let error): error.message
        case .success(let id): "operation \(id)"
        case nil: "no answer"
        }
    }

    @Test func splitsAndMovesAHalf() throws {
        let simulation = Self.cluster(seed: 1)
        simulation.operate(
            1, .split(SplitRequest(table: "t", at: Bytes("f".utf8), to: .group(GroupID(2)))))
        simulation.run(for: .seconds(2))
        #expect(Self.failure(simulation, 1) == "operation 1")
        #expect(Self.steps(simulation) == [.done], "\(simulation.log.suffix(40))")
        let shards = Self.shards(simulation)
        #expect(shards.map(\.group) == [GroupID(1), GroupID(2), GroupID(2)])
        #expect(shards.map(\.epoch) == [Epoch(2), Epoch(1), Epoch(4)])
        ControllerSimulationTests.expectConverged(simulation, "split")
    }

    @Test func movesThereAndBack() throws {
        let simulation = Self.cluster(seed: 2)
        simulation.operate(1, .move(ShardID(1), to: .any))
        simulation.run(for: .seconds(2))
        #expect(Self.steps(simulation) == [.done], "\(simulation.log.suffix(40))")
        #expect(Self.shards(simulation).map(\.group) == [GroupID(2), GroupID(2)])
        simulation.operate(2, .reverse(OperationID(1)))
        simulation.run(for: .seconds(2))
        #expect(Self.steps(simulation) == [.done, .done])
        #expect(Self.shards(simulation).map(\.group) == [GroupID(1), GroupID(2)])
        ControllerSimulationTests.expectConverged(simulation, "move")
    }

    @Test func mergesNeighboursOfTwoGroups() throws {
        let simulation = Self.cluster(seed: 3)
        simulation.operate(1, .merge(ShardID(1)))
        simulation.run(for: .seconds(2))
        #expect(Self.steps(simulation) == [.done], "\(simulation.log.suffix(40))")
        #expect(Self.shards(simulation).map(\.range) == [.all])
        ControllerSimulationTests.expectConverged(simulation, "merge")
    }

    @Test func formsAGroup() throws {
        let simulation = Self.cluster(seed: 4, Self.options(nodes: 3, spares: 4))
        simulation.operate(1, .move(ShardID(1), to: .new))
        simulation.run(for: .seconds(4))
        #expect(Self.steps(simulation) == [.done], "\(simulation.log.suffix(40))")
        #expect(Self.shards(simulation).first?.group == GroupID(3))
        // One of the four spares stays in the pool.
        #expect(simulation.store.durable.nodes.count(where: \.isSpare) == 1)
        ControllerSimulationTests.expectConverged(simulation, "new group")
    }

    @Test func waitsForItsTurn() {
        let simulation = ClusterSimulation(seed: 5, Self.options())
        simulation.run(for: .seconds(3))
        simulation.request(
            1_000, ControllerSimulationTests.create("t", splits: ["c", "f", "m"]))
        simulation.run(for: .milliseconds(500))
        simulation.holdsCopies = true
        let own = Self.shards(simulation).filter { $0.group == GroupID(1) }
        #expect(own.count == 2)
        for (number, shard) in own.enumerated() {
            simulation.operate(UInt64(number + 1), .move(shard.id, to: .group(GroupID(2))))
        }
        simulation.run(for: .seconds(1))
        #expect(Self.steps(simulation) == [.copying, .forming])
        let waiting = simulation.controller?.operations.last?.note
        #expect(waiting == "group 1 takes part in operation 1")
        simulation.holdsCopies = false
        simulation.run(for: .seconds(3))
        #expect(Self.steps(simulation) == [.done, .done])
        ControllerSimulationTests.expectConverged(simulation, "turns")
    }

    @Test(arguments: [
        // Every node has two disks, and a replica of each group.
        ("moves.node.max", "1", "takes part in 1 move, at most 1 at a time"),
        ("moves.node.max", "2", "takes part in 2 moves, at most 2 at a time"),
        ("moves.max", "2", "2 shards move already, at most 2 at a time"),
    ])
    func movesOfOneNodeTakeTurns(setting: String, most: String, note: String) {
        let simulation = Self.threeMoves(seed: 15, (setting, most))
        let copying = Int(most) ?? 0
        #expect(
            Self.steps(simulation) == (0..<3).map { $0 < copying ? .copying : .forming })
        let waiting = simulation.controller?.operations.last?.note ?? ""
        #expect(waiting.hasSuffix(note), "\(waiting)")
        simulation.holdsCopies = false
        simulation.run(for: .seconds(5))
        #expect(Self.steps(simulation) == [.done, .done, .done])
        ControllerSimulationTests.expectConverged(simulation, "turns of nodes")
    }

    @Test func movesOfOneDiskTakeTurns() {
        let simulation = Self.threeMoves(seed: 16, ("moves.disk.max", "1"))
        let operations = simulation.store.durable.operations
        let begun = operations.filter { $0.step == .copying }
        #expect(!begun.isEmpty && begun.count < 3)
        let groups = simulation.store.durable.groups.map(\.group)
        let written = begun.compactMap(\.work).flatMap { work in
            (groups.first { $0.id == work.target }?.placements ?? [])
                .map { "\($0.node) \($0.disk)" }
        }
        #expect(Set(written).count == written.count)
        let waiting = simulation.controller?.operations.last?.note ?? ""
        #expect(waiting.contains("takes part in 1 move on disk"), "\(waiting)")
        simulation.holdsCopies = false
        simulation.run(for: .seconds(5))
        #expect(Self.steps(simulation) == [.done, .done, .done])
        ControllerSimulationTests.expectConverged(simulation, "turns of disks")
    }

    /// Six groups on three nodes, and as many moves as they have pairs, under a limit.
    private static func threeMoves(
        seed: UInt64, _ limit: (String, String)
    ) -> ClusterSimulation {
        var options = options()
        options.settings.groupsInitial = 6
        let simulation = ClusterSimulation(seed: seed, options)
        simulation.run(for: .seconds(3))
        simulation.request(
            1_000, ControllerSimulationTests.create("t", splits: ["c", "f", "i", "m", "p"]))
        simulation.operate(2_000, .configure(name: limit.0, value: limit.1))
        simulation.run(for: .milliseconds(500))
        simulation.holdsCopies = true
        for (number, group) in ([1, 3, 5] as [UInt32]).enumerated() {
            let shard = shards(simulation).first { $0.group == GroupID(group) }
            simulation.operate(
                UInt64(number + 1),
                .move(shard?.id ?? .none, to: .group(GroupID(group + 1))))
        }
        simulation.run(for: .seconds(1))
        return simulation
    }

    @Test func repairGoesOnDuringAMove() {
        var options = Self.options(spares: 1)
        options.settings.repairAfter = .seconds(1)
        options.settings.nodeDownAfter = .seconds(2)
        let simulation = Self.cluster(seed: 6, options)
        simulation.holdsCopies = true
        simulation.operate(1, .move(ShardID(1), to: .any))
        simulation.run(for: .seconds(1))
        simulation.crash(node: 1)
        simulation.run(for: .seconds(8))
        let operations = simulation.store.durable.operations
        #expect(operations.first?.step == .copying)
        #expect(operations.count { $0.kind == .replaceReplica && $0.step == .done } == 2)
        simulation.holdsCopies = false
        simulation.run(for: .seconds(4))
        #expect(Self.steps(simulation).first == .done)
        simulation.start(node: 1)
        simulation.run(for: .seconds(4))
        ControllerSimulationTests.expectConverged(simulation, "repair")
    }

    @Test func stopsWhereReplicasDiffer() throws {
        let simulation = Self.cluster(seed: 7)
        let target = try #require(
            simulation.store.durable.groups.first { $0.group.id == GroupID(2) })
        let bad = target.group.placements[1]
        simulation.corruptReplica = bad.replica
        simulation.operate(1, .move(ShardID(1), to: .any))
        simulation.run(for: .seconds(20))
        let record = try #require(simulation.store.durable.operations.first)
        #expect(record.step == .verifying && record.isPaused)
        #expect(record.outcome.contains("replica \(bad.replica) on node-"))
        #expect(record.outcome.contains("digest 000000000000000d"))
        #expect(simulation.states[GroupID(1)]?.state.shards[ShardID(1)] != nil)
        let why = simulation.store.durable.decisions.filter { $0.shard == ShardID(1) }.map(\.text)
        #expect(why.contains { $0.contains("kvctl ops resume 1") })
        // It stays so over controllers.
        simulation.crashController()
        simulation.run(for: .seconds(5))
        #expect(Self.steps(simulation) == [.verifying])
        // Resumed without a cure it stops again.
        simulation.operate(2, .resume(OperationID(1)))
        simulation.run(for: .seconds(2))
        #expect(simulation.store.durable.operations.first?.isPaused == true)
        simulation.corruptReplica = nil
        simulation.operate(3, .resume(OperationID(1)))
        simulation.run(for: .seconds(2))
        #expect(Self.steps(simulation) == [.done])
        ControllerSimulationTests.expectConverged(simulation, "differ")
    }

    @Test func goesBackWhereReplicasDiffer() throws {
        let simulation = Self.cluster(seed: 8)
        let target = try #require(
            simulation.store.durable.groups.first { $0.group.id == GroupID(2) })
        simulation.corruptReplica = target.group.placements[1].replica
        simulation.operate(1, .move(ShardID(1), to: .any))
        simulation.run(for: .seconds(5))
        simulation.operate(2, .cancel(OperationID(1)))
        simulation.run(for: .seconds(3))
        #expect(Self.steps(simulation) == [.cancelled])
        #expect(Self.shards(simulation).first?.group == GroupID(1))
        ControllerSimulationTests.expectConverged(simulation, "back")
    }

    /// Nodes that tell nothing of copies and digests: nothing is finished without proof.
    @Test func neverFinishesUnverified() {
        let simulation = Self.cluster(seed: 9)
        simulation.isSilentAboutMoves = true
        simulation.holdsCopies = true
        simulation.operate(1, .move(ShardID(1), to: .any))
        simulation.run(for: .seconds(10))
        #expect([.copying, .verifying].contains(Self.steps(simulation)[0]))
        simulation.holdsCopies = false
        simulation.run(for: .seconds(20))
        #expect(Self.steps(simulation) == [.verifying])
        #expect(simulation.controller?.operations.last?.note == "no digest has come yet")
        simulation.isSilentAboutMoves = false
        simulation.run(for: .seconds(40))
        #expect(Self.steps(simulation) == [.done])
        ControllerSimulationTests.expectConverged(simulation, "silent")
    }

    @Test func aDeadVoterDoesNotHoldUpTheProof() {
        let simulation = Self.cluster(seed: 10)
        simulation.holdsCopies = true
        simulation.operate(1, .move(ShardID(1), to: .any))
        simulation.run(for: .seconds(1))
        for index in simulation.nodes.indices
        where simulation.nodes[index].leads.isEmpty || index == 2 {
            simulation.crash(node: index)
            break
        }
        simulation.holdsCopies = false
        simulation.run(for: .seconds(6))
        #expect(Self.steps(simulation) == [.done])
        for index in simulation.nodes.indices { simulation.start(node: index) }
        simulation.run(for: .seconds(4))
        ControllerSimulationTests.expectConverged(simulation, "dead voter")
    }

    @Test func aPausedCopyIsHeld() {
        let simulation = Self.cluster(seed: 11)
        simulation.holdsCopies = true
        simulation.operate(1, .move(ShardID(1), to: .any))
        simulation.run(for: .seconds(1))
        simulation.operate(2, .pause(OperationID(1)))
        simulation.run(for: .milliseconds(200))
        simulation.holdsCopies = false
        simulation.run(for: .seconds(100))
        #expect(Self.steps(simulation) == [.copying])
        #expect(simulation.holdCount > 90)
        simulation.operate(3, .resume(OperationID(1)))
        simulation.run(for: .seconds(6))
        #expect(Self.steps(simulation) == [.done])
        ControllerSimulationTests.expectConverged(simulation, "held")
    }

    @Test func aTableIsNotDroppedUnderAMove() {
        let simulation = Self.cluster(seed: 12)
        simulation.holdsCopies = true
        simulation.operate(1, .move(ShardID(1), to: .any))
        simulation.run(for: .seconds(1))
        simulation.request(1, .drop(name: "t"))
        #expect(
            simulation.answers[RequestID(1)]?.first??.message
                == "operation 1 (move, copying) works on table t; wait for it, or stop it with: "
                + "kvctl ops cancel 1")
        simulation.operate(2, .cancel(OperationID(1)))
        simulation.holdsCopies = false
        simulation.run(for: .seconds(3))
        simulation.request(2, .drop(name: "t"))
        simulation.operate(3, .move(ShardID(1), to: .any))
        simulation.run(for: .seconds(1))
        #expect(simulation.answers[RequestID(2)] == [nil])
        #expect(Self.failure(simulation, 3) == "table t is being dropped")
        #expect(Self.shards(simulation).isEmpty)
        ControllerSimulationTests.expectConverged(simulation, "drop")
    }

    // MARK: Proposals

    private func propose(_ simulation: ClusterSimulation, _ shard: ShardID) throws {
        var effects = ControllerEffects()
        let plan = try #require(
            try simulation.controller?.plan(moveOf: shard, to: .any, now: simulation.now))
        simulation.controller?.start(
            plan, origin: "another rule", reason: "a test", isProposal: true, now: simulation.now,
            into: &effects)
        simulation.take(effects)
    }

    @Test func proposalsWaitUntilTheyAreApplied() throws {
        let simulation = Self.cluster(seed: 13)
        try propose(simulation, ShardID(1))
        simulation.run(for: .seconds(3))
        #expect(Self.steps(simulation) == [.proposed])
        #expect(simulation.controller?.operation(onShard: ShardID(1)) == nil)
        // A later one takes its place; others are not hindered.
        try propose(simulation, ShardID(1))
        try propose(simulation, ShardID(2))
        simulation.run(for: .seconds(1))
        #expect(Self.steps(simulation) == [.cancelled, .proposed, .proposed])
        simulation.operate(1, .pause(OperationID(2)))
        #expect(Self.failure(simulation, 1).contains("start it with kvctl apply 2"))
        #expect(
            try simulation.controller?.proposed(OperationID(2))
                == .move(ShardID(1), to: .group(GroupID(2))))
        simulation.operate(2, .apply(OperationID(2)))
        simulation.run(for: .seconds(3))
        #expect(Self.steps(simulation) == [.cancelled, .done, .proposed])
        #expect(Self.shards(simulation).map(\.group) == [GroupID(2), GroupID(2)])
        simulation.operate(3, .apply(OperationID(2)))
        #expect(Self.failure(simulation, 3).contains("is done, not proposed"))
        #expect(throws: DatabaseError.self) {
            try simulation.controller?.proposed(OperationID(2))
        }
        simulation.operate(4, .cancel(OperationID(3)))
        simulation.run(for: .seconds(1))
        #expect(Self.steps(simulation) == [.cancelled, .done, .cancelled])
        ControllerSimulationTests.expectConverged(simulation, "proposals")
    }

    @Test func aProposalIsRefusedWhenTheWorldMoved() throws {
        let simulation = Self.cluster(seed: 14)
        try propose(simulation, ShardID(1))
        simulation.operate(1, .split(SplitRequest(table: "t", at: Bytes("f".utf8), to: nil)))
        simulation.run(for: .seconds(1))
        #expect(Self.steps(simulation) == [.proposed, .done])
        #expect(throws: DatabaseError.self) {
            try simulation.controller?.proposed(OperationID(1))
        }
        simulation.operate(2, .apply(OperationID(1)))
        simulation.run(for: .seconds(1))
        #expect(
            Self.failure(simulation, 2)
                == "the world moved: shard 1 has epoch 2, the plan is for epoch 1")
        #expect(Self.steps(simulation) == [.failed, .done])
        ControllerSimulationTests.expectConverged(simulation, "world moved")
    }
}
