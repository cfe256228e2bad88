// Followers that stay behind although their nodes are well.

import KVBase
import ShardCore
import Testing

@testable import ControllerCore

@Suite struct LaggingTests {
    typealias Bench = ControllerBench

    /// Three nodes and a spare; heartbeats in which node 1 leads and the others are as far as `match`
    /// says, by replica.
    private func cluster(_ settings: (String, String)...) throws -> Bench {
        let bench = try Bench.threeNodes()
        bench.register(4, Bench.registration("node-4", isSpare: true))
        for (name, value) in settings {
            bench.step(.operationRequest(RequestID(1), .configure(name: name, value: value)))
        }
        return bench
    }

    private func beat(
        _ bench: Bench, last: UInt64, match: [UInt32: UInt64], snapshot: UInt64? = nil,
        silent: [UInt32] = []
    ) {
        for node: UInt32 in 1...4 where !silent.contains(node) {
            guard node < 4 else {
                bench.beat(4, node: 4)
                continue
            }
            let index = node == 1 ? last : match[node] ?? last
            var report = Bench.report(
                replica: node, leads: node == 1, term: 1, last: (1, index))
            if node == 1 {
                report.members = (1...3).map { replica in
                    MemberReport(
                        replica: ReplicaID(replica), role: .voter,
                        match: LogIndex(replica == 1 ? last : match[replica] ?? last),
                        snapshotBytes: replica == 3 ? snapshot : nil)
                }
            }
            bench.beat(UInt64(node), node: node, [report])
        }
    }

    /// Ten heartbeats per second, for so long; `step` tells where each replica is after so many.
    private func pass(
        _ bench: Bench, seconds: Int, from: Int = 0,
        _ step: (Int) -> (last: UInt64, match: [UInt32: UInt64], snapshot: UInt64?)
    ) {
        for count in from..<(from + seconds * 10) {
            let state = step(count)
            beat(bench, last: state.last, match: state.match, snapshot: state.snapshot)
            bench.pass(.milliseconds(100))
        }
    }

    private func why(_ bench: Bench) -> [String] {
        bench.store.durable.decisions.map(\.text)
    }

    private func lagging(_ bench: Bench) -> [NodeID] { bench.controller.lagging.map(\.node) }

