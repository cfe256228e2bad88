// Single replicas against hand-made events: hostile messages, bounds, restarts.

import KVBase
import ReplicationCore
import Testing

private func member(_ id: UInt32) -> Member { Member(replica: ReplicaID(id), node: NodeID(id)) }

private func entries(_ range: ClosedRange<UInt64>, term: UInt64) -> [LogEntry] {
    range.map {
        LogEntry(term: Term(term), index: LogIndex($0), kind: .command, payload: [UInt8($0)])
    }
}

private let start = Instant(nanoseconds: 1_000_000_000)

/// A replica whose disk answers at once.
private struct Driven {
    var replica: Replica
    var effects = Effects()
    var now = start

    init(id: UInt32 = 1, voters: [UInt32] = [1, 2, 3], tuning: Tuning = Tuning(), term: UInt64 = 0)
    {
        let restored = RestoredState(
            hardState: HardState(term: Term(term)), applied: LogPosition(),
            membership: Membership(voters: voters.map(member)), entries: [],
            compacted: LogPosition())
        replica = Replica(
            group: GroupID(1), id: ReplicaID(id), tuning: tuning, restored: restored, seed: 1,
            now: start)
    }

    mutating func step(_ event: Event) {
        effects.removeAll()
        replica.step(event, now: now, into: &effects)
        var answered = 0
        var delivered = 0
        while answered < effects.persists.count || delivered < effects.committed.count {
            while answered < effects.persists.count {
                let ticket = effects.persists[answered].ticket
                answered += 1
                replica.step(.persisted(ticket), now: now, into: &effects)
            }
            delivered = effects.committed.count
            if let last = effects.committed.last {
                replica.step(.applied(last.index), now: now, into: &effects)
            }
        }
    }

    mutating func receive(_ message: Message, from: UInt32 = 2) {
        step(.message(from: ReplicaID(from), message))
    }

    mutating func lead() {
        step(.nominate(replica.term.next()))
        for voter in replica.membership.voters where voter.replica != replica.id {
            receive(
                .voteResponse(
                    term: replica.term, isPreVote: false, granted: true, retryAfter: .zero),
                from: voter.replica.rawValue)
        }
        let match = replica.lastPosition.index
        for voter in replica.membership.voters where voter.replica != replica.id {
            receive(
                .appendResponse(
                    term: replica.term, accepted: true, match: match, hint: LogPosition()),
                from: voter.replica.rawValue)
        }
    }
}

struct ReplicaTests {
    @Test func aGroupOfOneLeadsByItself() {
        var one = Driven(voters: [1])
        one.step(.nominate(Term(1)))
        #expect(one.replica.role == .leader)
        #expect(one.replica.canServeReads(at: one.now))
        one.step(.propose([[1], [2]]))
        #expect(one.replica.commit == LogIndex(3))
        one.step(.read(token: 7, .quorum))
        #expect(one.effects.readsReady.map(\.token) == [7])
    }

    @Test func aBatchTakesConsecutiveIndexesAndOneMessagePerFollower() {
        var leader = Driven()
        leader.lead()
        leader.step(.propose([[1], [2], [3]]))
        #expect(leader.effects.proposed?.first == LogIndex(2))
        #expect(leader.effects.proposed?.count == 3)
        let appends = leader.effects.messages.filter { item in
            if case .append(_, _, let entries, _) = item.message { return entries.count == 3 }
            return false
        }
        #expect(appends.map(\.to) == [ReplicaID(2), ReplicaID(3)])
    }

    @Test func proposalsStopAtTheBoundOfUncommittedBytes() {
        var tuning = Tuning()
        tuning.uncommittedBytesMax = 10
        var leader = Driven(tuning: tuning)
        leader.lead()
        leader.step(.propose([Bytes(repeating: 0, count: 10)]))
        #expect(!leader.effects.proposalsRefused)
        #expect(!leader.replica.canPropose)
        leader.step(.propose([[1]]))
        #expect(leader.effects.proposalsRefused)
        leader.receive(
            .appendResponse(
                term: leader.replica.term, accepted: true, match: LogIndex(2), hint: LogPosition()))
        #expect(leader.replica.canPropose)
    }

    @Test func answersFromOutsideTheGroupDoNotCount() {
        var leader = Driven()
        leader.lead()
        leader.step(.propose([[1]]))
        leader.receive(
            .appendResponse(
                term: leader.replica.term, accepted: true, match: LogIndex(2), hint: LogPosition()),
            from: 9)
        #expect(leader.replica.commit == LogIndex(1))
        leader.receive(
            .appendResponse(
                term: Term(99), accepted: false, match: .none, hint: LogPosition()), from: 9)
        #expect(leader.replica.role == .leader)
    }

    @Test func entriesOfOlderTermsCommitOnlyWithOneOfTheOwn() {
        var leader = Driven()
        leader.receive(
            .append(
                term: Term(1), previous: LogPosition(), entries: entries(1...2, term: 1),
                commit: .none))
        leader.step(.nominate(Term(2)))
        leader.receive(
            .voteResponse(term: Term(2), isPreVote: false, granted: true, retryAfter: .zero),
            from: 3)
        #expect(leader.replica.role == .leader)
        leader.receive(
            .appendResponse(
                term: Term(2), accepted: true, match: LogIndex(2), hint: LogPosition()), from: 3)
        #expect(leader.replica.commit == .none)
        leader.receive(
            .appendResponse(
                term: Term(2), accepted: true, match: LogIndex(3), hint: LogPosition()), from: 3)
        #expect(leader.replica.commit == LogIndex(3))
    }

