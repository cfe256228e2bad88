// Split, move and merge against simulated nodes whose groups keep their shards as real ones do.

import KVBase
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
}
