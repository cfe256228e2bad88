// The router's rules, one by one: routing, retries, deadlines, order, bounds.

import KVBase
import RouterCore
import ShardCore
import Testing

@Suite struct RequestRouterTests {
    @Test func operationsOfATurnTravelInOneFramePerLeader() {
        var fixture = RouterFixture()
        for key in ["a", "z", "b", "y", "c"] { fixture.submit(.put, key, "v") }
        let seen = fixture.flush()
        #expect(seen.filter { $0.node == NodeID(1) }.map(\.key) == ["a", "b", "c"])
        #expect(seen.filter { $0.node == NodeID(2) }.map(\.key) == ["z", "y"])
        #expect(fixture.router.counters.frames == 2)
        #expect(fixture.flush().isEmpty)
    }

    @Test func anAnswerEndsItsOperationOnce() {
        var fixture = RouterFixture()
        let slot = fixture.submit(.put, "a", "v")
        let seen = fixture.flush()
        #expect(fixture.answer(seen[0]).slot == slot)
        #expect(fixture.answer(seen[0]) == .dropped)
        #expect(fixture.router.pendingOperations == 0)
        #expect(fixture.router.pendingBytes == 0)
        #expect(fixture.router.isIdle(fixture.client))
    }

    @Test func anotherNodesAnswerIsIgnored() {
        var fixture = RouterFixture()
        fixture.submit(.get, "a")
        var stolen = fixture.flush()[0]
        stolen.node = NodeID(2)
        #expect(fixture.answer(stolen) == .dropped)
    }

    @Test func notLeaderWithAHintGoesThereAtOnce() {
        var fixture = RouterFixture()
        let slot = fixture.submit(.put, "a", "v")
        let first = fixture.flush()[0]
        #expect(fixture.answer(first, .notLeader, hint: (Term(2), NodeID(3))) == .held)
        let second = fixture.flush()
        #expect(second.map(\.node) == [NodeID(3)])
        #expect(second[0].key == "a" && second[0].value == "v")
        #expect(fixture.answer(second[0]).slot == slot)
    }

    @Test func aHintOfAnOlderTermChangesNothing() {
        var fixture = RouterFixture()
        fixture.setLeader(of: 1, node: 2, term: 5)
        fixture.submit(.put, "a", "v")
        let first = fixture.flush()[0]
        #expect(first.node == NodeID(2))
        fixture.answer(first, .notLeader, hint: (Term(4), NodeID(3)))
        #expect(fixture.flush().isEmpty)
        fixture.wait(.milliseconds(5))
        #expect(fixture.flush().map(\.node) == [NodeID(2)])
    }

    @Test func unavailableWaitsLongerEachTime() {
        var fixture = RouterFixture()
        fixture.submit(.get, "a")
        for milliseconds in [5, 10, 20, 40, 50, 50] as [UInt64] {
            fixture.answer(fixture.flush()[0], .unavailable)
            #expect(fixture.router.nextWake == fixture.now + .milliseconds(milliseconds))
            fixture.wait(.milliseconds(milliseconds - 1))
            #expect(fixture.flush().isEmpty)
            fixture.wait(.milliseconds(1))
        }
        #expect(fixture.flush().count == 1)
    }

    @Test func aStaleEpochAsksForTheMapAndGoesOnWithIt() {
        var fixture = RouterFixture()
        let slot = fixture.submit(.put, "a", "v")
        #expect(fixture.answer(fixture.flush()[0], .staleEpoch) == .held)
        #expect(fixture.effects.wantsMapRefresh)
        let isTaken = fixture.router.apply(
            RouterFixture.fullMap(revision: 2, epoch: 7), now: fixture.now,
            into: &fixture.effects)
        #expect(isTaken)
        let seen = fixture.flush()
        #expect(seen.map(\.epoch) == [Epoch(7)])
        #expect(fixture.answer(seen[0]).slot == slot)
    }

    @Test func aStaleListIsPlannedAnewByItsOwner() {
        var fixture = RouterFixture()
        let slot = fixture.submit(.list, "a")
        fixture.answer(fixture.flush()[0], .staleEpoch)
        #expect(fixture.takeFailures().isEmpty)
        fixture.wait(.milliseconds(50))
        #expect(fixture.takeFailures() == [slot: .staleEpoch])
        #expect(fixture.flush().isEmpty)
    }

