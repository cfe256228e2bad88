// Groups that are formed with too few replicas and get the others later.

import KVBase
import ShardCore
import Testing

@testable import ControllerCore

@Suite struct AdditionTests {
    /// Two nodes run, which is enough for groups of two of three replicas; the others come later.
    private func short(
        seed: UInt64, nodes: Int = 3, spares: Int = 0, repair: String = "auto"
    ) -> ClusterSimulation {
        var options = ClusterSimulation.Options()
        options.nodes = nodes
        options.spares = spares
        let simulation = ClusterSimulation(seed: seed, options)
        for index in 2..<(nodes + spares) { simulation.crash(node: index) }
        simulation.run(for: .seconds(1))
        simulation.operate(901, .configure(name: "replicas.min", value: "2"))
        simulation.operate(902, .configure(name: "repair", value: repair))
        simulation.run(for: .seconds(3))
        return simulation
    }

    private func sizes(_ simulation: ClusterSimulation) -> [Int] {
        simulation.store.durable.groups.map(\.group.placements.count)
    }

    @Test func aGroupIsFormedShortOnlyWhereThatIsAllowed() {
        var options = ClusterSimulation.Options()
        options.nodes = 2
        let simulation = ClusterSimulation(seed: 1, options)
        simulation.run(for: .seconds(4))
        #expect(simulation.store.durable.groups.isEmpty)
        simulation.request(1, ControllerSimulationTests.create("five", replicas: 5))
        simulation.run(for: .seconds(1))
        simulation.operate(1, .configure(name: "replicas.min", value: "2"))
        simulation.run(for: .seconds(2))
        #expect(sizes(simulation) == [2, 2])
        #expect(simulation.store.durable.groups.map(\.wanted) == [3, 3])
        simulation.request(2, ControllerSimulationTests.create("three"))
        simulation.request(3, ControllerSimulationTests.create("five", replicas: 5))
        simulation.run(for: .seconds(2))
        #expect(simulation.answers[RequestID(2)] == [nil])
        #expect(simulation.answers[RequestID(3)] == [nil])
        #expect(sizes(simulation) == [2, 2, 2, 2])
        #expect(simulation.store.durable.groups.map(\.wanted) == [3, 3, 5, 5])
        // Nobody is there to take the others: said once a minute, not more.
        simulation.run(for: .seconds(30))
        #expect(simulation.store.durable.operations.isEmpty)
        let said = simulation.store.durable.decisions.filter {
            $0.text == "repair of group 1: no node can take a replica of group 1: every other node "
                + "holds a replica of it; add a node"
        }
        #expect(said.count == 1)
        ControllerSimulationTests.expectConverged(simulation, "short")
    }

