// Evening out the cluster because an operator asks for it.

import KVBase
import ShardCore
import Testing

@testable import ControllerCore

@Suite struct RebalanceOperationTests {
    /// Groups 1 to 4 on nodes 1 to 3; node 4 holds nothing. The rule is off.
    private static func lopsided(
        seed: UInt64, _ change: (inout ClusterSimulation.Options) -> Void = { _ in }
    ) -> ClusterSimulation {
        let simulation = HotShardTests.cluster(
            seed: seed, .even(10, rate: 1), nodes: 4, groups: 4, change)
        simulation.operate(901, .configure(name: "rebalance", value: "off"))
        simulation.operate(902, .replace(node: "node-4", group: nil, with: nil))
        simulation.run(for: .seconds(30))
        simulation.operate(903, .endDrain(node: "node-4"))
        simulation.run(for: .seconds(15))
        return simulation
    }

    private static func placed(_ simulation: ClusterSimulation) -> [Int] {
        simulation.nodes.indices.map { index in
            simulation.store.durable.groups.count { record in
                record.group.placements.contains { $0.node == simulation.nodes[index].id }
            }
        }
    }

    private static func rebalance(_ simulation: ClusterSimulation) -> OperationRecord? {
        simulation.store.durable.operations.last { $0.kind == .rebalance }
    }

    private static func parts(_ simulation: ClusterSimulation) -> [OperationRecord] {
        let id = rebalance(simulation)?.id ?? .none
        return simulation.store.durable.operations.filter { $0.parent == id }
    }

    private static func failure(_ simulation: ClusterSimulation, _ number: UInt64) -> String {
        ShardOperationTests.failure(simulation, number)
    }

