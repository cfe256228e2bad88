// Who is nominated, when, and who is left in peace.

import KVBase
import ShardCore
import Testing

@testable import ControllerCore

@Suite struct LeadershipTests {
    typealias Bench = ControllerBench

    @Test func aNewGroupIsFormedNominatedAndActivated() throws {
        let bench = try Bench.threeNodes()
        let group = try #require(bench.controller.groups[GroupID(1)])
        #expect(group.record.state == .active)
        #expect(group.leader == GroupLeader(group: GroupID(1), term: Term(1), node: NodeID(1)))
        #expect(bench.store.durable.groups.first?.isComplete == true)
        #expect(bench.store.violations == [])
    }

    @Test func aLostLeaderIsFollowedByTheMostUpToDateReplica() throws {
        let bench = try Bench.threeNodes()
        bench.beat(3, node: 3, [Bench.report(replica: 3, term: 1, last: (1, 12))])
        bench.holdsStores = true
        let before = bench.step(.connectionClosed(ConnectionID(1)))
        #expect(before.nominations.isEmpty, "a nomination is stored before it is told")
        #expect(
            before.published == [
                .leader(GroupLeader(group: GroupID(1), term: Term(1), node: .none))
            ])
        let nominations = bench.release().nominations
        #expect(nominations.map(\.replica) == [ReplicaID(3)])
        #expect(nominations.map(\.term) == [Term(2)])
        #expect(bench.store.durable.nominations.first?.1.term == Term(2))
    }

    @Test func aNomineeThatDoesNotLeadIsFollowedByTheNext() throws {
        let bench = try Bench.threeNodes()
        #expect(
            bench.step(.connectionClosed(ConnectionID(1))).nominations.map(\.replica) == [
                ReplicaID(2)
            ])
        var later: [ControllerEffect] = []
        for _ in 0..<4 {
            later += bench.pass(.milliseconds(120))
            for node: UInt32 in 2...3 {
                later += bench.beat(
                    UInt64(node), node: node, [Bench.report(replica: node, term: 1, last: (1, 10))])
            }
        }
        #expect(later.nominations.map(\.replica) == [ReplicaID(3)])
        #expect(later.nominations.map(\.term) == [Term(3)])
    }

    @Test func aNomineeShownToBeBehindIsReplacedBeforeItsTimeIsUp() throws {
        let bench = try Bench.threeNodes()
        bench.step(.connectionClosed(ConnectionID(1)))
        bench.now = bench.now + .milliseconds(30)
        bench.beat(2, node: 2, [Bench.report(replica: 2, term: 2, last: (1, 10))])
        let effects = bench.beat(3, node: 3, [Bench.report(replica: 3, term: 2, last: (1, 11))])
        #expect(effects.nominations.map(\.replica) == [ReplicaID(3)])
        #expect(effects.nominations.map(\.term) == [Term(3)])
    }

    @Test func aWinnerThatItsFollowersTellOfFirstIsNotTakenForBehind() throws {
        let bench = try Bench.threeNodes()
        bench.step(.connectionClosed(ConnectionID(1)))
        bench.now = bench.now + .milliseconds(10)
        bench.beat(2, node: 2, [Bench.report(replica: 2, term: 2, last: (1, 10))])
        let effects = bench.beat(3, node: 3, [Bench.report(replica: 3, term: 2, last: (2, 11))])
        #expect(effects.nominations.isEmpty)
    }

    @Test func withoutAMajorityNobodyIsNominated() throws {
        let bench = try Bench.threeNodes()
        bench.step(.connectionClosed(ConnectionID(2)))
        bench.step(.connectionClosed(ConnectionID(1)))
        let effects = bench.pass(.seconds(3))
        #expect(effects.nominations.isEmpty)
        // The second voter comes back: at once.
        bench.register(
            7, Bench.registration("node-2", node: NodeID(2), cluster: 0xC1, incarnation: 2))
        bench.beat(3, node: 3, [Bench.report(replica: 3, term: 1, last: (1, 10))])
        let back =
            bench.beat(
                7, node: 2, incarnation: 2, [Bench.report(replica: 2, term: 1, last: (1, 10))])
            + bench.pass(.milliseconds(20))
        #expect(back.nominations.count == 1)
    }

    @Test func oneReportOfAnUnreachablePeerWaitsForTheNextHeartbeat() throws {
        let bench = try Bench.threeNodes()
        bench.now = bench.now + .milliseconds(50)
        #expect(
            bench.step(.unreachable(ConnectionID(2), node: NodeID(1))).nominations.isEmpty)
        bench.beat(1, node: 1, [Bench.report(replica: 1, leads: true, term: 1, last: (1, 10))])
        #expect(bench.pass(.milliseconds(160)).nominations.isEmpty)
        // Overdue.
        bench.step(.unreachable(ConnectionID(2), node: NodeID(1)))
        #expect(bench.pass(.milliseconds(100)).nominations.count == 1)
    }

    @Test func twoReportsOfAnUnreachablePeerCountAtOnce() throws {
        let bench = try Bench.threeNodes()
        bench.step(.unreachable(ConnectionID(2), node: NodeID(1)))
        let effects = bench.step(.unreachable(ConnectionID(3), node: NodeID(1)))
        #expect(effects.nominations.count == 1)
        #expect(bench.controller.nodes[NodeID(1)]?.health == .suspect)
    }

    @Test func silenceMakesSuspectThenDown() throws {
        let bench = try Bench.threeNodes()
        func beatOthers() {
            for node: UInt32 in 2...3 {
                bench.beat(
                    UInt64(node), node: node, [Bench.report(replica: node, term: 1, last: (1, 10))])
            }
        }
        var nominations = 0
        for _ in 0..<6 {
            nominations += bench.pass(.milliseconds(120)).nominations.count
            beatOthers()
        }
        #expect(bench.controller.nodes[NodeID(1)]?.health == .suspect)
        #expect(nominations == 1)
        for _ in 0..<50 {
            bench.pass(.milliseconds(100))
            beatOthers()
        }
        #expect(bench.controller.nodes[NodeID(1)]?.health == .down)
    }

    @Test func aHeartbeatingLeaderIsLeftAlone() throws {
        let bench = try Bench.threeNodes()
        var effects: [ControllerEffect] = []
        for index in 0..<40 {
            effects += bench.pass(.milliseconds(140))
            effects += bench.beat(
                1, node: 1, [Bench.report(replica: 1, leads: true, term: 1, last: (1, 10))])
            // One follower is silent, the other one flaps.
            if index % 9 == 0 {
                effects += bench.step(.connectionClosed(ConnectionID(UInt64(100 + index))))
            }
        }
        #expect(effects.nominations.isEmpty)
        #expect(bench.controller.groups[GroupID(1)]?.leader.node == NodeID(1))
    }

    @Test func outcomesOfAnotherTermAreIgnored() throws {
        let bench = try Bench.threeNodes()
        let create = TableRequest.create(
            name: "t", partitioning: .range, engine: .lsm, replicas: nil, splitPoints: [],
            ifMissing: false)
        let effects = bench.step(.tableRequest(RequestID(1), create))
        let sent = try #require(effects.commands.first)
        var outcome = CommandOutcome(id: sent.id, controllerTerm: Term(9), error: nil)
        #expect(
            bench.step(.outcomes(sent.connection, [outcome])).answers.isEmpty)
        outcome.controllerTerm = Term(1)
        let done = bench.step(.outcomes(sent.connection, [outcome]))
        #expect(done.answers == [nil])
        // The map goes out before the answer.
        let published = done.position { if case .publish = $0 { true } else { false } }
        let answered = done.position { if case .answer = $0 { true } else { false } }
        #expect(try #require(published) < (try #require(answered)))
    }
}