    @Test func withoutALeaderOperationsWaitUntilThereIsOne() {
        var fixture = RouterFixture()
        fixture.setLeader(of: 1, node: 0, term: 2)
        let slot = fixture.submit(.put, "a", "v")
        fixture.wait(.seconds(1))
        #expect(fixture.flush().isEmpty)
        fixture.setLeader(of: 1, node: 3, term: 3)
        let seen = fixture.flush()
        #expect(seen.map(\.node) == [NodeID(3)])
        #expect(fixture.answer(seen[0]).slot == slot)
    }

    @Test func whatWasNeverSentEndsAsNotApplied() {
        var fixture = RouterFixture(connected: [2])
        let slot = fixture.submit(.put, "a", "v")
        fixture.wait(.seconds(4))
        #expect(fixture.takeFailures().isEmpty)
        fixture.wait(.seconds(1))
        #expect(fixture.takeFailures() == [slot: .deadlineExceeded])
        #expect(fixture.router.pendingOperations == 0)
    }

    @Test func atTheDeadlineASentWriteIsUnknownAndASentReadIsNot() {
        var fixture = RouterFixture()
        let write = fixture.submit(.put, "a", "v")
        let read = fixture.submit(.get, "b")
        let seen = fixture.flush()
        fixture.wait(.seconds(5))
        #expect(fixture.takeFailures() == [write: .unknownOutcome, read: .deadlineExceeded])
        // The places stay taken: the late answers meet nobody.
        let later = fixture.submit(.put, "c", "v")
        let fresh = fixture.flush()[0]
        #expect(!seen.map(\.token).contains(fresh.token))
        #expect(fixture.answer(seen[0]) == .dropped)
        #expect(fixture.answer(seen[1]) == .dropped)
        #expect(fixture.router.counters.lateResponses == 2)
        #expect(fixture.answer(fresh).slot == later)
        #expect(fixture.router.pendingOperations == 0)
    }

    @Test func aRefusedWriteThatRunsOutOfTimeIsNotUnknown() {
        var fixture = RouterFixture()
        let slot = fixture.submit(.put, "a", "v")
        fixture.answer(fixture.flush()[0], .notLeader)
        fixture.setLeader(of: 1, node: 0, term: 2)
        fixture.wait(.seconds(5))
        #expect(fixture.takeFailures() == [slot: .deadlineExceeded])
    }

    @Test func aBrokenConnectionMakesWritesUnknownAndRepeatsReads() {
        var fixture = RouterFixture()
        let other = fixture.router.openClient()
        let write = fixture.submit(.put, "a", "v")
        let read = fixture.submit(.get, "b", client: other)
        _ = fixture.flush()
        let unsent = fixture.submit(.put, "c", "v", client: other)
        fixture.router.nodeDidClose(NodeID(1), now: fixture.now, into: &fixture.effects)
        #expect(fixture.takeFailures() == [write: .unknownOutcome])
        #expect(fixture.effects.unreachable == [NodeID(1)])
        #expect(fixture.flush().isEmpty)
        fixture.setLeader(of: 1, node: 2, term: 2)
        let seen = fixture.flush()
        #expect(seen.map(\.key) == ["b", "c"])
        #expect(fixture.answer(seen[0]).slot == read)
        #expect(fixture.answer(seen[1]).slot == unsent)
    }

    @Test func whatANodeLeftUndoneWhenItFinishedGoesToTheNextLeader() {
        var fixture = RouterFixture()
        let write = fixture.submit(.put, "a", "v")
        let answered = fixture.submit(.put, "b", "v")
        let seen = fixture.flush()
        #expect(fixture.answer(seen[1]).slot == answered)
        fixture.router.nodeDidClose(
            NodeID(1), hasFinished: true, now: fixture.now, into: &fixture.effects)
        fixture.router.nodeDidClose(NodeID(1), now: fixture.now, into: &fixture.effects)
        #expect(fixture.takeFailures().isEmpty)
        fixture.setLeader(of: 1, node: 2, term: 2)
        let again = fixture.flush()
        #expect(again.map(\.key) == ["a"])
        #expect(fixture.answer(again[0]).slot == write)
    }

