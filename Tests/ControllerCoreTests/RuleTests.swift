// The rules that act slowly: joining cold shards, evening things out, proposals of repair; and that
// the rules together come to rest.

import KVBase
import ShardCore
import Testing

@testable import ControllerCore

@Suite struct RuleTests {
    private func configure(_ simulation: ClusterSimulation, _ settings: [(String, String)]) {
        for (name, value) in settings {
            simulation.operate(
                UInt64(3_000 + simulation.operationAnswers.count),
                .configure(name: name, value: value))
        }
        simulation.run(for: .milliseconds(50))
    }

    /// Fewer ticks and heartbeats, for tests that take hours.
    private func slow(_ options: inout ClusterSimulation.Options) {
        options.tickInterval = .milliseconds(100)
        options.beatInterval = .milliseconds(500)
        options.settings.nodeSuspectAfter = .seconds(2)
        options.settings.leaderlessGrace = .seconds(2)
        options.settings.nominationTimeout = .seconds(2)
    }

    private func origins(_ simulation: ClusterSimulation) -> [String] {
        HotShardTests.operations(simulation).map { "\($0.origin) \($0.kind) \($0.step)" }
    }

    private func placed(_ simulation: ClusterSimulation, on index: Int) -> Int {
        let id = simulation.nodes[index].id
        return simulation.store.durable.groups.count { record in
            record.group.placements.contains { $0.node == id }
        }
    }

    // MARK: Cold

