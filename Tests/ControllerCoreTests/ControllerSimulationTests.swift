// The controller against simulated nodes: with crashes, lost frames, and a restart at every step.

import KVBase
import ShardCore
import Testing

@testable import ControllerCore

@Suite struct ControllerSimulationTests {
    static func create(
        _ name: String, _ partitioning: Partitioning = .range, replicas: UInt8? = nil,
        engine: EngineKind = .lsm, splits: [String] = [], ifMissing: Bool = false
    ) -> TableRequest {
        .create(
            name: name, partitioning: partitioning, engine: engine, replicas: replicas,
            splitPoints: splits.map { Bytes($0.utf8) }, ifMissing: ifMissing)
    }

    /// What must hold once everything runs again.
    static func expectConverged(_ simulation: ClusterSimulation, _ comment: Comment) {
        #expect(simulation.violations == [], comment)
        #expect(simulation.store.violations == [], comment)
        let state = simulation.store.durable
        #expect(state.tables.allSatisfy { $0.state == .active }, comment)
        #expect(state.shards.allSatisfy { $0.state == .active }, comment)
        #expect(state.groups.allSatisfy { $0.group.state == .active }, comment)
        #expect(state.operations.allSatisfy { $0.isFinished }, comment)
        let present = simulation.nodes.map(\.id)
        #expect(state.retired.allSatisfy { !present.contains($0.node) }, comment)
        for record in state.groups {
            let members = simulation.memberships[record.group.id]
            #expect(members?.learners == [], comment)
            #expect(
                members?.voters.sorted() == record.group.placements.map(\.replica), comment)
            for placement in record.group.placements {
                let host = simulation.nodes.first { $0.id == placement.node }
                #expect(
                    host?.replicas.contains { $0.replica.id == placement.replica } == true,
                    comment)
            }
        }
        let placed = state.groups.reduce(0) { $0 + $1.group.placements.count }
        #expect(simulation.nodes.reduce(0) { $0 + $1.replicas.count } == placed, comment)
        #expect(state.former == [], comment)
        #expect(simulation.shardDifferences == [], comment)
        for record in state.groups {
            let leader = simulation.leader(of: record.group.id)
            #expect(leader != nil, comment)
            #expect(simulation.follower.leader(of: record.group.id)?.node == leader, comment)
        }
        #expect(
            simulation.follower.activeTables.map(\.table.name).sorted()
                == state.tables.map(\.name).sorted(), comment)
        #expect(simulation.follower.shardCount == state.shards.count, comment)
        #expect(simulation.follower.nodes.count == state.nodes.count, comment)
        #expect(simulation.controller?.mapRevision == simulation.follower.revision, comment)
        for (group, bytes) in simulation.controller?.ownedBytes ?? [:] {
            let counted = state.shards.reduce(0) {
                $1.group == group
                    ? $0 + (simulation.controller?.shardReports[$1.id]?.bytes ?? 0) : $0
            }
            #expect(bytes == counted, comment)
        }
    }

    @Test func formsGroupsAndSpreadsLeaders() {
        var options = ClusterSimulation.Options()
        options.nodes = 6
        options.spares = 1
        options.zones = ["a", "b", "c"]
        options.settings.groupsInitial = 6
        let simulation = ClusterSimulation(seed: 1, options)
        simulation.run(for: .seconds(4))
        let state = simulation.store.durable
        #expect(state.groups.count == 6)
        for record in state.groups {
            let zones = record.group.placements.map { placement in
                state.nodes.first { $0.id == placement.node }?.zone ?? ""
            }
            #expect(Set(zones).count == 3)
        }
        let leaders = simulation.controller?.nodes.elements.map(\.leaders) ?? []
        #expect(leaders.sorted() == [0, 1, 1, 1, 1, 1, 1])
        let replicas = simulation.controller?.nodes.elements.map(\.replicas) ?? []
        #expect(replicas.sorted() == [0, 3, 3, 3, 3, 3, 3])
        Self.expectConverged(simulation, "seed 1")
    }

    @Test func createsAndDropsTables() {
        let simulation = ClusterSimulation(seed: 2, ClusterSimulation.Options())
        simulation.run(for: .seconds(4))
        simulation.request(1, Self.create("a", splits: ["g", "p"]))
        simulation.request(2, Self.create("a", ifMissing: true))
        simulation.request(3, Self.create("a"))
        simulation.request(4, Self.create("h", .hash(virtualRanges: 64)))
        simulation.request(5, Self.create("five", replicas: 5))
        simulation.request(6, Self.create("b", engine: .btree))
        simulation.request(7, .drop(name: "none"))
        simulation.run(for: .seconds(3))
        #expect(simulation.answers[RequestID(1)] == [nil])
        #expect(simulation.answers[RequestID(2)] == [nil])
        #expect(simulation.answers[RequestID(3)]?.first??.code == .tableExists)
        #expect(simulation.answers[RequestID(4)] == [nil])
        #expect(
            simulation.answers[RequestID(5)]?.first??.message
                == "a group of 5 replicas needs 5 live nodes that are not spares, 3 there")
        #expect(simulation.answers[RequestID(6)] == [nil])
        #expect(simulation.answers[RequestID(7)]?.first??.code == .tableNotFound)
        let state = simulation.store.durable
        #expect(state.shards.count == 3 + 64 + 1)
        #expect(state.groups.count { $0.group.engine == .btree } == 2)
        // Even shares of the virtual ranges.
        let table = state.tables.first { $0.name == "h" }
        let perGroup = state.groups.map { record in
            state.shards.count { $0.table == table?.id && $0.group == record.group.id }
        }
        #expect(perGroup.sorted() == [0, 0, 32, 32])
        Self.expectConverged(simulation, "before the drop")
        simulation.request(8, .drop(name: "h"))
        simulation.request(9, Self.create("h"))
        simulation.run(for: .seconds(2))
        #expect(simulation.answers[RequestID(8)] == [nil])
        #expect(simulation.answers[RequestID(9)] == [nil])
        #expect(simulation.store.durable.shards.count == 5)
        Self.expectConverged(simulation, "after the drop")
    }

    @Test func replacesTheLeaderOfADeadNodeAtOnce() {
        let simulation = ClusterSimulation(seed: 3, ClusterSimulation.Options())
        simulation.run(for: .seconds(4))
        let group = GroupID(1)
        guard let leader = simulation.leader(of: group),
            let index = simulation.nodes.firstIndex(where: { $0.id == leader })
        else {
            Issue.record("no leader")
            return
        }
        simulation.crash(node: index)
        simulation.run(for: .milliseconds(20))
        let successor = simulation.leader(of: group)
        #expect(successor != nil && successor != leader)
        #expect(simulation.follower.leader(of: group)?.node == successor)
    }

    @Test func aWipedNodeGetsANewIdentity() {
        let simulation = ClusterSimulation(seed: 4, ClusterSimulation.Options())
        simulation.run(for: .seconds(4))
        let old = simulation.nodes[0].id
        simulation.wipe(node: 0)
        simulation.start(node: 0)
        simulation.run(for: .seconds(2))
        #expect(simulation.nodes[0].id != old && simulation.nodes[0].id != .none)
        let nodes = simulation.store.durable.nodes
        #expect(nodes.first { $0.id == old }?.name == "node-1~\(old)")
        #expect(nodes.first { $0.id == simulation.nodes[0].id }?.name == "node-1")
        #expect(simulation.nodes[0].replicas.isEmpty)
        #expect(simulation.violations == [])
        #expect(simulation.store.violations == [])
    }

    private func workload(_ simulation: ClusterSimulation) {
        simulation.run(for: .seconds(3))
        simulation.request(1, Self.create("a", splits: ["m"]))
        simulation.request(2, Self.create("h", .hash(virtualRanges: 8)))
        simulation.run(for: .seconds(1))
        simulation.request(3, .drop(name: "a"))
        simulation.request(4, Self.create("b", engine: .btree))
        simulation.run(for: .seconds(1))
    }

    @Test func resumesAfterACrashAtEveryStoredStep() {
        EveryMoment.crashController(
            storesMin: 13, in: { ClusterSimulation(seed: 5, ClusterSimulation.Options()) },
            workload,
            check: { simulation, _ in simulation.run(for: .seconds(12)) })
    }

    @Test(arguments: 0..<40)
    func survivesChaos(seed: UInt64) {
        var draw = SeededRandom(seed: seed)
        var options = ClusterSimulation.Options()
        options.nodes = 3 + Int(draw.below(4))
        options.spares = Int(draw.below(2))
        options.zones = draw.chance(1, in: 2) ? ["a", "b", "c"] : []
        options.settings.groupsInitial = 1 + Int(draw.below(4))
        options.lostPerMille = draw.chance(1, in: 2) ? draw.below(300) : 0
        let simulation = ClusterSimulation(seed: seed, options)
        var requests: UInt64 = 0
        for _ in 0..<60 {
            simulation.run(for: .milliseconds(draw.below(600)))
            let node = Int(draw.below(UInt64(options.nodes)))
            let name = "t\(draw.below(5))"
            requests += 1
            switch draw.below(10) {
            case 0, 1: simulation.crash(node: node)
            case 2, 3, 4: simulation.start(node: node)
            case 5: simulation.disconnect(node)
            case 6: simulation.crashController()
            case 7: simulation.request(requests, .drop(name: name))
            case 8:
                simulation.request(
                    requests, Self.create(name, .hash(virtualRanges: 8), ifMissing: true))
            default: simulation.request(requests, Self.create(name, splits: ["m"]))
            }
        }
        simulation.lostPerMille = 0
        for index in simulation.nodes.indices { simulation.start(node: index) }
        simulation.run(for: .seconds(20))
        simulation.request(9_999, Self.create("last", .hash(virtualRanges: 8)))
        simulation.run(for: .seconds(1))
        #expect(simulation.answers[RequestID(9_999)] == [nil], "seed \(seed)")
        Self.expectConverged(simulation, "seed \(seed)")
        #expect(simulation.answers.values.allSatisfy { $0.count == 1 }, "seed \(seed)")
    }

    @Test func theSameSeedGivesTheSameRun() {
        func trace() -> [String] {
            var options = ClusterSimulation.Options()
            options.lostPerMille = 100
            let simulation = ClusterSimulation(seed: 7, options)
            workload(simulation)
            return simulation.log
        }
        #expect(trace() == trace())
        #expect(!trace().isEmpty)
    }
}