    @Test func aFollowerThatGetsNothingIsDeclaredAndReplaced() throws {
        let bench = try cluster()
        pass(bench, seconds: 58) { count in (1_000 + UInt64(count), [3: 1_000], nil) }
        #expect(lagging(bench).isEmpty && bench.store.durable.operations.isEmpty)
        pass(bench, seconds: 5, from: 580) { count in (1_000 + UInt64(count), [3: 1_000], nil) }
        #expect(lagging(bench) == [NodeID(3)])
        let told = why(bench).filter { $0.contains("lags") }
        #expect(told.count == 1)
        #expect(
            told.first?.contains(
                "the replica of group 1 on node-3 lags: it is 60") == true, "\(told)")
        #expect(told.first?.contains("got nothing for 60 s; node-1 leads") == true, "\(told)")
        let operation = try #require(bench.store.durable.operations.first)
        #expect(operation.origin == "repair" && operation.kind == .replaceReplica)
        #expect(operation.old.node == NodeID(3) && operation.new.node == NodeID(4))
        #expect(operation.reason.hasPrefix("its replica on node-3 is "))
        // It stays lagging while it catches up from afar, and keeps its place once it has.
        pass(bench, seconds: 3, from: 630) { count in (1_000 + UInt64(count), [3: 1_000], nil) }
        #expect(bench.store.durable.operations.first?.isCancelled == false)
        pass(bench, seconds: 3, from: 660) { count in
            (1_000 + UInt64(count), [3: 999 + UInt64(count)], nil)
        }
        #expect(lagging(bench).isEmpty)
        #expect(bench.store.durable.operations.first?.isCancelled == true)
        #expect(why(bench).contains("the replica of group 1 on node-3 lags no more"))
    }

    @Test func aFollowerThatComesNoCloserLags() throws {
        let bench = try cluster(("lag.after", "20s"), ("repair", "off"))
        // 20,000 behind, and it stays so.
        pass(bench, seconds: 25) { count in
            (100_000 + UInt64(count) * 100, [3: 80_000 + UInt64(count) * 100], nil)
        }
        #expect(lagging(bench) == [NodeID(3)])
        #expect(
            why(bench).contains {
                $0.contains("20,000 entries behind its leader and came no closer")
            })
    }

    @Test func aFollowerThatComesCloserOrIsCloseEnoughDoesNot() throws {
        let bench = try cluster(("lag.after", "20s"))
        pass(bench, seconds: 60) { count in
            let last = 200_000 + UInt64(count) * 100
            return (last, [2: last - 9_000, 3: last - 100_000 + UInt64(count) * 100], nil)
        }
        #expect(lagging(bench).isEmpty)
        #expect(bench.controller.burdenedGroups.isEmpty)
        #expect(bench.store.durable.operations.isEmpty)
    }

    @Test func aSnapshotThatFlowsIsProgressOneThatRestsOrRepeatsIsNot() throws {
        let flowing = try cluster(("lag.after", "20s"))
        pass(flowing, seconds: 100) { count in
            (100_000 + UInt64(count), [3: 5], UInt64(count) * 1_000)
        }
        #expect(lagging(flowing).isEmpty)
        // From now on it rests.
        pass(flowing, seconds: 23, from: 1_000) { count in
            (100_000 + UInt64(count), [3: 5], 1_000_000)
        }
        #expect(lagging(flowing) == [NodeID(3)])
        // One after the other: after each the follower is as far behind as before.
        let repeating = try cluster(("lag.after", "20s"))
        pass(repeating, seconds: 80) { count in
            let last = 100_000 + UInt64(count) * 1_000
            return (last, [3: last - 50_000 - UInt64(count % 50) * 1_000], UInt64(count % 50) * 10)
        }
        #expect(lagging(repeating) == [NodeID(3)])
        #expect(why(repeating).contains { $0.contains("snapshots, none of which helped") })
    }

    @Test func whenMostFollowersLagItIsTheLeader() throws {
        let bench = try cluster(("lag.after", "20s"))
        pass(bench, seconds: 60) { count in
            (100_000 + UInt64(count) * 1_000, [2: 50, 3: count < 80 ? 60 : 61], nil)
        }
        #expect(lagging(bench).isEmpty)
        #expect(bench.controller.burdenedGroups == [GroupID(1)])
        #expect(bench.store.durable.operations.isEmpty)
        let told = why(bench).filter { $0.contains("it is the leader's load") }
        #expect(told.count == 1, "once a minute: \(told)")
        #expect(
            told.first?.contains("most followers of group 1 are behind its leader on node-1")
                == true)
    }

    @Test func whoIsDownOrIllOrInMaintenanceIsNotJudged() throws {
        let bench = try cluster(("lag.after", "20s"), ("repair", "off"))
        bench.step(.clock(1_800_000_000_000))
        bench.step(
            .operationRequest(
                RequestID(5), .maintenance(node: "node-3", for: .seconds(600))))
        pass(bench, seconds: 40) { count in (1_000 + UInt64(count), [3: 1_000], nil) }
        #expect(lagging(bench).isEmpty)
        bench.step(.operationRequest(RequestID(6), .endMaintenance(node: "node-3")))
        pass(bench, seconds: 18, from: 400) { count in
            (1_000 + UInt64(count), [3: 1_000], nil)
        }
        #expect(lagging(bench).isEmpty, "its time begins when it is over")
        pass(bench, seconds: 5, from: 580) { count in
            (1_000 + UInt64(count), [3: 1_000], nil)
        }
        #expect(lagging(bench) == [NodeID(3)])
    }

    // MARK: Simulation

    private func options() -> ClusterSimulation.Options {
        var options = ClusterSimulation.Options()
        options.nodes = 3
        options.spares = 1
        return options
    }

    private func started(seed: UInt64) -> (ClusterSimulation, deaf: Int) {
        let simulation = ClusterSimulation(seed: seed, options())
        simulation.run(for: .seconds(4))
        simulation.operate(900, .configure(name: "lag.after", value: "5s"))
        simulation.run(for: .milliseconds(100))
        let deaf = simulation.nodes.indices.first { simulation.nodes[$0].leads.isEmpty } ?? 0
        simulation.nodes[deaf].isDeaf = true
        return (simulation, deaf)
    }

    @Test func replacesWithinTenSecondsAndGoesOnUnderTheNextController() {
        let deaf = started(seed: 1).deaf
        func cluster() -> ClusterSimulation { started(seed: 1).0 }
        EveryMoment.crashController(storesMin: 1, in: cluster) { simulation in
            simulation.run(for: .seconds(16))
        } checkModel: { model in
            #expect(model.nodes[deaf].replicas.isEmpty)
            #expect(model.store.durable.operations.allSatisfy { $0.step == .done })
            ControllerSimulationTests.expectConverged(model, "lagging")
        } check: { simulation, comment in
            simulation.run(for: .seconds(24))
            #expect(simulation.nodes[deaf].replicas.isEmpty, comment)
            #expect(simulation.store.durable.operations.allSatisfy { $0.step == .done }, comment)
        }
    }

    @Test(arguments: 0..<20)
    func survivesLagAmongOtherFaults(seed: UInt64) {
        var draw = SeededRandom(seed: seed &+ 11_000)
        var options = options()
        options.nodes = 3 + Int(draw.below(3))
        options.spares = 1 + Int(draw.below(2))
        options.settings.repairAfter = .seconds(1)
        options.settings.nodeDownAfter = .seconds(2)
        options.lostPerMille = draw.chance(1, in: 2) ? draw.below(100) : 0
        let simulation = ClusterSimulation(seed: seed, options)
        simulation.run(for: .seconds(4))
        simulation.operate(900, .configure(name: "lag.after", value: "2s"))
        for number in 1...50 as ClosedRange<UInt64> {
            simulation.run(for: .milliseconds(draw.below(900)))
            let node = Int(draw.below(UInt64(simulation.nodes.count)))
            switch draw.below(9) {
            case 0: simulation.crash(node: node)
            case 1, 2: simulation.start(node: node)
            case 3, 4: simulation.nodes[node].isDeaf = true
            case 5, 6: simulation.nodes[node].isDeaf = false
            case 7:
                let last = simulation.controller?.operations.last?.record.id ?? OperationID(1)
                simulation.operate(number, .cancel(last))
            default: simulation.crashController()
            }
        }
        simulation.lostPerMille = 0
        for index in simulation.nodes.indices {
            simulation.nodes[index].isDeaf = false
            simulation.start(node: index)
        }
        simulation.run(for: .seconds(40))
        ControllerSimulationTests.expectConverged(simulation, "seed \(seed)")
        #expect(simulation.controller?.lagging.isEmpty == true, "seed \(seed)")
    }
}
