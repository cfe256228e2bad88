// Weights, the spare pool, nodes that are forgotten, and maintenance.

import KVBase
import ShardCore
import Testing

@testable import ControllerCore

@Suite struct NodeChangeTests {
    private func options(nodes: Int = 3, spares: Int = 1) -> ClusterSimulation.Options {
        var options = ClusterSimulation.Options()
        options.nodes = nodes
        options.spares = spares
        return options
    }

    private func succeeded(_ simulation: ClusterSimulation, _ number: UInt64) -> Bool {
        if case .success = simulation.operationAnswers[RequestID(number)] { true } else { false }
    }

    private func placed(_ simulation: ClusterSimulation, on index: Int) -> Int {
        let id = simulation.nodes[index].id
        return simulation.store.durable.groups.count { record in
            record.group.placements.contains { $0.node == id }
        }
    }

    private func status(_ simulation: ClusterSimulation, _ index: Int) -> NodeStatus? {
        simulation.controller?.nodes[simulation.nodes[index].id]
    }

    @Test func weightsSteerPlacement() {
        var candidates = (1...4).map { number in
            ReplicaPlanner.Candidate(
                node: NodeID(UInt32(number)), zone: "", weight: number == 1 ? 30 : 10,
                replicasPerDisk: [0])
        }
        for _ in 0..<20 { _ = ReplicaPlanner.place(count: 3, on: &candidates) }
        // Every group has a replica on the heavy node; the rest is even.
        #expect(candidates.map(\.replicas) == [20, 14, 13, 13])
    }

    @Test func aNodeOfWeightZeroTakesNothing() {
        let simulation = ClusterSimulation(seed: 31, options(spares: 2))
        simulation.run(for: .seconds(4))
        simulation.operate(1, .setWeight(node: "node-4", weight: 0))
        simulation.operate(2, .setWeight(node: "node-5", weight: 101))
        #expect(simulation.refusal(2).contains("from 0 to 100"))
        simulation.run(for: .seconds(1))
        simulation.crashController()
        simulation.run(for: .seconds(4))
        #expect(status(simulation, 3)?.weight == 0)
        simulation.operate(3, .replace(node: "node-1", group: nil, with: nil))
        simulation.run(for: .seconds(8))
        #expect(placed(simulation, on: 3) == 0)
        #expect(placed(simulation, on: 4) == 2)
        simulation.operate(4, .setWeight(node: "node-4", weight: 10))
        simulation.run(for: .seconds(1))
        #expect(simulation.store.durable.weights.isEmpty)
        ControllerSimulationTests.expectConverged(simulation, "weights")
    }

    @Test func anEmptyNodeBecomesASpareAgain() {
        let simulation = ClusterSimulation(seed: 32, options())
        simulation.run(for: .seconds(4))
        simulation.operate(1, .setSpare(node: "node-1", true))
        #expect(simulation.refusal(1).contains("holds 2 replicas"))
        #expect(simulation.refusal(1).contains("kvctl drain node-1"))
        simulation.operate(2, .setSpare(node: "node-4", true))
        #expect(simulation.refusal(2).contains("is a spare already"))
        simulation.operate(3, .replace(node: "node-1", group: nil, with: nil))
        simulation.run(for: .milliseconds(20))
        simulation.operate(4, .setSpare(node: "node-1", true))
        #expect(simulation.refusal(4).contains("holds 2 replicas"))
        simulation.run(for: .seconds(8))
        #expect(status(simulation, 0)?.isHeld == true)
        simulation.operate(5, .setSpare(node: "node-1", true))
        simulation.run(for: .seconds(1))
        #expect(succeeded(simulation, 5))
        #expect(simulation.store.durable.held == [])
        #expect(status(simulation, 0)?.stateName == "spare")
        simulation.operate(6, .replace(node: "node-2", group: nil, with: nil))
        simulation.run(for: .seconds(8))
        #expect(placed(simulation, on: 0) == 2)
        simulation.operate(7, .setSpare(node: "node-2", true))
        simulation.run(for: .seconds(1))
        simulation.operate(8, .setSpare(node: "node-2", false))
        simulation.run(for: .seconds(1))
        #expect(status(simulation, 1)?.isEligible == true)
        ControllerSimulationTests.expectConverged(simulation, "spare again")
    }

