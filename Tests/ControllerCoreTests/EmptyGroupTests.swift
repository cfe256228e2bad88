// Groups without shards go, but never one that is wanted, and never with a shard.

import KVBase
import ShardCore
import Testing

@testable import ControllerCore

@Suite struct EmptyGroupTests {
    private typealias Base = ShardOperationTests

    private func configure(_ simulation: ClusterSimulation, _ settings: (String, String)...) {
        for (name, value) in settings {
            simulation.operate(
                UInt64(3_000 + simulation.operationAnswers.count),
                .configure(name: name, value: value))
        }
        simulation.run(for: .milliseconds(50))
    }

    private func groups(_ simulation: ClusterSimulation) -> [UInt32] {
        simulation.store.durable.groups.map(\.group.id.rawValue)
    }

    /// Shard 1 went to group 3, which was formed for it, and came back: group 3 is empty.
    private func withEmptyGroup(seed: UInt64, after time: String = "10s") -> ClusterSimulation {
        let simulation = Base.cluster(seed: seed, Base.options(nodes: 4))
        configure(simulation, ("groups.empty.after", time), ("rebalance", "off"))
        simulation.operate(1, .move(ShardID(1), to: .new))
        simulation.run(for: .seconds(4))
        simulation.operate(2, .move(ShardID(1), to: .group(GroupID(1))))
        simulation.run(for: .seconds(2))
        return simulation
    }