    @Test func fillsAnEmptyNodeThoughTheRuleIsOff() throws {
        let simulation = Self.lopsided(seed: 1)
        #expect(Self.placed(simulation) == [4, 4, 4, 0])
        simulation.run(for: .seconds(600))
        #expect(Self.placed(simulation) == [4, 4, 4, 0], "the rule is off")
        let plan = try #require(try simulation.controller?.planRebalance(now: simulation.now))
        #expect(plan.before.nodes.map(\.replicas) == [4, 4, 4, 0])
        #expect(plan.after.nodes.map(\.replicas) == [3, 3, 3, 3])
        #expect(plan.steps.count >= 3 && !plan.isCut)
        simulation.operate(1, .rebalance)
        simulation.run(for: .seconds(90))
        #expect(Self.placed(simulation) == [3, 3, 3, 3], "\(simulation.log.suffix(30))")
        let record = try #require(Self.rebalance(simulation))
        #expect(record.step == .done)
        #expect(
            record.outcome.contains("before: 0 to 4 replicas and")
                && record.outcome.contains("now: 3 replicas and"), "\(record.outcome)")
        #expect(Self.parts(simulation).allSatisfy { $0.step == .done })
        ControllerSimulationTests.expectConverged(simulation, "filled")
        // Nothing is left to do, and the refusal has the figures.
        simulation.operate(2, .rebalance)
        simulation.run(for: .milliseconds(100))
        #expect(
            Self.failure(simulation, 2).hasPrefix(
                "nothing to even out: 3 replicas and 1 leader per"),
            "\(Self.failure(simulation, 2))")
    }

    @Test func spreadsLoadAndLeaders() throws {
        // 1,800 requests/s in group 1, nothing in group 2.
        let simulation = HotShardTests.cluster(
            seed: 66, .even(12, rate: 0), splits: ["k00006", "k00008"])
        simulation.operate(901, .configure(name: "rebalance", value: "off"))
        for index in 0..<6 { simulation.traffic?.keys[index].rate = 150 }
        for index in 8..<12 { simulation.traffic?.keys[index].rate = 225 }
        simulation.run(for: .seconds(20))
        #expect(simulation.rates() == [GroupID(1): 1_800, GroupID(2): 0])
        let plan = try #require(try simulation.controller?.planRebalance(now: simulation.now))
        #expect(plan.after.groups.map(\.operations) == [900, 900])
        simulation.operate(1, .rebalance)
        simulation.run(for: .seconds(60))
        #expect(Self.rebalance(simulation)?.step == .done, "\(simulation.log.suffix(30))")
        #expect(simulation.rates() == [GroupID(1): 900, GroupID(2): 900])
        #expect(Self.parts(simulation).map(\.kind) == [.move])
        ControllerSimulationTests.expectConverged(simulation, "load")
    }

    @Test func handsLeadersOver() throws {
        let simulation = HotShardTests.cluster(seed: 67, .even(10, rate: 1), groups: 3) {
            // The balance of its own would be quicker.
            $0.settings.rebalanceAfter = .seconds(3_600)
        }
        simulation.run(for: .seconds(30))
        let target = simulation.nodes[0]
        for group in (1...3 as ClosedRange<UInt32>).map({ GroupID($0) })
        where simulation.leader(of: group) != target.id {
            simulation.operate(UInt64(group.rawValue), .transfer(group, node: target.name))
            simulation.run(for: .seconds(2))
        }
        #expect(simulation.nodes[0].leads.count == 3)
        simulation.operate(9, .rebalance)
        simulation.run(for: .seconds(60))
        #expect(Self.rebalance(simulation)?.step == .done)
        #expect(simulation.nodes.map(\.leads.count) == [1, 1, 1])
        #expect(Self.parts(simulation).map(\.kind) == [.transfer, .transfer])
    }

    @Test func oneAtATimeAndOnlyWhenAllIsWell() {
        let simulation = Self.lopsided(seed: 3)
        simulation.crash(node: 1)
        simulation.run(for: .seconds(2))
        simulation.operate(1, .rebalance)
        simulation.run(for: .milliseconds(100))
        #expect(Self.failure(simulation, 1).hasPrefix("node-2 is suspect; nothing is evened out"))
        simulation.start(node: 1)
        simulation.run(for: .seconds(5))
        simulation.operate(2, .rebalance)
        simulation.operate(3, .rebalance)
        simulation.run(for: .milliseconds(100))
        #expect(Self.failure(simulation, 2).hasPrefix("operation "))
        #expect(Self.failure(simulation, 3).contains("works on the balance of the cluster"))
        simulation.run(for: .seconds(90))
        ControllerSimulationTests.expectConverged(simulation, "one")
    }

    @Test func waitsWhileANodeIsGone() {
        let simulation = Self.lopsided(seed: 4) { $0.settings.repairs = false }
        simulation.operate(1, .rebalance)
        simulation.run(for: .milliseconds(500))
        simulation.crash(node: 0)
        simulation.run(for: .seconds(60))
        #expect(Self.rebalance(simulation)?.isFinished == false)
        simulation.start(node: 0)
        simulation.run(for: .seconds(90))
        #expect(Self.rebalance(simulation)?.step == .done)
        #expect(Self.placed(simulation) == [3, 3, 3, 3])
        ControllerSimulationTests.expectConverged(simulation, "gone")
    }

    @Test func pausesAndCancelsAtEveryMoment() {
        var taken: Set<Int> = []
        for (number, moment) in stride(from: UInt64(0), to: 1_050, by: 75).enumerated() {
            let simulation = Self.lopsided(seed: 5)
            simulation.operate(1, .rebalance)
            simulation.run(for: .milliseconds(moment))
            guard let id = Self.rebalance(simulation)?.id else {
                simulation.run(for: .seconds(1))
                continue
            }
            let comment: Comment = "after \(moment) ms"
            simulation.operate(2, .pause(id))
            simulation.run(for: .seconds(20))
            let count = Self.parts(simulation).count
            simulation.run(for: .seconds(60))
            #expect(Self.parts(simulation).count == count, comment)
            if number % 2 == 0 {
                simulation.operate(3, .cancel(id))
                simulation.run(for: .seconds(20))
                #expect(Self.rebalance(simulation)?.step == .cancelled, comment)
                #expect(Self.parts(simulation).count == count, comment)
                taken.insert(count)
            } else {
                simulation.operate(3, .resume(id))
                simulation.run(for: .seconds(90))
                #expect(Self.rebalance(simulation)?.step == .done, comment)
                #expect(Self.placed(simulation) == [3, 3, 3, 3], comment)
            }
            ControllerSimulationTests.expectConverged(simulation, comment)
        }
        #expect(taken.count > 1, "\(taken)")
    }

    @Test func resumesAfterACrashAtEveryStoredStep() {
        func cluster() -> ClusterSimulation { Self.lopsided(seed: 6) }
        EveryMoment.crashController(storesMin: 11, in: cluster) { simulation in
            simulation.operate(1, .rebalance)
            simulation.run(for: .seconds(60))
        } checkModel: { model in
            #expect(Self.rebalance(model)?.step == .done)
        } check: { simulation, comment in
            guard let record = Self.rebalance(simulation) else { return }
            #expect(record.step == .done, comment)
            #expect(Self.placed(simulation) == [3, 3, 3, 3], comment)
        }
    }
}
