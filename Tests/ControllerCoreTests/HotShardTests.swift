// The rules for hot groups and large shards, against load that follows the shards.

import KVBase
import ShardCore
import Testing

@testable import ControllerCore

@Suite struct HotShardTests {
    /// Table `t` of one shard in group 1, and `traffic` on it.
    static func cluster(
        seed: UInt64, _ traffic: SimulatedTraffic, nodes: Int = 3, spares: Int = 0,
        groups: Int = 2, splits: [String] = [],
        _ change: (inout ClusterSimulation.Options) -> Void = { _ in }
    ) -> ClusterSimulation {
        var options = ClusterSimulation.Options()
        options.nodes = nodes
        options.spares = spares
        options.settings.groupsInitial = groups
        change(&options)
        let simulation = ClusterSimulation(seed: seed, options)
        simulation.run(for: .seconds(5))
        simulation.request(1_000, ControllerSimulationTests.create("t", splits: splits))
        simulation.run(for: .seconds(1))
        simulation.traffic = traffic
        return simulation
    }

    static func why(_ simulation: ClusterSimulation) -> [String] {
        simulation.store.durable.decisions.map(\.text)
    }

    static func operations(_ simulation: ClusterSimulation) -> [OperationRecord] {
        simulation.store.durable.operations
    }

    private func configure(_ simulation: ClusterSimulation, _ name: String, _ value: String) {
        simulation.operate(
            UInt64(2_000 + simulation.operationAnswers.count), .configure(name: name, value: value))
        simulation.run(for: .milliseconds(50))
    }

    @Test func aHotTableIsSplitAndSpread() throws {
        let simulation = Self.cluster(seed: 41, .even(40, rate: 100))
        simulation.run(for: .seconds(25))
        #expect(Self.operations(simulation).isEmpty, "not before it was hot for 30 s")
        simulation.run(for: .seconds(20))
        let operation = try #require(Self.operations(simulation).first)
        #expect(operation.kind == .split && operation.step == .done)
        #expect(operation.origin == "split.hot")
        #expect(simulation.rates() == [GroupID(1): 2_000, GroupID(2): 2_000])
        let told = Self.why(simulation).first { $0.contains("operation 1 splits") } ?? ""
        #expect(told.contains("group 1 serves 4,000 requests/s for 3"), "\(told)")
        #expect(told.contains("rated 2,000; shard 1 of table t has 4,000 of them"), "\(told)")
        simulation.run(for: .seconds(900))
        #expect(Self.operations(simulation).count == 1, "and that is all")
        ControllerSimulationTests.expectConverged(simulation, "hot")
    }

    @Test func moreHeatFormsGroups() {
        let simulation = Self.cluster(seed: 42, .even(80, rate: 100), spares: 4)
        simulation.run(for: .seconds(300))
        #expect(simulation.rates().values.allSatisfy { $0 <= 2_000 }, "\(simulation.rates())")
        let operations = Self.operations(simulation)
        #expect(operations.count <= 5 && operations.allSatisfy { $0.step == .done })
        #expect(operations.allSatisfy { $0.kind == .split })
        simulation.run(for: .seconds(600))
        #expect(Self.operations(simulation).count == operations.count)
        ControllerSimulationTests.expectConverged(simulation, "very hot")
    }

    @Test func aSingleHotKeyIsNamed() {
        var traffic = SimulatedTraffic.even(40, rate: 10)
        traffic.keys[7].rate = 3_000
        let simulation = Self.cluster(seed: 43, traffic)
        simulation.run(for: .seconds(200))
        #expect(Self.operations(simulation).isEmpty)
        let key = simulation.controller?.hotKeys.first
        #expect(key?.key == Bytes("k00007".utf8))
        #expect(key?.percent == 88 && key?.operations == 3_390 && key?.group == GroupID(1))
        let told = Self.why(simulation).filter { $0.contains("split.hot does nothing") }
        #expect(told.count == 3, "once a minute: \(told)")
        #expect(told.first?.contains("the key k00007 alone takes 88 %") == true, "\(told)")
        simulation.traffic?.setRate(10)
        simulation.run(for: .seconds(10))
        #expect(simulation.controller?.hotKeys == [])
    }

    @Test func manySmallShardsAreMovedOneByOne() {
        let splits = (1..<10).map { "k000\($0)0" }
        let simulation = Self.cluster(
            seed: 44, .even(100, rate: 40), spares: 4, groups: 1, splits: splits)
        simulation.run(for: .seconds(400))
        let operations = Self.operations(simulation)
        #expect(operations.allSatisfy { $0.kind == .move && $0.step == .done })
        #expect(operations.count == 5, "\(operations.map(\.reason))")
        #expect(simulation.rates() == [GroupID(1): 2_000, GroupID(2): 2_000])
        ControllerSimulationTests.expectConverged(simulation, "many")
    }

