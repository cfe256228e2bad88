// Operations against simulated nodes: with crashes at every stored step, cancellations at every
// moment, and nodes that die on the way.

import KVBase
import ShardCore
import Testing

@testable import ControllerCore

@Suite struct OperationTests {
    private func options(nodes: Int = 3, spares: Int = 1) -> ClusterSimulation.Options {
        var options = ClusterSimulation.Options()
        options.nodes = nodes
        options.spares = spares
        return options
    }

    private func placed(_ simulation: ClusterSimulation, on index: Int) -> [GroupID] {
        let id = simulation.nodes[index].id
        return simulation.store.durable.groups.map(\.group)
            .filter { $0.placements.contains { $0.node == id } }.map(\.id)
    }

    private func isSpare(_ simulation: ClusterSimulation, _ index: Int) -> Bool? {
        simulation.store.durable.nodes.first { $0.id == simulation.nodes[index].id }?.isSpare
    }

    @Test(arguments: ["node-1", "node-2", "node-3"])
    func replacesALiveNode(name: String) throws {
        let simulation = ClusterSimulation(seed: 1, options())
        simulation.run(for: .seconds(4))
        simulation.operate(1, .replace(node: name, group: nil, with: nil))
        simulation.run(for: .seconds(8))
        let answer = try #require(simulation.operationAnswers[RequestID(1)])
        let id = try answer.get()
        let operations = simulation.store.durable.operations
        #expect(operations.first { $0.id == id }?.step == .done)
        #expect(operations.count { $0.kind == .replaceReplica && $0.step == .done } == 2)
        let index = simulation.nodes.firstIndex { $0.name == name } ?? 0
        #expect(placed(simulation, on: index) == [])
        #expect(simulation.nodes[index].replicas.isEmpty)
        #expect(placed(simulation, on: 3).count == 2)
        #expect(isSpare(simulation, 3) == false)
        #expect(simulation.controller?.nodes[simulation.nodes[index].id]?.stateName == "draining")
        let decisions = simulation.store.durable.decisions
        #expect(decisions.contains { $0.operation == id && $0.text.contains("replaces \(name)") })
        ControllerSimulationTests.expectConverged(simulation, "\(name)")
    }

    @Test func resumesAReplaceAfterACrashAtEveryStoredStep() {
        func cluster() -> ClusterSimulation {
            let simulation = ClusterSimulation(seed: 2, options())
            simulation.run(for: .seconds(4))
            return simulation
        }
        EveryMoment.crashController(storesMin: 12, in: cluster) { simulation in
            simulation.operate(1, .replace(node: "node-2", group: nil, with: nil))
            simulation.run(for: .seconds(6))
        } check: { simulation, comment in
            simulation.run(for: .seconds(12))
            // The request itself may have been lost with the first transaction.
            let whole = simulation.store.durable.operations.first { $0.kind == .replaceNode }
            guard whole != nil else { return }
            #expect(placed(simulation, on: 1) == [], comment)
            #expect(placed(simulation, on: 3).count == 2, comment)
            #expect(whole?.step == .done, comment)
        }
    }

    /// Otherwise a controller that dies at the wrong moment takes back what it told, and the next one gives
    /// the number to something else.
    @Test func tellsOnlyOfWhatIsStored() throws {
        let simulation = ClusterSimulation(seed: 9, options())
        simulation.run(for: .seconds(4))
        simulation.operate(1, .replace(node: "node-2", group: nil, with: nil))
        var untold = 0
        for _ in 0..<30_000 {
            let controller = try #require(simulation.controller)
            let durable = simulation.store.durable
            #expect(controller.storedOperations.map(\.record) == durable.operations)
            #expect(Array(controller.storedDecisions) == durable.decisions)
            let isBehind =
                controller.operations.count > durable.operations.count
                || controller.decisions.count > durable.decisions.count
            if isBehind { untold += 1 }
            simulation.run(for: .microseconds(100))
        }
        #expect(untold > 5)
        #expect(simulation.store.durable.operations.contains { $0.step == .done })
    }