    @Test func forgetsADeadEmptyNode() {
        let simulation = ClusterSimulation(seed: 33, options())
        simulation.run(for: .seconds(4))
        simulation.operate(1, .removeNode("node-2"))
        #expect(simulation.refusal(1).contains("holds 2 replicas and cannot be removed"))
        simulation.operate(2, .removeNode("node-4"))
        #expect(simulation.refusal(2).contains("still runs; stop it first"))
        simulation.crash(node: 1)
        simulation.run(for: .seconds(20))
        #expect(placed(simulation, on: 1) == 0)
        let id = simulation.nodes[1].id
        simulation.operate(3, .removeNode("node-2"))
        simulation.run(for: .seconds(1))
        #expect(succeeded(simulation, 3))
        #expect(simulation.controller?.nodes[id] == nil)
        #expect(!simulation.store.durable.nodes.contains { $0.id == id })
        #expect(!simulation.store.durable.retired.contains { $0.node == id })
        #expect(simulation.follower.nodes.count == 3)
        // It comes back and is fenced, until it is wiped.
        simulation.start(node: 1)
        simulation.run(for: .seconds(3))
        #expect(simulation.controller?.nodes[id] == nil)
        simulation.wipe(node: 1)
        simulation.start(node: 1)
        simulation.run(for: .seconds(3))
        #expect(simulation.nodes[1].id != id && simulation.nodes[1].id != .none)
        #expect(simulation.violations == [])
    }

    @Test func repairLeavesANodeInMaintenanceAlone() {
        let simulation = ClusterSimulation(seed: 34, options())
        simulation.run(for: .seconds(4))
        simulation.operate(1, .maintenance(node: "node-1", for: .seconds(60)))
        simulation.run(for: .seconds(5))
        #expect(succeeded(simulation, 1))
        #expect(simulation.nodes[0].leads.isEmpty, "its leaders leave")
        #expect(status(simulation, 0)?.stateName == "maintenance")
        // The other two must stay.
        simulation.operate(2, .maintenance(node: "node-2", for: .seconds(60)))
        #expect(
            simulation.refusal(2).hasSuffix(
                "first end that of node-1 with kvctl node maintenance node-1 --end"))
        simulation.crash(node: 0)
        simulation.run(for: .seconds(10))
        simulation.crashController()
        simulation.run(for: .seconds(40))
        #expect(simulation.store.durable.operations.isEmpty)
        // The lease ends by itself, and the node is still away.
        simulation.run(for: .seconds(30))
        #expect(simulation.store.durable.maintenances.isEmpty)
        #expect(simulation.store.durable.operations.count { $0.step == .done } == 2)
        let why = simulation.store.durable.decisions.map(\.text)
        #expect(why.contains("the maintenance of node-1 has ended: its time is over"))
    }

    @Test func maintenanceEndsOnDemand() {
        let simulation = ClusterSimulation(seed: 35, options())
        simulation.run(for: .seconds(4))
        simulation.operate(1, .endMaintenance(node: "node-1"))
        #expect(simulation.refusal(1) == "node-1 is not in maintenance")
        simulation.operate(2, .maintenance(node: "node-1", for: .milliseconds(5)))
        #expect(simulation.refusal(2).contains("from 1s to 7d"))
        simulation.operate(3, .maintenance(node: "node-1", for: .seconds(3_600)))
        simulation.run(for: .seconds(30))
        #expect(simulation.nodes[0].leads.isEmpty, "the balance of leaders does not send any back")
        simulation.operate(4, .endMaintenance(node: "node-1"))
        simulation.run(for: .seconds(1))
        #expect(succeeded(simulation, 4))
        #expect(simulation.store.durable.maintenances.isEmpty)
        #expect(status(simulation, 0)?.isInMaintenance == false)
        ControllerSimulationTests.expectConverged(simulation, "maintenance")
    }
}