    @Test func malformedAppendsChangeNothing() {
        var follower = Driven()
        let gap = entries(1...1, term: 1) + entries(3...3, term: 1)
        let future = entries(1...1, term: 5)
        let falling = entries(1...1, term: 2) + entries(2...2, term: 1)
        for batch in [gap, future, falling] {
            follower.receive(
                .append(
                    term: Term(3), previous: LogPosition(), entries: batch, commit: LogIndex(9)))
            #expect(follower.replica.lastPosition == LogPosition())
            #expect(follower.replica.commit == .none)
        }
        let membership = LogEntry(
            term: Term(3), index: LogIndex(1), kind: .membership, payload: [1, 2, 3])
        follower.receive(
            .append(
                term: Term(3), previous: LogPosition(), entries: [membership], commit: .none))
        #expect(follower.replica.lastPosition == LogPosition())
    }

    @Test func committedEntriesAreNeverReplaced() {
        var follower = Driven()
        follower.receive(
            .append(
                term: Term(1), previous: LogPosition(), entries: entries(1...3, term: 1),
                commit: LogIndex(2)))
        follower.receive(
            .append(
                term: Term(2), previous: LogPosition(), entries: entries(1...3, term: 2),
                commit: LogIndex(2)), from: 3)
        #expect(follower.replica.lastPosition == LogPosition(index: LogIndex(3), term: Term(1)))
    }

    @Test func acknowledgementsOfTheFutureAreIgnored() {
        var leader = Driven()
        leader.lead()
        leader.receive(
            .appendResponse(
                term: leader.replica.term, accepted: true, match: LogIndex(99),
                hint: LogPosition()))
        leader.receive(
            .heartbeatResponse(
                term: leader.replica.term, accepted: true, sentAt: leader.now + .seconds(9),
                round: 0, match: .none))
        #expect(leader.replica.commit == LogIndex(1))
        #expect(!leader.replica.canServeReads(at: leader.now))
    }

    @Test func theLeaseEndsBeforeTheFollowersPromise() {
        var leader = Driven()
        leader.lead()
        leader.receive(
            .heartbeatResponse(
                term: leader.replica.term, accepted: true, sentAt: start, round: 0,
                match: LogIndex(1)))
        let tuning = leader.replica.tuning
        let end = start + tuning.leaseDuration
        #expect(leader.replica.canServeReads(at: start))
        #expect(!leader.replica.canServeReads(at: end))
        let drift = Nanoseconds(tuning.leaseDuration.count * tuning.clockDriftPermille / 1_000)
        #expect(leader.replica.leaseExpiry(at: end) == start + (tuning.leaseDuration - drift))
    }

    @Test func aRestartRefusesVotesUntilAnyPromiseHasRunOut() {
        var voter = Driven(term: 4)
        let request = Message.voteRequest(
            term: Term(5), lastPosition: LogPosition(), isPreVote: false, leaseReleased: false)
        voter.receive(request)
        #expect(voter.replica.term == Term(4))
        voter.now = start + voter.replica.tuning.leaseDuration
        voter.receive(request)
        #expect(voter.replica.term == Term(5))
    }

    @Test func aLogThatDoesNotReachTheAppliedPositionIsReset() {
        let applied = LogPosition(index: LogIndex(9), term: Term(3))
        let restored = RestoredState(
            hardState: HardState(term: Term(3)), applied: applied,
            membership: Membership(voters: [member(1)]), entries: entries(1...4, term: 1),
            compacted: LogPosition())
        var replica = Replica(
            group: GroupID(1), id: ReplicaID(1), tuning: Tuning(), restored: restored, seed: 1,
            now: start)
        #expect(replica.lastPosition == applied)
        var effects = Effects()
        replica.step(.tick, now: start, into: &effects)
        #expect(effects.persists.first?.snapshot == applied)
    }

    @Test func appliedStateIsNeverAheadOfTheOwnDisk() {
        var follower = Driven()
        follower.replica.step(
            .message(
                from: ReplicaID(2),
                .append(
                    term: Term(1), previous: LogPosition(), entries: entries(1...2, term: 1),
                    commit: LogIndex(2))), now: start, into: &follower.effects)
        #expect(follower.effects.committed.isEmpty)
        #expect(follower.effects.messages.isEmpty)
        let ticket = follower.effects.persists[0].ticket
        follower.replica.step(.persisted(ticket), now: start, into: &follower.effects)
        #expect(follower.effects.committed.count == 2)
        #expect(follower.effects.messages.count == 1)
    }

    @Test func quorumReadsAreBoundedAndRefusedOnStepDown() {
        var tuning = Tuning()
        tuning.quorumReadsMax = 2
        var leader = Driven(tuning: tuning)
        leader.lead()
        for token in 1...3 { leader.step(.read(token: UInt64(token), .quorum)) }
        #expect(leader.effects.readsRefused.map(\.token) == [3])
        leader.receive(
            .appendResponse(
                term: Term(9), accepted: false, match: .none, hint: LogPosition()))
        #expect(leader.effects.readsRefused.map(\.token) == [1, 2])
    }
}