    @Test func whatASplitMadeIsJoinedWhenItIsColdForLong() {
        let simulation = HotShardTests.cluster(seed: 61, .even(40, rate: 100), slow)
        configure(simulation, [("merge.cold", "auto"), ("merge.sustain", "600s")])
        simulation.run(for: .seconds(60))
        #expect(simulation.store.durable.shards.count == 2)
        simulation.traffic?.setRate(1)
        // Neither the quiet time after the split nor the time of cold may be cut short.
        simulation.run(for: .seconds(3_500))
        #expect(simulation.store.durable.shards.count == 2)
        simulation.run(for: .seconds(300))
        #expect(simulation.store.durable.shards.count == 1, "\(origins(simulation))")
        #expect(origins(simulation) == ["split.hot split done", "merge.cold merge done"])
        let reason = HotShardTests.operations(simulation).last?.reason ?? ""
        #expect(reason.contains("have 40 requests/s and 0 B together"), "\(reason)")
        // Hot again at once: the rule waits for the quiet time after the join.
        simulation.traffic?.setRate(100)
        simulation.run(for: .seconds(300))
        #expect(HotShardTests.operations(simulation).count == 2)
        #expect(
            HotShardTests.why(simulation).contains { $0.contains("it was joined less than 10m") })
        simulation.run(for: .seconds(300))
        #expect(simulation.store.durable.shards.count == 2)
        ControllerSimulationTests.expectConverged(simulation, "cold")
    }

    @Test func theTimeOfColdIsCountedOnByTheNextController() {
        let simulation = HotShardTests.cluster(seed: 72, .even(40, rate: 100), slow)
        configure(
            simulation,
            [("merge.cold", "auto"), ("merge.sustain", "2h"), ("merge.quiet", "10m")])
        simulation.run(for: .seconds(60))
        #expect(simulation.store.durable.shards.count == 2)
        simulation.traffic?.setRate(1)
        simulation.run(for: .seconds(6_000))
        #expect(simulation.store.durable.cold.count == 1)
        simulation.crashController()
        simulation.run(for: .seconds(900))
        #expect(simulation.store.durable.shards.count == 2)
        simulation.run(for: .seconds(400))
        #expect(simulation.store.durable.shards.count == 1, "\(origins(simulation))")
        #expect(simulation.store.durable.cold.isEmpty)
        ControllerSimulationTests.expectConverged(simulation, "counted on")
    }

    @Test func theTimeOfColdEndsWithRequestsAndWithTheRule() {
        let simulation = HotShardTests.cluster(seed: 73, .even(40, rate: 100), slow)
        configure(simulation, [("merge.sustain", "2h"), ("merge.quiet", "10m")])
        simulation.run(for: .seconds(60))
        simulation.traffic?.setRate(1)
        simulation.run(for: .seconds(1_500))
        #expect(simulation.store.durable.cold.count == 1)
        simulation.traffic?.setRate(40)
        simulation.run(for: .seconds(10))
        #expect(simulation.store.durable.cold.isEmpty)
        simulation.traffic?.setRate(1)
        simulation.run(for: .seconds(700))
        #expect(simulation.store.durable.cold.count == 1)
        configure(simulation, [("merge.cold", "off")])
        simulation.run(for: .seconds(5))
        #expect(simulation.store.durable.cold.isEmpty)
        #expect(simulation.controller?.openOperations.isEmpty == true)
    }

    @Test func shardsOfTheTableItselfStayApart() {
        let simulation = HotShardTests.cluster(
            seed: 62, .even(40, rate: 1), splits: ["k00010", "k00020", "k00030"])
        configure(
            simulation,
            [("merge.cold", "auto"), ("merge.sustain", "10s"), ("merge.quiet", "10s")])
        simulation.run(for: .seconds(200))
        #expect(HotShardTests.operations(simulation).isEmpty)
        // The operator's own split counts, and stays for the quiet time.
        simulation.operate(1, .split(SplitRequest(table: "t", at: Bytes("k00005".utf8), to: nil)))
        simulation.run(for: .seconds(8))
        #expect(simulation.store.durable.shards.count == 5)
        simulation.run(for: .seconds(30))
        #expect(simulation.store.durable.shards.count == 4, "\(origins(simulation))")
        simulation.run(for: .seconds(100))
        #expect(HotShardTests.operations(simulation).count == 2)
    }

    @Test func coldShardsAreOnlyProposedByDefault() {
        let simulation = HotShardTests.cluster(seed: 63, .even(40, rate: 100), slow)
        configure(simulation, [("merge.sustain", "60s"), ("merge.quiet", "60s")])
        simulation.run(for: .seconds(60))
        simulation.traffic?.setRate(1)
        simulation.run(for: .seconds(200))
        let proposed = simulation.controller?.openOperations.map(\.record) ?? []
        #expect(proposed.map(\.kind) == [.merge] && proposed.first?.step == .proposed)
        // They are used again: the proposal goes.
        simulation.traffic?.setRate(40)
        simulation.run(for: .seconds(10))
        #expect(
            HotShardTests.operations(simulation).last?.outcome == "withdrawn: they are used again")
    }

    // MARK: A day

    /// Thirty times as fast as a day: load that is high for half of it, and nearly nothing at night.
    @Test func aDailyRhythmMakesNothingFlap() {
        let simulation = HotShardTests.cluster(seed: 71, .even(64, rate: 1), spares: 4, slow)
        configure(
            simulation,
            [
                ("merge.cold", "auto"), ("merge.sustain", "48m"), ("merge.quiet", "2m"),
                ("split.quiet", "20s"), ("split.sustain", "1s"), ("rebalance.quiet", "2s"),
                ("rebalance.sustain", "10s"),
            ])
        var counts: [Int] = []
        for _ in 0..<2 {
            // 1 to 116 requests/s per key and back, in steps of five minutes of the real day.
            for step in 0..<288 as Range<UInt64> {
                let distance = step < 144 ? step : 288 - step
                simulation.traffic?.setRate(1 + distance * 115 / 144)
                simulation.run(for: .seconds(10))
            }
            counts.append(HotShardTests.operations(simulation).count)
        }
        let done = HotShardTests.operations(simulation)
        #expect(done.allSatisfy { $0.step == .done }, "\(origins(simulation))")
        // 64 keys of 116: four groups do, which three splits make.
        #expect(counts[0] >= 3 && counts[0] <= 6, "\(origins(simulation))")
        #expect(counts[1] == counts[0], "the second day: \(origins(simulation))")
        #expect(!done.contains { $0.kind == .merge })
        ControllerSimulationTests.expectConverged(simulation, "day")
    }

    // MARK: Rebalance

    @Test func aNodeAddedLaterGetsItsShare() {
        let simulation = HotShardTests.cluster(seed: 64, .even(10, rate: 1), nodes: 4, groups: 4) {
            $0.zones = ["a", "b", "c", "c"]
        }
        simulation.operate(1, .replace(node: "node-4", group: nil, with: nil))
        simulation.run(for: .seconds(30))
        simulation.operate(2, .endDrain(node: "node-4"))
        simulation.run(for: .seconds(5))
        let before = (0..<4).map { placed(simulation, on: $0) }
        #expect(before == [4, 4, 4, 0])
        simulation.run(for: .seconds(600))
        let after = (0..<4).map { placed(simulation, on: $0) }
        // Zones a, b and c keep one replica of each group; the two nodes of zone c share theirs.
        #expect(after == [4, 4, 2, 2], "\(origins(simulation).suffix(8))")
        #expect(
            HotShardTests.operations(simulation).contains {
                $0.origin == "rebalance" && $0.reason.contains("node-4 0 with weight 10")
            })
        let count = HotShardTests.operations(simulation).count
        simulation.run(for: .seconds(300))
        #expect(HotShardTests.operations(simulation).count == count, "it comes to rest")
        ControllerSimulationTests.expectConverged(simulation, "share")
    }

    @Test func weightsDrawReplicas() {
        let simulation = HotShardTests.cluster(
            seed: 65, .even(10, rate: 1), nodes: 5, groups: 6, slow)
        #expect((0..<5).map { placed(simulation, on: $0) }.allSatisfy { $0 >= 3 })
        simulation.operate(1, .setWeight(node: "node-1", weight: 0))
        simulation.run(for: .seconds(900))
        #expect(placed(simulation, on: 0) == 0, "\(origins(simulation))")
        #expect((1..<5).map { placed(simulation, on: $0) }.reduce(0, +) == 18)
        ControllerSimulationTests.expectConverged(simulation, "weights")
    }

    @Test func unevenLoadBelowTheRatingIsSpread() {
        // 1,800 requests/s in group 1, nothing in group 2: below the rating, and far apart.
        let simulation = HotShardTests.cluster(
            seed: 66, .even(12, rate: 0), splits: ["k00006", "k00008"])
        for index in 0..<6 { simulation.traffic?.keys[index].rate = 150 }
        for index in 8..<12 { simulation.traffic?.keys[index].rate = 225 }
        simulation.run(for: .seconds(330))
        #expect(simulation.rates() == [GroupID(1): 1_800, GroupID(2): 0])
        simulation.run(for: .seconds(120))
        #expect(simulation.rates() == [GroupID(1): 900, GroupID(2): 900])
        #expect(origins(simulation) == ["rebalance move done"])
        simulation.run(for: .seconds(1_000))
        #expect(HotShardTests.operations(simulation).count == 1)
        ControllerSimulationTests.expectConverged(simulation, "uneven")
    }

    @Test func aTransferIsNotUndoneByTheBalance() throws {
        let simulation = HotShardTests.cluster(seed: 67, .even(10, rate: 1), groups: 3, slow)
        simulation.run(for: .seconds(30))
        let target = simulation.nodes[0]
        let others = (1...3 as ClosedRange<UInt32>).map { GroupID($0) }
            .filter { simulation.leader(of: $0) != target.id }
        #expect(others.count == 2)
        for group in others {
            simulation.operate(UInt64(group.rawValue), .transfer(group, node: target.name))
            simulation.run(for: .seconds(2))
        }
        simulation.run(for: .seconds(500))
        #expect(others.allSatisfy { simulation.leader(of: $0) == target.id })
        simulation.run(for: .seconds(200))
        #expect(simulation.nodes[0].leads.count == 1, "ten minutes later they are spread again")
    }

    // MARK: Repair

    @Test func repairCanBeProposedAndApplied() throws {
        var options = ClusterSimulation.Options()
        options.spares = 1
        let simulation = ClusterSimulation(seed: 68, options)
        simulation.run(for: .seconds(4))
        configure(simulation, [("repair", "propose")])
        simulation.crash(node: 1)
        simulation.run(for: .seconds(40))
        let proposed = simulation.controller?.openOperations.map(\.record) ?? []
        #expect(proposed.count == 2 && proposed.allSatisfy { $0.step == .proposed })
        #expect(simulation.store.durable.nodes.contains { $0.isSpare }, "nothing is taken yet")
        simulation.crashController()
        simulation.run(for: .seconds(20))
        let first = try #require(proposed.first)
        simulation.operate(1, .apply(first.id))
        simulation.run(for: .seconds(8))
        let after = simulation.store.durable.operations
        #expect(after.first { $0.id == first.id }?.step == .done)
        #expect(placed(simulation, on: 3) == 1)
        // The node comes back: the other proposal has no grounds any more.
        simulation.start(node: 1)
        simulation.run(for: .seconds(5))
        let last = simulation.store.durable.operations.last
        #expect(last?.step == .cancelled)
        #expect(last?.outcome == "withdrawn: node-2 is back with its replica")
        ControllerSimulationTests.expectConverged(simulation, "proposed repair")
    }
}