    @Test func aDiskTakesInOneReplicaAtATime() throws {
        let simulation = ClusterSimulation(seed: 12, options())
        simulation.run(for: .seconds(4))
        for (number, group) in [UInt64(1): GroupID(1), 2: GroupID(2)].sorted(by: { $0.key < $1.key }
        ) {
            simulation.operate(number, .replace(node: "node-2", group: group, with: "node-4"))
        }
        var notes: Set<String> = []
        for _ in 0..<400 {
            simulation.run(for: .milliseconds(20))
            let open = try #require(simulation.controller).openOperations
            notes.formUnion(open.map(\.note))
            let arriving = open.filter {
                [.adding, .catchingUp, .swapping].contains($0.record.step)
            }
            #expect(Set(arriving.map(\.record.new.disk)).count == arriving.count)
        }
        #expect(notes.contains("waits for operation 1, which brings a replica to the same disk"))
        #expect(simulation.store.durable.operations.map(\.step) == [.done, .done])
        #expect(placed(simulation, on: 3).count == 2)
        ControllerSimulationTests.expectConverged(simulation, "\(simulation.log.suffix(20))")
    }

    @Test func operatorsReplacementsAreBoundedTogether() throws {
        var options = options(nodes: 6, spares: 4)
        options.settings.replacementsMax = 1
        let simulation = ClusterSimulation(seed: 13, options)
        simulation.run(for: .seconds(4))
        for (index, group) in simulation.store.durable.groups.prefix(2).enumerated() {
            let node = try #require(
                simulation.nodes.first { $0.id == group.group.placements[0].node })
            simulation.operate(
                UInt64(index + 1),
                .replace(node: node.name, group: group.group.id, with: "node-\(7 + index)"))
        }
        for _ in 0..<400 {
            simulation.run(for: .milliseconds(20))
            let arriving = try #require(simulation.controller).openOperations.count {
                [.adding, .catchingUp, .swapping].contains($0.record.step)
            }
            #expect(arriving <= 1)
        }
        #expect(simulation.store.durable.operations.map(\.step) == [.done, .done])
    }

    @Test func cancelsAtEveryMoment() {
        let moments = Array(0..<40) + stride(from: UInt64(40), to: 1_500, by: 20)
        let seen = EveryMoment.cancel(at: moments, settling: .seconds(8)) { moment in
            let simulation = ClusterSimulation(seed: 3, options())
            simulation.run(for: .seconds(4))
            simulation.operate(
                1, .replace(node: "node-2", group: GroupID(1), with: "node-4"))
            simulation.run(for: .milliseconds(moment))
            return simulation
        } check: { simulation, operation, comment in
            let isDone = operation?.step == .done
            #expect(placed(simulation, on: 3) == (isDone ? [GroupID(1)] : []), comment)
            #expect(isSpare(simulation, 3) == !isDone, comment)
        }
        #expect(seen.ends == [.cancelled, .done])
        #expect(seen.from.isSuperset(of: [.creating, .adding, .catchingUp, .swapping, .done]))
    }

    @Test func aSpareThatDiesOnTheWayIsFollowedByAnother() {
        var steps: Set<OperationRecord.Step> = []
        for delay in Array(0..<30) + stride(from: UInt64(30), to: 1_200, by: 40) {
            let simulation = ClusterSimulation(seed: 4, options(spares: 3))
            simulation.run(for: .seconds(4))
            // The first spare is dead before, the second dies on the way.
            simulation.crash(node: 3)
            simulation.run(for: .seconds(1))
            simulation.operate(1, .replace(node: "node-2", group: GroupID(1), with: nil))
            simulation.run(for: .milliseconds(delay))
            guard let record = simulation.controller?.operations.last?.record else {
                Issue.record("no operation")
                return
            }
            steps.insert(record.step)
            guard let first = simulation.nodes.firstIndex(where: { $0.id == record.new.node })
            else { return }
            #expect(first == 4 || first == 5)
            let second = first == 4 ? 5 : 4
            simulation.crash(node: first)
            simulation.run(for: .seconds(30))
            let end = simulation.store.durable.operations.first { $0.id == record.id }
            let comment: Comment = "the spare died after \(delay) ms in step \(record.step)"
            // Swapped in before it died, it is repaired like any other member.
            #expect(end?.step == .done, comment)
            #expect(placed(simulation, on: second) == [GroupID(1)], comment)
            #expect(placed(simulation, on: first) == [], comment)
            let skipped = simulation.store.durable.decisions.contains {
                $0.operation == record.id && $0.text.contains("skipped node-4: suspect")
            }
            #expect(skipped, comment)
            simulation.start(node: 3)
            simulation.start(node: first)
            simulation.run(for: .seconds(5))
            ControllerSimulationTests.expectConverged(simulation, comment)
        }
        #expect(steps.isSuperset(of: [.creating, .adding, .catchingUp]))
    }

    @Test func repairsAfterANodeStaysDown() {
        let simulation = ClusterSimulation(seed: 5, options(spares: 2))
        simulation.run(for: .seconds(4))
        simulation.crash(node: 1)
        // Down after 5 s of silence, repaired 5 s later.
        simulation.run(for: .seconds(9))
        #expect(simulation.store.durable.operations.isEmpty)
        simulation.run(for: .seconds(8))
        let operations = simulation.store.durable.operations
        #expect(operations.count == 2)
        #expect(operations.allSatisfy { $0.step == .done && $0.origin == "repair" })
        // One spare stands in for one node.
        #expect(Set(operations.map(\.new.node)).count == 1)
        #expect(placed(simulation, on: 1) == [])
        #expect(simulation.nodes[1].replicas.count == 2)
        simulation.start(node: 1)
        simulation.run(for: .seconds(4))
        #expect(simulation.nodes[1].replicas.isEmpty)
        ControllerSimulationTests.expectConverged(simulation, "repair")
    }

    @Test func aNodeThatComesBackInTimeIsNotReplaced() {
        for delay in stride(from: UInt64(9_000), to: 12_000, by: 100) {
            let simulation = ClusterSimulation(seed: 6, options())
            simulation.run(for: .seconds(4))
            simulation.crash(node: 1)
            simulation.run(for: .milliseconds(delay))
            simulation.start(node: 1)
            simulation.run(for: .seconds(12))
            ControllerSimulationTests.expectConverged(simulation, "back after \(delay) ms")
        }
    }

    @Test func takesTheOneSpareThatIsFit() throws {
        let simulation = ClusterSimulation(seed: 11, options(nodes: 3, spares: 5))
        // Full, refusing, taking nothing in, dead, and fit.
        for index in simulation.nodes.indices { simulation.nodes[index].freeBytes = 1 << 36 }
        simulation.nodes[3].freeBytes = 1 << 20
        simulation.nodes[4].refusesReplicas = true
        simulation.nodes[5].isDeaf = true
        simulation.nodes[7].freeBytes = 1 << 35
        simulation.run(for: .seconds(4))
        simulation.crash(node: 6)
        simulation.run(for: .seconds(1))
        simulation.operate(1, .replace(node: "node-1", group: GroupID(1), with: nil))
        simulation.run(for: .seconds(40))
        let record = try #require(simulation.store.durable.operations.first)
        #expect(record.step == .done)
        #expect(placed(simulation, on: 7) == [GroupID(1)])
        let why = simulation.store.durable.decisions.map(\.text).joined(separator: "\n")
        #expect(why.contains("node-4: 1.0 MiB free, 256.0 MiB needed"))
        #expect(why.contains("node-5 refused: disk /a failed"))
        #expect(why.contains("node-6 received nothing for 30 s"))
        #expect(why.contains("node-7: suspect, silent for 1 s"))
        for index in 3...6 { #expect(isSpare(simulation, index) == true) }
        simulation.start(node: 6)
        simulation.run(for: .seconds(3))
        ControllerSimulationTests.expectConverged(simulation, "spares")
    }

    @Test func failsWhenNoNodeIsFit() throws {
        let simulation = ClusterSimulation(seed: 12, options())
        simulation.run(for: .seconds(4))
        simulation.nodes[3].refusesReplicas = true
        simulation.operate(1, .replace(node: "node-1", group: GroupID(1), with: nil))
        simulation.run(for: .seconds(5))
        let record = try #require(simulation.store.durable.operations.first)
        #expect(record.step == .failed)
        #expect(record.outcome.contains("node-4: was tried before and failed"))
        #expect(isSpare(simulation, 3) == true)
        ControllerSimulationTests.expectConverged(simulation, "no spare")
    }

    @Test func repairsAReplicaWhoseDiskFailed() {
        let simulation = ClusterSimulation(seed: 13, options())
        for index in simulation.nodes.indices { simulation.nodes[index].freeBytes = 1 << 36 }
        simulation.run(for: .seconds(4))
        simulation.nodes[1].diskFailed = true
        simulation.nodes[1].leads = [:]
        simulation.run(for: .seconds(10))
        #expect(placed(simulation, on: 1) == [])
        #expect(placed(simulation, on: 3).count == 2)
        let why = simulation.store.durable.decisions.map(\.text)
        #expect(why.contains { $0.contains("its disk on node-2 failed") })
    }

    @Test func aWipedNodesPlacesAreFilled() {
        let simulation = ClusterSimulation(seed: 14, options())
        simulation.run(for: .seconds(4))
        simulation.wipe(node: 1)
        simulation.start(node: 1)
        simulation.run(for: .seconds(20))
        let placed = simulation.store.durable.groups.flatMap { $0.group.placements }.map(\.node)
        let names = simulation.store.durable.nodes.filter { placed.contains($0.id) }.map(\.name)
        #expect(names.allSatisfy { !$0.contains("~") }, "\(names)")
        ControllerSimulationTests.expectConverged(simulation, "wiped")
    }

    @Test func repairCanBeOff() {
        var options = options()
        options.settings.repairs = false
        let simulation = ClusterSimulation(seed: 7, options)
        simulation.run(for: .seconds(4))
        simulation.crash(node: 1)
        simulation.run(for: .seconds(30))
        #expect(simulation.store.durable.operations.isEmpty)
    }

    @Test func drainsToWhereverIsRoom() {
        var options = options(nodes: 5, spares: 1)
        options.settings.groupsInitial = 5
        let simulation = ClusterSimulation(seed: 8, options)
        simulation.run(for: .seconds(4))
        #expect(!placed(simulation, on: 0).isEmpty)
        simulation.operate(1, .drain(node: "node-1"))
        simulation.run(for: .seconds(15))
        #expect(placed(simulation, on: 0) == [])
        #expect(placed(simulation, on: 5) == [], "the spare is not needed")
        #expect(simulation.store.durable.held == [simulation.nodes[0].id])
        ControllerSimulationTests.expectConverged(simulation, "drain")
        simulation.operate(2, .endDrain(node: "node-1"))
        simulation.run(for: .seconds(1))
        #expect(simulation.store.durable.held == [])
    }

    @Test func transfersLeaders() throws {
        let simulation = ClusterSimulation(seed: 9, options())
        simulation.run(for: .seconds(4))
        let leader = try #require(simulation.leader(of: GroupID(1)))
        let other = try #require(simulation.nodes.first { $0.id != leader && !$0.isSpare })
        simulation.operate(1, .transfer(GroupID(1), node: other.name))
        simulation.run(for: .seconds(2))
        #expect(simulation.leader(of: GroupID(1)) == other.id)
        #expect(simulation.store.durable.operations.map(\.step) == [.done])
        ControllerSimulationTests.expectConverged(simulation, "transfer")
        simulation.operate(2, .transfer(GroupID(1), node: other.name))
        #expect(simulation.refusal(2) == "\(other.name) leads group 1 already")
        let third = try #require(
            simulation.nodes.first { $0.id != leader && $0.id != other.id && !$0.isSpare })
        simulation.operate(3, .maintenance(node: third.name, for: .seconds(60)))
        simulation.run(for: .seconds(1))
        simulation.operate(4, .transfer(GroupID(1), node: third.name))
        #expect(simulation.refusal(4).contains("kvctl node maintenance \(third.name) --end"))
    }

    @Test func aRemovedNodeIsNoAdvice() {
        let simulation = ClusterSimulation(seed: 12, options(nodes: 3, spares: 1))
        simulation.run(for: .seconds(4))
        simulation.operate(1, .replace(node: "node-1", group: GroupID(1), with: nil))
        simulation.operate(2, .replace(node: "node-1", group: GroupID(2), with: nil))
        simulation.run(for: .seconds(5))
        simulation.operate(3, .reverse(OperationID(1)))
        #expect(simulation.refusal(3).hasSuffix("--replica node-4 --with node-1"))
        simulation.crash(node: 0)
        simulation.run(for: .seconds(10))
        simulation.operate(4, .removeNode("node-1"))
        simulation.run(for: .seconds(1))
        simulation.operate(5, .reverse(OperationID(1)))
        #expect(simulation.refusal(5).contains("was removed"))
        #expect(simulation.refusal(5).hasSuffix("--replica node-4"))
    }

    @Test func refusalsSayWhatWouldWork() {
        let simulation = ClusterSimulation(seed: 10, options(nodes: 3, spares: 1))
        simulation.run(for: .seconds(4))
        simulation.operate(1, .replace(node: "node-9", group: nil, with: nil))
        #expect(simulation.refusal(1).contains("there are node-"))
        simulation.operate(2, .replace(node: "node-1", group: nil, with: "node-2"))
        #expect(simulation.refusal(2).contains("live spares: node-4"))
        simulation.operate(3, .replace(node: "node-4", group: nil, with: nil))
        #expect(simulation.refusal(3).contains("nothing to replace"))
        simulation.operate(4, .replace(node: "node-1", group: GroupID(1), with: nil))
        simulation.operate(5, .replace(node: "node-2", group: GroupID(1), with: nil))
        #expect(simulation.refusal(5).contains("kvctl ops cancel 1"))
        simulation.operate(6, .transfer(GroupID(2), node: "node-4"))
        #expect(simulation.refusal(6).contains("holds no replica of group 2"))
        simulation.operate(7, .cancel(OperationID(99)))
        #expect(simulation.refusal(7).contains("kvctl ops list"))
        simulation.operate(10, .transfer(GroupID(99), node: "node-1"))
        #expect(simulation.refusal(10) == "there is no group 99; there are 1, 2")
        simulation.operate(11, .drain(node: "node-4"))
        #expect(simulation.refusal(11).contains("node-4 holds no replica"))
        #expect(simulation.nodes[3].isSpare, "no spare leaves the pool for nothing")
        simulation.run(for: .seconds(3))
        for index in 0..<2 { simulation.crash(node: index) }
        simulation.run(for: .seconds(1))
        simulation.operate(8, .replace(node: "node-3", group: GroupID(2), with: nil))
        #expect(simulation.refusal(8).contains("1 of 3 replicas live"))
        simulation.operate(9, .drain(node: "node-3"))
        #expect(simulation.refusal(9).contains("1 of 3 replicas live"))
        simulation.run(for: .seconds(1))
        let refused = simulation.store.durable.decisions.filter { $0.text.hasPrefix("refused") }
        #expect(refused.count == 10)
    }

    @Test(arguments: 0..<40)
    func survivesChaos(seed: UInt64) {
        var draw = SeededRandom(seed: seed &+ 1_000)
        var options = options(nodes: 3 + Int(draw.below(3)), spares: 1 + Int(draw.below(3)))
        options.settings.groupsInitial = 1 + Int(draw.below(3))
        options.settings.repairAfter = .seconds(1)
        options.settings.nodeDownAfter = .seconds(2)
        options.lostPerMille = draw.chance(1, in: 2) ? draw.below(200) : 0
        let simulation = ClusterSimulation(seed: seed, options)
        simulation.run(for: .seconds(4))
        let count = UInt64(options.nodes + options.spares)
        for number in 1...60 as ClosedRange<UInt64> {
            simulation.run(for: .milliseconds(draw.below(900)))
            let node = Int(draw.below(count))
            let name = "node-\(node + 1)"
            switch draw.below(12) {
            case 0, 1: simulation.crash(node: node)
            case 2, 3, 4: simulation.start(node: node)
            case 5: simulation.disconnect(node)
            case 6: simulation.crashController()
            case 7:
                simulation.operate(
                    number, .replace(node: name, group: GroupID(1), with: nil))
            case 8: simulation.operate(number, .replace(node: name, group: nil, with: nil))
            case 9: simulation.operate(number, .drain(node: name))
            case 10: simulation.operate(number, .endDrain(node: name))
            default:
                let last = simulation.controller?.operations.last?.record.id ?? OperationID(1)
                simulation.operate(number, .cancel(last))
            }
        }
        simulation.lostPerMille = 0
        for index in simulation.nodes.indices { simulation.start(node: index) }
        simulation.run(for: .seconds(10))
        // Operations that wait for room that never comes are stopped by their operator.
        for status in simulation.controller?.openOperations ?? []
        where status.record.kind != .replaceReplica {
            simulation.operate(900 + UInt64(status.record.id.rawValue), .cancel(status.record.id))
        }
        simulation.run(for: .seconds(20))
        ControllerSimulationTests.expectConverged(simulation, "seed \(seed)")
    }
}