    @Test func aShorterDeadlineIsForLaterOperationsAndKeepsTheirOrder() {
        var fixture = RouterFixture()
        let first = fixture.submit(.put, "a", "v")
        fixture.router.setRequestDeadline(.seconds(1))
        fixture.submit(.put, "b", "v")
        let seen = fixture.flush()
        fixture.wait(.milliseconds(4_500))
        #expect(fixture.takeFailures().isEmpty)
        let third = fixture.submit(.put, "c", "v")
        let verdict = fixture.router.receive(
            from: NodeID(1), token: seen[1].token, error: nil, hint: nil, now: fixture.now,
            into: &fixture.effects)
        guard case .deliver(_, _, let submitted) = verdict else {
            Issue.record("not delivered: \(verdict)")
            return
        }
        #expect(fixture.now - submitted == .milliseconds(4_500))
        _ = fixture.flush()
        fixture.wait(.milliseconds(500))
        #expect(fixture.takeFailures() == [first: .unknownOutcome])
        fixture.wait(.milliseconds(500))
        #expect(fixture.takeFailures() == [third: .unknownOutcome])
    }

    @Test func anAnswerOfAnOldConnectionIsIgnored() {
        var fixture = RouterFixture()
        fixture.submit(.get, "a")
        let old = fixture.flush()[0]
        fixture.router.nodeDidClose(NodeID(1), now: fixture.now, into: &fixture.effects)
        #expect(fixture.answer(old) == .dropped)
        fixture.router.nodeDidOpen(NodeID(1), now: fixture.now, into: &fixture.effects)
        #expect(fixture.flush().count == 1)
    }

    @Test func laterOperationsOfAClientStayBehindAHeldOne() {
        var fixture = RouterFixture()
        fixture.setLeader(of: 1, node: 0, term: 2)
        fixture.submit(.put, "a", "1")
        fixture.submit(.put, "z", "2")
        fixture.submit(.put, "a", "3")
        let other = fixture.router.openClient()
        fixture.submit(.put, "z", "4", client: other)
        #expect(fixture.flush().map(\.value) == ["4"])
        fixture.setLeader(of: 1, node: 1, term: 3)
        // "3" stays until "1" is answered: the two might meet different leaders.
        let seen = fixture.flush()
        #expect(seen.map(\.value) == ["1", "2"])
        for operation in seen { fixture.answer(operation) }
        #expect(fixture.flush().map(\.value) == ["3"])
    }

    @Test func aRefusedWriteThatWasOvertakenIsNotApplied() {
        var fixture = RouterFixture()
        let first = fixture.submit(.put, "a", "1")
        let second = fixture.submit(.put, "a", "2")
        let seen = fixture.flush()
        fixture.answer(seen[0], .unavailable)
        #expect(fixture.answer(seen[1]).slot == second)
        #expect(fixture.takeFailures() == [first: .unavailable])
        fixture.wait(.seconds(1))
        #expect(fixture.flush().isEmpty)
    }

    @Test func aHungNodesReadsMoveToTheNewLeader() {
        var fixture = RouterFixture()
        let slot = fixture.submit(.get, "a")
        let old = fixture.flush()[0]
        fixture.setLeader(of: 1, node: 3, term: 2)
        let seen = fixture.flush()
        #expect(seen.map(\.node) == [NodeID(3)])
        #expect(fixture.answer(old) == .dropped)
        #expect(fixture.answer(seen[0]).slot == slot)
        #expect(fixture.router.pendingOperations == 0 && fixture.router.pendingBytes == 0)
    }

    @Test func aClientThatLeavesLeavesNothingBehind() {
        var fixture = RouterFixture()
        let leaving = fixture.router.openClient()
        fixture.submit(.put, "a", "v", client: leaving)
        let seen = fixture.flush()
        fixture.setLeader(of: 2, node: 0, term: 2)
        fixture.submit(.put, "z", "v", client: leaving)
        fixture.router.closeClient(leaving)
        #expect(fixture.router.pendingOperations == 1)
        let successor = fixture.router.openClient()
        #expect(successor == leaving)
        #expect(fixture.answer(seen[0]) == .dropped)
        #expect(fixture.router.pendingOperations == 0)
        fixture.setLeader(of: 2, node: 2, term: 3)
        #expect(fixture.flush().isEmpty)
    }

