// Nodes that are heard but not well.

import KVBase
import ShardCore
import Testing

@testable import ControllerCore

@Suite struct IllnessTests {
    typealias Bench = ControllerBench

    private static func disk(_ state: DiskReport.State, log: Nanoseconds = .zero) -> DiskReport {
        DiskReport(
            path: "/disk", state: state, totalBytes: 1 << 40, freeBytes: 1 << 40, dataBytes: 0,
            logDelay: log)
    }

    private static let slow = disk(.slow, log: .milliseconds(612))

    /// Heartbeats of all three nodes; node 1 leads unless `leader` says otherwise.
    @discardableResult
    private func beatAll(
        _ bench: Bench, leader: UInt32? = 1, term: UInt64 = 1, slow: [UInt32] = [1]
    ) -> [ControllerEffect] {
        var effects: [ControllerEffect] = []
        for node: UInt32 in 1...3 {
            effects += bench.beat(
                UInt64(node), node: node,
                [Bench.report(replica: node, leads: node == leader, term: term, last: (term, 10))],
                disks: [slow.contains(node) ? Self.slow : Self.disk(.healthy)])
        }
        return effects
    }

    private func transfers(_ effects: [ControllerEffect]) -> [ReplicaID] {
        effects.commands.compactMap {
            if case .transferLeadership(_, let to) = $0.action { to } else { nil }
        }
    }

    private func state(_ bench: Bench, _ node: UInt32) -> String? {
        bench.controller.nodes[NodeID(node)]?.stateName
    }