    @Test func nodesThatComeLaterFillTheGroups() throws {
        let simulation = short(seed: 2, nodes: 5, spares: 1)
        #expect(sizes(simulation) == [2, 2])
        simulation.request(1, ControllerSimulationTests.create("five", replicas: 5))
        simulation.run(for: .seconds(1))
        simulation.start(node: 2)
        simulation.run(for: .seconds(6))
        #expect(sizes(simulation) == [3, 3, 3, 3])
        for index in 3...5 { simulation.start(node: index) }
        simulation.run(for: .seconds(15))
        #expect(sizes(simulation) == [3, 3, 5, 5])
        let operations = simulation.store.durable.operations
        #expect(operations.count == 8)
        #expect(
            operations.allSatisfy {
                $0.kind == .addReplica && $0.step == .done && $0.origin == "repair"
                    && $0.old == .nowhere
            })
        let first = try #require(operations.first { $0.group == GroupID(1) })
        #expect(first.reason == "group 1 has 2 of 3 replicas")
        #expect(first.outcome == "group 1 has a replica on node-3 now, 3 of 3")
        // The spare stays one as long as others have room.
        let spare = simulation.store.durable.nodes.first { $0.name == "node-6" }
        #expect(spare?.isSpare == true)
        ControllerSimulationTests.expectConverged(simulation, "filled")
    }

    @Test func aSpareFillsAGroupWhenNobodyElseCan() {
        let simulation = short(seed: 3, nodes: 2, spares: 1)
        simulation.start(node: 2)
        simulation.run(for: .seconds(6))
        #expect(sizes(simulation) == [3, 3])
        #expect(simulation.store.durable.nodes.allSatisfy { !$0.isSpare })
        ControllerSimulationTests.expectConverged(simulation, "from the pool")
    }

    @Test func resumesAnAdditionAfterACrashAtEveryStoredStep() {
        func cluster() -> ClusterSimulation { short(seed: 4) }
        EveryMoment.crashController(storesMin: 8, in: cluster) { simulation in
            simulation.start(node: 2)
            simulation.run(for: .seconds(6))
        } check: { simulation, comment in
            simulation.run(for: .seconds(12))
            #expect(sizes(simulation) == [3, 3], comment)
        }
    }

    @Test func cancelsAtEveryMoment() {
        // The last moment is the short one in which the group takes the replica in.
        let moments = Array(0..<40) + stride(from: UInt64(40), to: 1_500, by: 20) + [2_000]
        let seen = EveryMoment.cancel(at: moments, settling: .seconds(8)) { moment in
            let simulation = short(seed: 5, nodes: 2, spares: 1, repair: "off")
            simulation.start(node: 2)
            simulation.run(for: .seconds(1))
            simulation.operate(1, .addReplica(GroupID(1), on: nil))
            simulation.run(for: .milliseconds(moment)) {
                moment == 2_000
                    && simulation.controller?.operations.last?.record.step == .swapping
            }
            return simulation
        } check: { simulation, operation, comment in
            #expect(sizes(simulation) == [operation?.step == .done ? 3 : 2, 2], comment)
            let spare = simulation.store.durable.nodes.first { $0.name == "node-3" }
            #expect(spare?.isSpare == (operation?.step == .cancelled), comment)
        }
        #expect(seen.ends == [.cancelled, .done])
        #expect(seen.from.isSuperset(of: [.creating, .adding, .catchingUp, .swapping, .done]))
    }

    @Test func pausesAndGoesOnUnderTheNextController() {
        let simulation = short(seed: 6, repair: "off")
        simulation.start(node: 2)
        simulation.run(for: .seconds(1))
        simulation.operate(1, .addReplica(GroupID(2), on: "node-3"))
        simulation.run(for: .milliseconds(20))
        simulation.operate(2, .pause(OperationID(1)))
        simulation.run(for: .seconds(5))
        #expect(simulation.store.durable.operations.first?.isPaused == true)
        simulation.crashController()
        simulation.run(for: .seconds(5))
        #expect(sizes(simulation) == [2, 2])
        simulation.operate(3, .resume(OperationID(1)))
        simulation.run(for: .seconds(4))
        #expect(sizes(simulation) == [2, 3])
        ControllerSimulationTests.expectConverged(simulation, "paused")
    }

    @Test func proposesWhatAnOperatorApplies() throws {
        let simulation = short(seed: 7, repair: "propose")
        simulation.start(node: 2)
        simulation.run(for: .seconds(5))
        #expect(sizes(simulation) == [2, 2])
        let proposals = simulation.store.durable.operations
        #expect(proposals.map(\.step) == [.proposed, .proposed])
        #expect(proposals.map(\.kind) == [.addReplica, .addReplica])
        simulation.operate(1, .apply(proposals[0].id))
        simulation.operate(2, .addReplica(GroupID(2), on: nil))
        simulation.run(for: .seconds(5))
        #expect(sizes(simulation) == [3, 3])
        let ends = simulation.store.durable.operations
        #expect(ends.map(\.step) == [.done, .cancelled, .done])
        #expect(ends[1].outcome.hasPrefix("withdrawn: operation 3 works on group 2"))
        ControllerSimulationTests.expectConverged(simulation, "proposed")
    }

    @Test func aNodeThatDiesOnTheWayIsFollowedByAnother() {
        for delay in stride(from: UInt64(0), to: 1_000, by: 50) {
            let simulation = short(seed: 8, nodes: 4, repair: "off")
            for index in 2...3 { simulation.start(node: index) }
            simulation.run(for: .seconds(1))
            simulation.operate(1, .addReplica(GroupID(1), on: "node-3"))
            simulation.run(for: .milliseconds(delay))
            let comment: Comment = "died after \(delay) ms"
            let isThrough = simulation.memberships[GroupID(1)]?.voters.count == 3
            simulation.crash(node: 2)
            simulation.run(for: .seconds(30))
            #expect(sizes(simulation) == [3, 2], comment)
            let names = simulation.store.durable.groups[0].group.placements.map(\.node)
            #expect(names.contains(simulation.nodes[isThrough ? 2 : 3].id), comment)
            simulation.start(node: 2)
            simulation.run(for: .seconds(5))
            ControllerSimulationTests.expectConverged(simulation, comment)
        }
    }

    @Test func refusalsSayWhatWouldWork() {
        let simulation = short(seed: 9, nodes: 4, repair: "off")
        simulation.operate(1, .addReplica(GroupID(9), on: nil))
        #expect(simulation.refusal(1) == "there is no group 9; there are 1, 2")
        simulation.operate(2, .addReplica(GroupID(1), on: nil))
        #expect(simulation.refusal(2).hasSuffix("add a node"))
        simulation.operate(3, .addReplica(GroupID(1), on: "node-1"))
        #expect(simulation.refusal(3).contains("holds another replica of group 1"))
        simulation.start(node: 2)
        simulation.run(for: .seconds(1))
        simulation.operate(4, .addReplica(GroupID(1), on: nil))
        simulation.operate(5, .addReplica(GroupID(1), on: nil))
        #expect(simulation.refusal(5).contains("kvctl ops cancel 1"))
        simulation.run(for: .seconds(4))
        simulation.operate(6, .addReplica(GroupID(1), on: nil))
        #expect(
            simulation.refusal(6)
                == "group 1 has the 3 replicas that its tables ask for; replicas are lacking in 2")
        simulation.operate(7, .reverse(OperationID(1)))
        #expect(simulation.refusal(7).contains("kvctl replace --group 1 --replica node-3"))
    }

    @Test func recordsOfEarlierVersionsAreWhole() throws {
        let group = Group(
            id: GroupID(1), engine: .lsm,
            placements: (1...3).map {
                Placement(replica: ReplicaID($0), node: NodeID($0), disk: 0)
            }, state: .active)
        var writer = ByteWriter()
        group.encode(into: &writer)
        writer.write(UInt8(7))
        let read = try ByteReader.decode(writer.take()) { (reader) throws(DatabaseError) in
            try GroupRecord(from: &reader)
        }
        #expect(read == GroupRecord(group: group, createdMask: 7))
        #expect(read.wanted == 3)
    }

    @Test(arguments: 0..<40)
    func survivesChaos(seed: UInt64) {
        var draw = SeededRandom(seed: seed &+ 5_000)
        var options = ClusterSimulation.Options()
        options.nodes = 4 + Int(draw.below(3))
        options.spares = Int(draw.below(3))
        options.settings.groupsInitial = 1 + Int(draw.below(3))
        options.settings.repairAfter = .seconds(1)
        options.settings.nodeDownAfter = .seconds(2)
        options.lostPerMille = draw.chance(1, in: 2) ? draw.below(200) : 0
        let simulation = ClusterSimulation(seed: seed, options)
        let first = 1 + Int(draw.below(2))
        for index in first..<simulation.nodes.count { simulation.crash(node: index) }
        simulation.run(for: .seconds(1))
        simulation.operate(901, .configure(name: "replicas.min", value: "1"))
        simulation.run(for: .seconds(3))
        simulation.request(1, ControllerSimulationTests.create("t", splits: ["m"]))
        for number in 1...60 as ClosedRange<UInt64> {
            simulation.run(for: .milliseconds(draw.below(900)))
            let node = Int(draw.below(UInt64(simulation.nodes.count)))
            switch draw.below(12) {
            case 0: simulation.crash(node: node)
            case 1, 2, 3, 4: simulation.start(node: node)
            case 5: simulation.disconnect(node)
            case 6: simulation.crashController()
            case 7, 8: simulation.operate(number, .addReplica(GroupID(1), on: nil))
            case 9:
                simulation.operate(
                    number, .replace(node: "node-\(node + 1)", group: GroupID(1), with: nil))
            default:
                let last = simulation.controller?.operations.last?.record.id ?? OperationID(1)
                simulation.operate(
                    number, draw.chance(1, in: 3) ? .pause(last) : .cancel(last))
            }
        }
        simulation.lostPerMille = 0
        for index in simulation.nodes.indices { simulation.start(node: index) }
        simulation.operate(902, .configure(name: "hold.cancel", value: "0s"))
        simulation.run(for: .seconds(10))
        for status in simulation.controller?.openOperations ?? [] where status.record.isPaused {
            simulation.operate(950 + UInt64(status.record.id.rawValue), .resume(status.record.id))
        }
        simulation.run(for: .seconds(40))
        let comment: Comment = "seed \(seed)"
        ControllerSimulationTests.expectConverged(simulation, comment)
        let groups = simulation.store.durable.groups
        #expect(!groups.isEmpty, comment)
        #expect(groups.allSatisfy { $0.group.placements.count == Int($0.wanted) }, comment)
    }
}