    @Test func overTheBoundsTheAnswerIsOverloaded() {
        var tuning = RouterTuning()
        tuning.nodePendingBytesMax = 200
        tuning.pendingBytesMax = 300
        var fixture = RouterFixture(tuning: tuning)
        let value = String(repeating: "v", count: 100)
        fixture.submit(.put, "a", value)
        #expect(fixture.trySubmit(.put, "b", value)?.code == .overloaded)
        fixture.submit(.put, "y", value)
        #expect(fixture.trySubmit(.get, "z", value)?.code == .overloaded)
        for operation in fixture.flush() { fixture.answer(operation) }
        fixture.submit(.put, "b", value)
    }

    @Test func aLargeTurnIsCutIntoFrames() {
        var tuning = RouterTuning()
        tuning.frameBytesTarget = 1_000
        var fixture = RouterFixture(tuning: tuning)
        let value = String(repeating: "v", count: 400)
        for number in 0..<10 { fixture.submit(.put, "a\(number)", value) }
        #expect(fixture.flush().map(\.key) == (0..<10).map { "a\($0)" })
        #expect(fixture.router.counters.frames == 4)
    }

    /// Nodes that answer anything, break and change their leaders: every operation ends exactly
    /// once, a write is never sent again after it may have been applied, and the writes of one
    /// client to one key take effect in order.
    @Test(arguments: 1...40 as ClosedRange<UInt64>)
    func anyOrderOfEventsEndsEveryOperationOnce(seed: UInt64) {
        var random = SeededRandom(seed: seed)
        var fixture = RouterFixture()
        var open: Set<UInt32> = []
        var ended: Set<UInt32> = []
        var atNodes: [SeenOperation] = []
        var values: [UInt32: (key: String, value: String)] = [:]
        var applied: [String: [UInt32]] = [:]
        var appliedSlots: Set<UInt32> = []
        var failed: Set<UInt32> = []
        var isUp = [true, true, true]
        var term: UInt64 = 1
        func end(_ slot: UInt32) {
            #expect(open.remove(slot) != nil && ended.insert(slot).inserted, "slot \(slot)")
        }
        for _ in 0..<2_000 {
            switch random.below(10) {
            case 0...3:
                let key = ["a", "b", "y", "z"][Int(random.below(4))]
                let value = "\(random.next())"
                let slot = fixture.submit(random.chance(1, in: 3) ? .get : .put, key, value)
                open.insert(slot)
                values[slot] = (key, value)
            case 4...6 where !atNodes.isEmpty:
                // In order per node, as a connection delivers them.
                let node = atNodes[Int(random.below(UInt64(atNodes.count)))].node
                let place = atNodes.firstIndex { $0.node == node }!
                let operation = atNodes.remove(at: place)
                if random.chance(1, in: 4) {
                    let next = NodeID(UInt32(1 + random.below(3)))
                    fixture.answer(operation, .notLeader, hint: (Term(term), next))
                } else {
                    if operation.code == .put {
                        let slot = values.first { $0.value.value == operation.value }!.key
                        #expect(appliedSlots.insert(slot).inserted, "slot \(slot) applied twice")
                        applied[operation.key, default: []].append(slot)
                    }
                    if let slot = fixture.answer(operation).slot { end(slot) }
                }
            case 7 where random.chance(1, in: 4):
                let node = Int(random.below(3))
                let id = NodeID(UInt32(node + 1))
                if isUp[node] {
                    atNodes.removeAll { $0.node == id }
                    fixture.router.nodeDidClose(id, now: fixture.now, into: &fixture.effects)
                } else {
                    fixture.router.nodeDidOpen(id, now: fixture.now, into: &fixture.effects)
                }
                isUp[node].toggle()
            case 8 where random.chance(1, in: 4):
                term += 1
                fixture.setLeader(
                    of: UInt32(1 + random.below(2)), node: UInt32(random.below(4)), term: term)
            default:
                fixture.wait(.milliseconds(random.below(20)))
            }
            atNodes += fixture.flush()
            for slot in fixture.takeFailures().keys {
                end(slot)
                failed.insert(slot)
            }
        }
        fixture.wait(.seconds(6))
        for slot in fixture.takeFailures().keys { end(slot) }
        #expect(open.isEmpty, "seed \(seed)")
        for (key, all) in applied {
            // A write of unknown outcome may take effect late.
            let slots = all.filter { !failed.contains($0) }
            #expect(slots == slots.sorted(), "order of \(key) with seed \(seed)")
        }
    }
}