    @Test func aLeaderOnASlowDiskIsAskedToHandOverAtOnce() throws {
        let bench = try Bench.threeNodes()
        let effects = beatAll(bench)
        #expect(state(bench, 1) == "ill")
        #expect(transfers(effects) == [ReplicaID(2)])
        #expect(effects.nominations.isEmpty)
        #expect(bench.controller.nodes[NodeID(1)]?.isLive == true)
        let texts = bench.store.durable.decisions.map(\.text)
        #expect(
            texts.contains { $0.contains("is ill: its disk /disk takes 612 ms for a write") })
        #expect(texts.contains { $0.contains("moves the leaders of groups 1 off node-1") })
    }

    @Test func aLeaderThatDoesNotGoIsAskedForTheOtherThenReplaced() throws {
        let bench = try Bench.threeNodes()
        var effects = beatAll(bench)
        for _ in 0..<12 {
            effects += bench.pass(.milliseconds(120))
            effects += beatAll(bench)
        }
        #expect(transfers(effects) == [ReplicaID(2), ReplicaID(3)])
        #expect(effects.nominations.map(\.term) == [Term(2)])
        #expect(effects.nominations.first?.replica != ReplicaID(1))
        // It goes after all: the attempt in its place is over.
        beatAll(bench, leader: 2, term: 2)
        #expect(bench.controller.groups[GroupID(1)]?.attempt == nil)
        #expect(bench.controller.nodes.elements.allSatisfy { $0.pledges == 0 })
        effects = bench.pass(.milliseconds(120)) + beatAll(bench, leader: 2, term: 2)
        #expect(transfers(effects).isEmpty && effects.nominations.isEmpty)
    }

    @Test func withoutAFitMajorityTheLeaderStays() throws {
        let bench = try Bench.threeNodes()
        var effects = beatAll(bench, slow: [1, 3])
        for _ in 0..<20 {
            effects += bench.pass(.milliseconds(120))
            effects += beatAll(bench, slow: [1, 3])
        }
        // The first report is of node 1 alone.
        #expect(transfers(effects).count <= 1)
        #expect(effects.nominations.isEmpty)
        // Node 3 gets well: now there is somewhere to go.
        var later: [ControllerEffect] = []
        for _ in 0..<100 {
            later += bench.pass(.milliseconds(120))
            later += beatAll(bench)
        }
        #expect(!transfers(later).isEmpty)
    }

    @Test func anIllReplicaIsNominatedOnlyWhenItsVoteIsNeeded() throws {
        let bench = try Bench.threeNodes()
        // Node 2 is ill and has the longest log.
        for node: UInt32 in 1...3 {
            bench.beat(
                UInt64(node), node: node,
                [
                    Bench.report(
                        replica: node, leads: node == 1, term: 1, last: (1, node == 2 ? 12 : 10))
                ], disks: [node == 2 ? Self.slow : Self.disk(.healthy)])
        }
        let effects = bench.step(.connectionClosed(ConnectionID(1)))
        // Nodes 2 and 3 are left: only together they are a majority, and 2 must win.
        #expect(effects.nominations.map(\.replica) == [ReplicaID(2)])
    }

    @Test func aSuspectNodesLeaderGoesToAFitReplica() throws {
        var settings = ControllerSettings(name: "controller-1")
        settings.groupsInitial = 1
        settings.replicasDefault = 5
        let bench = try Bench(settings)
        func beat(leader: UInt32?, slow: UInt32? = nil) {
            for node: UInt32 in 1...5 {
                let index: UInt64 = node == slow ? 12 : 10
                bench.beat(
                    UInt64(node), node: node,
                    bench.controller.groups.isEmpty
                        ? []
                        : [
                            Bench.report(
                                replica: node, leads: node == leader,
                                term: leader == nil ? 0 : 1,
                                last: leader == nil ? (0, 0) : (1, index))
                        ], disks: [node == slow ? Self.slow : Self.disk(.healthy)])
            }
        }
        for node: UInt32 in 1...5 {
            bench.register(UInt64(node), Bench.registration("node-\(node)"))
        }
        for _ in 0..<8 {
            beat(leader: nil)
            bench.pass(.milliseconds(100))
        }
        beat(leader: 1, slow: 2)
        let effects = bench.step(.connectionClosed(ConnectionID(1)))
        // Replica 2 is ahead, but 3, 4 and 5 are a majority without it.
        #expect(effects.nominations.map(\.replica) == [ReplicaID(3)])
    }

    @Test func aNodeIsWellAgainAfterGoodReportsForAWhile() throws {
        let bench = try Bench.threeNodes()
        beatAll(bench)
        beatAll(bench, leader: 2, term: 2)
        let began = bench.now
        while bench.now < began + .milliseconds(9_500) {
            bench.pass(.milliseconds(120))
            beatAll(bench, leader: 2, term: 2, slow: [])
            #expect(state(bench, 1) == "ill")
        }
        // One bad report starts the while anew, and the illness goes on.
        beatAll(bench, leader: 2, term: 2)
        let since = bench.controller.nodes[NodeID(1)]?.illness?.since
        #expect(since.map { $0 < bench.now } == true)
        for _ in 0..<90 {
            bench.pass(.milliseconds(120))
            beatAll(bench, leader: 2, term: 2, slow: [])
        }
        #expect(state(bench, 1) == "up")
        let texts = bench.store.durable.decisions.map(\.text)
        #expect(texts.count { $0.contains("node-1 is ill") } == 1)
        #expect(texts.contains { $0.contains("node-1 is well again: good reports for 10000 ms") })
    }

    @Test func aLoopThatStoodStillMakesTheWholeNodeIll() throws {
        let bench = try Bench.threeNodes()
        let effects = bench.beat(
            1, node: 1, [Bench.report(replica: 1, leads: true, term: 1, last: (1, 10))],
            loopDelay: .milliseconds(1_700))
        #expect(state(bench, 1) == "ill")
        #expect(transfers(effects).count == 1)
        let illness = bench.controller.nodes[NodeID(1)]?.illness
        #expect(illness?.reason == "its event loop stood still for 1700 ms")
        #expect(bench.controller.nodes[NodeID(1)]?.isEligible == false)
    }

    @Test func aRestartedProcessIsJudgedAnew() throws {
        let bench = try Bench.threeNodes()
        beatAll(bench)
        bench.step(.connectionClosed(ConnectionID(1)))
        bench.register(
            7, Bench.registration("node-1", node: NodeID(1), cluster: 0xC1, incarnation: 2))
        bench.beat(
            7, node: 1, incarnation: 2, [Bench.report(replica: 1, term: 1, last: (1, 10))],
            disks: [Self.disk(.healthy)])
        #expect(state(bench, 1) == "up")
    }

    @Test func aNodeThatIsIllForLongIsReplacedUntilItIsWell() throws {
        let bench = try Bench.threeNodes()
        func report(_ node: UInt32) -> ReplicaReport {
            Bench.report(replica: node, leads: node == 2, term: 2, last: (2, 10))
        }
        func beatAll(isSlow: Bool) {
            for node: UInt32 in 1...3 {
                bench.beat(
                    UInt64(node), node: node, [report(node)],
                    disks: [node == 1 && isSlow ? Self.slow : Self.disk(.healthy)])
            }
            bench.beat(4, node: 4, disks: [Self.disk(.healthy)])
        }
        bench.register(4, Bench.registration("node-4", isSpare: true))
        beatAll(isSlow: true)
        func replacement() -> OperationRecord? {
            bench.store.durable.operations.first { $0.kind == .replaceReplica }
        }
        let began = bench.now
        while bench.now < began + .milliseconds(29_500) {
            bench.pass(.milliseconds(120))
            beatAll(isSlow: true)
            #expect(replacement() == nil)
        }
        for _ in 0..<20 {
            bench.pass(.milliseconds(120))
            beatAll(isSlow: true)
        }
        let operation = try #require(replacement())
        #expect(operation.origin == "repair" && operation.old.node == NodeID(1))
        #expect(operation.new.node == NodeID(4))
        #expect(operation.reason.contains("node-1 is ill for 30 s: its disk /disk"))
        #expect(!operation.isFinished)
        // Before the swap it gets well: it keeps its place.
        for _ in 0..<100 {
            bench.pass(.milliseconds(120))
            beatAll(isSlow: false)
        }
        #expect(replacement()?.isCancelled == true)
    }

    // MARK: Simulation

    @Test func leadersLeaveAnIllNodeAndItsReplicasFollowThem() {
        var options = ClusterSimulation.Options()
        options.nodes = 3
        options.spares = 1
        let simulation = ClusterSimulation(seed: 5, options)
        simulation.run(for: .seconds(4))
        simulation.nodes[0].loopDelay = .seconds(2)
        simulation.run(for: .seconds(1))
        #expect(simulation.nodes[0].leads.isEmpty)
        #expect(simulation.nodes[0].replicas.count == 2)
        simulation.run(for: .seconds(45))
        #expect(simulation.nodes[0].replicas.isEmpty)
        simulation.nodes[0].loopDelay = .zero
        simulation.run(for: .seconds(15))
        #expect(simulation.controller?.nodes[simulation.nodes[0].id]?.stateName == "up")
        ControllerSimulationTests.expectConverged(simulation, "ill for long")
    }

    @Test(arguments: 1...20 as ClosedRange<UInt64>)
    func survivesIllnessAmongOtherFaults(seed: UInt64) {
        var draw = SeededRandom(seed: seed &+ 9_000)
        var options = ClusterSimulation.Options()
        options.nodes = 3 + Int(draw.below(3))
        options.spares = 1 + Int(draw.below(2))
        options.settings.illAfter = .seconds(3)
        options.settings.wellAfter = .seconds(1)
        options.settings.repairAfter = .seconds(1)
        options.settings.nodeDownAfter = .seconds(2)
        options.lostPerMille = draw.chance(1, in: 2) ? draw.below(100) : 0
        let simulation = ClusterSimulation(seed: seed, options)
        simulation.run(for: .seconds(4))
        for _ in 0..<50 {
            simulation.run(for: .milliseconds(draw.below(900)))
            let node = Int(draw.below(UInt64(simulation.nodes.count)))
            switch draw.below(8) {
            case 0: simulation.crash(node: node)
            case 1, 2: simulation.start(node: node)
            case 3, 4, 5: simulation.nodes[node].loopDelay = .seconds(2)
            case 6: simulation.nodes[node].loopDelay = .zero
            default: simulation.crashController()
            }
        }
        simulation.lostPerMille = 0
        for index in simulation.nodes.indices {
            simulation.nodes[index].loopDelay = .zero
            simulation.start(node: index)
        }
        simulation.run(for: .seconds(30))
        ControllerSimulationTests.expectConverged(simulation, "seed \(seed)")
    }

    // MARK: Who is gone

    @Test func afterARestartOfTheControllerADeadLeaderIsNotWaitedFor() throws {
        let bench = try Bench.threeNodes()
        let settings = bench.controller.settings
        func restarted() throws -> Bench {
            let next = try Bench(settings)
            next.store = bench.store
            next.now = bench.now + .seconds(1)
            next.controller = try Controller(
                settings: settings, snapshot: next.store.snapshot, lease: LeaseID(2),
                clusterCandidate: 0xC2, now: next.now)
            next.step(.start)
            for node: UInt32 in 2...3 {
                next.register(
                    UInt64(node),
                    Bench.registration("node-\(node)", node: NodeID(node), cluster: 0xC1))
            }
            return next
        }
        func nominated(_ bench: Bench, within duration: Nanoseconds) -> Bool {
            let end = bench.now + duration
            while bench.now < end {
                for node: UInt32 in 2...3 {
                    bench.beat(
                        UInt64(node), node: node,
                        [Bench.report(replica: node, term: 1, last: (1, 10))])
                }
                if !bench.pass(.milliseconds(100)).nominations.isEmpty { return true }
            }
            return false
        }
        // Nobody knows where node 1 is: it may come back with its leader.
        #expect(try !nominated(restarted(), within: .milliseconds(1_500)))
        // One report is not enough, two are.
        let one = try restarted()
        one.step(.unreachable(ConnectionID(2), node: NodeID(1)))
        #expect(!nominated(one, within: .milliseconds(1_500)))
        let two = try restarted()
        two.step(.unreachable(ConnectionID(2), node: NodeID(1)))
        two.step(.unreachable(ConnectionID(50), node: NodeID(1)))
        #expect(nominated(two, within: .milliseconds(700)))
    }

    @Test func aRoutersReportCountsLikeAPeers() throws {
        let bench = try Bench.threeNodes()
        // Connection 50 belongs to a router: no node registered on it.
        bench.step(.unreachable(ConnectionID(50), node: NodeID(1)))
        #expect(bench.controller.nodes[NodeID(1)]?.health == .up)
        let effects = bench.step(.unreachable(ConnectionID(2), node: NodeID(1)))
        #expect(effects.nominations.count == 1)
    }
}