    @Test func whereNothingHelpsItIsSaidOnceAMinute() {
        let simulation = Self.cluster(seed: 45, .even(100, rate: 100), splits: ["k00050"])
        for index in simulation.nodes.indices { simulation.nodes[index].freeBytes = 1 << 20 }
        simulation.run(for: .seconds(215))
        #expect(Self.operations(simulation).isEmpty)
        let told = Self.why(simulation).filter { $0.contains("split.hot does nothing") }
        #expect(told.count == 8, "two groups, four minutes: \(told)")
        #expect(told.first?.contains("the least busy other group, 2, has 5,000") == true, "\(told)")
        #expect(told.first?.contains("needs 3 live nodes") == true, "\(told)")
    }

    @Test func proposesAndAppliesOnDemand() throws {
        let simulation = Self.cluster(seed: 46, .even(40, rate: 100))
        configure(simulation, "split.hot", "propose")
        simulation.run(for: .seconds(120))
        let proposal = try #require(simulation.controller?.openOperations.first?.record)
        #expect(simulation.controller?.openOperations.count == 1)
        #expect(proposal.step == .proposed && proposal.origin == "split.hot")
        #expect(simulation.store.durable.shards.count == 1)
        // It survives the controller, and is not proposed twice.
        simulation.crashController()
        simulation.run(for: .seconds(120))
        #expect(simulation.controller?.openOperations.map(\.record.id) == [proposal.id])
        simulation.operate(1, .apply(proposal.id))
        simulation.run(for: .seconds(10))
        #expect(Self.operations(simulation).map(\.step) == [.done])
        #expect(simulation.rates() == [GroupID(1): 2_000, GroupID(2): 2_000])
        ControllerSimulationTests.expectConverged(simulation, "applied")
    }

    @Test func aProposalWithoutGroundsIsWithdrawn() throws {
        let simulation = Self.cluster(seed: 47, .even(40, rate: 100))
        configure(simulation, "split.hot", "propose")
        simulation.run(for: .seconds(40))
        #expect(simulation.controller?.openOperations.count == 1)
        simulation.traffic?.setRate(45)
        simulation.run(for: .seconds(20))
        #expect(simulation.controller?.openOperations.count == 1, "1,800 is no clear change")
        simulation.traffic?.setRate(30)
        simulation.run(for: .seconds(5))
        let record = try #require(Self.operations(simulation).first)
        #expect(record.step == .cancelled)
        #expect(record.outcome == "withdrawn: group 1 serves 1,200 requests/s now")
        simulation.traffic?.setRate(100)
        simulation.run(for: .seconds(40))
        #expect(simulation.controller?.openOperations.count == 1)
        configure(simulation, "split.hot", "off")
        simulation.run(for: .seconds(2))
        #expect(Self.operations(simulation).map(\.step) == [.cancelled, .cancelled])
    }

    @Test func whatAnOperatorStopsRests() throws {
        let simulation = Self.cluster(seed: 48, .even(40, rate: 100))
        simulation.holdsCopies = true
        simulation.run(for: .seconds(45))
        let operation = try #require(simulation.controller?.openOperations.first?.record)
        simulation.operate(1, .cancel(operation.id))
        simulation.holdsCopies = false
        simulation.run(for: .seconds(300))
        let after = Self.operations(simulation)
        #expect(after.map(\.step) == [.cancelled])
        #expect(
            Self.why(simulation).contains { $0.contains("split.hot leaves this alone for 10m") })
        simulation.run(for: .seconds(400))
        #expect(Self.operations(simulation).count > 1, "ten minutes later it looks again")
    }

    @Test func aLargeShardIsCut() {
        let simulation = Self.cluster(seed: 49, .even(100, bytes: 1 << 30))
        simulation.run(for: .seconds(30))
        let operations = Self.operations(simulation)
        #expect(operations.map(\.kind) == [.split], "\(operations.map(\.reason))")
        #expect(operations.first?.origin == "split.large")
        #expect(operations.first?.reason == "shard 1 of table t has 100.0 GiB, more than 64GiB")
        let shards = simulation.store.durable.shards
        #expect(shards.map(\.range.start) == [[], Bytes("k00050".utf8)])
        #expect(Set(shards.map(\.group)) == [GroupID(1), GroupID(2)])
        // The limit can be lowered at run time; then both halves are cut, and stay where they are.
        configure(simulation, "split.bytes", "30GiB")
        simulation.run(for: .seconds(30))
        #expect(simulation.store.durable.shards.count == 4)
        #expect(
            Self.operations(simulation).dropFirst().allSatisfy { $0.work?.moving == ShardID.none })
        simulation.run(for: .seconds(120))
        #expect(Self.operations(simulation).count == 3)
        ControllerSimulationTests.expectConverged(simulation, "large")
    }
}