    @Test func aGroupThatLostItsShardsIsDissolved() {
        let simulation = withEmptyGroup(seed: 1)
        #expect(Base.steps(simulation) == [.done, .done])
        #expect(groups(simulation) == [1, 2, 3])
        simulation.run(for: .seconds(5))
        #expect(groups(simulation) == [1, 2, 3], "not before its time")
        simulation.run(for: .seconds(10))
        #expect(groups(simulation) == [1, 2])
        let why = simulation.store.durable.decisions.filter { $0.group == GroupID(3) }.map(\.text)
        #expect(
            why.contains(
                "group 3 is dissolved: it had no shards for 10s; 2 LSM groups of 3 replicas are left"
            ), "\(why)")
        #expect(why.count { $0.contains("has deleted its retired replica") } == 3)
        #expect(simulation.follower.groups.elements.map(\.id) == [GroupID(1), GroupID(2)])
        ControllerSimulationTests.expectConverged(simulation, "dissolved")
    }

    @Test func theGroupsOfTheFormationStayAndThoseOfOtherKindsGoWithTheirTables() {
        let simulation = Base.cluster(seed: 2, Base.options(nodes: 5))
        configure(simulation, ("groups.empty.after", "5s"))
        simulation.request(1, ControllerSimulationTests.create("b", engine: .btree))
        simulation.request(2, ControllerSimulationTests.create("one", replicas: 1))
        simulation.request(3, .drop(name: "t"))
        simulation.run(for: .seconds(20))
        #expect(groups(simulation) == [1, 2, 3, 4, 5, 6], "each kind has its two")
        simulation.request(4, .drop(name: "b"))
        simulation.request(5, .drop(name: "one"))
        simulation.run(for: .seconds(20))
        #expect(groups(simulation) == [1, 2])
        simulation.request(6, ControllerSimulationTests.create("b", engine: .btree))
        simulation.run(for: .seconds(2))
        #expect(simulation.answers[RequestID(6)] == [nil])
        #expect(groups(simulation) == [1, 2, 7, 8])
        ControllerSimulationTests.expectConverged(simulation, "kinds")
    }

    @Test func resumesAfterACrashAtEveryStoredStep() {
        func cluster() -> ClusterSimulation { withEmptyGroup(seed: 3) }
        EveryMoment.crashController(storesMin: 4, in: cluster) { simulation in
            simulation.run(for: .seconds(14))
        } checkModel: { model in
            #expect(groups(model) == [1, 2])
        } check: { simulation, comment in
            simulation.run(for: .seconds(16))
            #expect(groups(simulation) == [1, 2], comment)
        }
    }

    /// A move into the group at every moment around its end: either comes first, and the other is
    /// told.
    @Test func aMoveIntoTheGroupRacesItsEnd() {
        var refusals: Set<String> = []
        var stayed = 0
        let start = withEmptyGroup(seed: 4)
        var moment: UInt64 = 0
        while groups(start).contains(3) {
            start.run(for: .milliseconds(10))
            moment += 10
        }
        for delay in stride(from: moment - 60, to: moment + 60, by: 2) {
            let simulation = withEmptyGroup(seed: 4)
            simulation.run(for: .milliseconds(delay))
            simulation.operate(5, .move(ShardID(1), to: .group(GroupID(3))))
            simulation.run(for: .seconds(8))
            let comment: Comment = "moved at \(delay) ms, group 3 goes at about \(moment) ms"
            switch Base.failure(simulation, 5) {
            case "operation 3":
                stayed += 1
                #expect(groups(simulation) == [1, 2, 3], comment)
                #expect(Base.shards(simulation).first?.group == GroupID(3), comment)
            case let text:
                refusals.insert(text)
                #expect(groups(simulation) == [1, 2], comment)
            }
            ControllerSimulationTests.expectConverged(simulation, comment)
        }
        #expect(stayed > 0)
        #expect(
            refusals == ["there is no group 3; groups that fit: 2, or --to new"], "\(refusals)")
    }

    @Test func whileTheDecisionIsOnItsWayNobodyChoosesTheGroup() throws {
        let bench = try ControllerBench.threeNodes()
        bench.step(
            .operationRequest(
                RequestID(1), .configure(name: "groups.empty.after", value: "1s")))
        bench.step(
            .tableRequest(
                RequestID(2), ControllerSimulationTests.create("one", replicas: 1)))
        /// Every command succeeds.
        func answer(_ effects: [ControllerEffect]) {
            for command in effects.commands {
                let outcome = CommandOutcome(
                    id: command.id, controllerTerm: bench.controller.term, error: nil)
                answer(bench.step(.outcomes(command.connection, [outcome])))
            }
        }
        func beat() {
            for node: UInt32 in 1...3 {
                var reports = [
                    ControllerBench.report(
                        replica: node, leads: node == 1, term: 1, last: (1, 10))
                ]
                for group in bench.controller.groups.elements
                where group.record.id != GroupID(1) {
                    for place in group.record.placements where place.node == NodeID(node) {
                        reports.append(
                            ControllerBench.report(
                                group: group.record.id.rawValue,
                                replica: place.replica.rawValue, leads: true, term: 1,
                                last: (1, 1)))
                    }
                }
                answer(bench.beat(UInt64(node), node: node, reports))
            }
        }
        for _ in 0..<10 {
            answer(bench.pass(.milliseconds(100)))
            beat()
        }
        let group = try #require(bench.controller.groups.last?.record)
        #expect(group.placements.count == 1)
        answer(bench.step(.tableRequest(RequestID(3), .drop(name: "one"))))
        var looks = 0
        while bench.controller.groups.last?.record.id == group.id, looks < 500 {
            looks += 1
            bench.holdsStores = false
            answer(bench.release())
            beat()
            bench.holdsStores = true
            answer(bench.pass(.milliseconds(20)))
        }
        #expect(bench.controller.groups.last?.record.id == GroupID(1))
        // Decided, not stored: its replica is not touched, and a table of its kind gets another.
        #expect(bench.store.durable.groups.count == 2)
        let sent = bench.pass(.milliseconds(500)).commands
        #expect(
            !sent.contains {
                if case .removeReplica = $0.action { true } else { false }
            })
        bench.step(
            .tableRequest(
                RequestID(4), ControllerSimulationTests.create("again", replicas: 1)))
        bench.holdsStores = false
        let effects = bench.release()
        #expect(
            effects.published.contains {
                if case .groupRemoved(group.id) = $0 { true } else { false }
            })
        #expect(bench.store.durable.retired.map(\.group) == [group.id])
        #expect(bench.store.durable.shards.allSatisfy { $0.group != group.id })
        #expect(bench.store.violations == [])
    }

    @Test func aProposalKeepsItsGroup() {
        let simulation = withEmptyGroup(seed: 5)
        configure(simulation, ("moves.max", "1"))
        simulation.operate(3, .move(ShardID(2), to: .group(GroupID(3))))
        simulation.operate(4, .pause(OperationID(3)))
        simulation.run(for: .seconds(60))
        #expect(groups(simulation) == [1, 2, 3])
        simulation.operate(5, .cancel(OperationID(3)))
        simulation.run(for: .seconds(9))
        #expect(groups(simulation) == [1, 2, 3], "its time begins anew")
        simulation.run(for: .seconds(10))
        #expect(groups(simulation) == [1, 2])
        ControllerSimulationTests.expectConverged(simulation, "paused")
    }

    @Test func groupsDoNotComeAndGoUnderAHotTable() {
        let simulation = HotShardTests.cluster(
            seed: 6, .even(40, rate: 200), nodes: 6, groups: 1
        ) { options in
            options.tickInterval = .milliseconds(100)
            options.beatInterval = .milliseconds(500)
            options.settings.nodeSuspectAfter = .seconds(2)
            options.settings.leaderlessGrace = .seconds(2)
            options.settings.nominationTimeout = .seconds(2)
        }
        configure(simulation, ("groups.empty.after", "60s"))
        simulation.run(for: .seconds(900))
        let formed = simulation.store.durable.ids.group - 1
        let dissolved = simulation.store.durable.decisions.count {
            $0.text.contains("is dissolved")
        }
        #expect(formed > 1, "the heat formed groups")
        #expect(
            dissolved == 0, "\(HotShardTests.why(simulation).filter { $0.contains("dissolved") })")
        let steps = HotShardTests.operations(simulation).count
        simulation.run(for: .seconds(900))
        #expect(simulation.store.durable.ids.group - 1 == formed)
        #expect(HotShardTests.operations(simulation).count == steps)
        ControllerSimulationTests.expectConverged(simulation, "hot")
    }

    @Test func aNodeThatWasAwayDeletesItsReplicaWhenItIsBack() {
        let simulation = withEmptyGroup(seed: 7)
        configure(simulation, ("repair", "off"))
        let away = simulation.nodes.firstIndex { node in
            node.replicas.contains { $0.group.id == GroupID(3) }
                && simulation.leader(of: GroupID(3)) != node.id
        }
        simulation.crash(node: away ?? 0)
        simulation.run(for: .seconds(20))
        #expect(groups(simulation) == [1, 2])
        #expect(simulation.store.durable.retired.count == 1)
        simulation.start(node: away ?? 0)
        simulation.run(for: .seconds(4))
        ControllerSimulationTests.expectConverged(simulation, "back")
    }
}
