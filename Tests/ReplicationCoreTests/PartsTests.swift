// The parts under the state machine: log, quorums, memberships, what waits for the disk.

import KVBase
import Testing

@testable import ReplicationCore

private func entry(_ index: UInt64, term: UInt64, bytes: Int = 1) -> LogEntry {
    LogEntry(
        term: Term(term), index: LogIndex(index), kind: .command,
        payload: Bytes(repeating: 0, count: bytes))
}

private func member(_ id: UInt32) -> Member { Member(replica: ReplicaID(id), node: NodeID(id)) }

struct EntryLogTests {
    static func log() -> EntryLog {
        var log = EntryLog(compacted: LogPosition(index: LogIndex(4), term: Term(1)))
        for (index, term) in [(5, 1), (6, 2), (7, 2), (8, 4)] as [(UInt64, UInt64)] {
            log.append(entry(index, term: term, bytes: 10))
        }
        return log
    }

    @Test func termsAreKnownFromTheCompactionPointToTheLast() {
        let log = Self.log()
        let terms = (3...9).map { log.term(at: LogIndex($0))?.rawValue }
        #expect(terms == [nil, 1, 1, 2, 2, 4, nil])
    }

    @Test func slicesKeepBothBoundsButNeverComeEmpty() {
        let log = Self.log()
        #expect(log.slice(from: LogIndex(5), countMax: 3).count == 3)
        #expect(log.slice(from: LogIndex(5), bytesMax: 25).count == 2)
        #expect(log.slice(from: LogIndex(5), bytesMax: 1).count == 1)
        #expect(log.slice(from: LogIndex(9)).isEmpty)
    }

    @Test func truncationAndCompactionKeepCountOfBytes() {
        var log = Self.log()
        log.truncate(from: LogIndex(8))
        #expect(log.payloadBytes == 30)
        log.compact(through: LogIndex(6))
        #expect(log.payloadBytes == 10)
        #expect(log.compacted == LogPosition(index: LogIndex(6), term: Term(2)))
        #expect(log.lastIndex == LogIndex(7))
    }

    @Test func theHintIsTheLastPositionThatMayAgree() {
        let log = Self.log()
        let hint = log.lastPosition(atMost: LogIndex(8), term: Term(3))
        #expect(hint == LogPosition(index: LogIndex(7), term: Term(2)))
        let none = log.lastPosition(atMost: LogIndex(8), term: Term(0))
        #expect(none == log.compacted)
    }
}

struct QuorumTests {
    @Test(arguments: [
        ([5], 5), ([5, 1], 1), ([9, 5, 1], 5), ([1, 2, 3, 4], 2), ([7, 7, 1, 9, 3], 7),
    ])
    func aMajorityHasReached(_ values: [Int], _ expected: Int) {
        let members = values.indices.map { member(UInt32($0 + 1)) }
        let reached = Quorum.reached(members) { values[Int($0.rawValue) - 1] }
        #expect(reached == expected)
    }

    @Test func jointConsensusNeedsBothMajorities() {
        let joint = Membership(
            voters: [member(3), member(4), member(5)], outgoing: [member(1), member(2), member(3)])
        let match: [UInt32: Int] = [1: 9, 2: 9, 3: 9, 4: 1, 5: 1]
        #expect(Quorum.reached(joint) { match[$0.rawValue]! } == 1)
        #expect(!Quorum.isReached(joint) { match[$0.rawValue]! == 9 })
        #expect(Quorum.isReached(joint) { $0.rawValue != 1 && $0.rawValue != 5 })
    }

    @Test func nobodyDecidesInAnEmptyGroup() {
        #expect(Quorum.reached(.empty) { _ in 1 } == nil)
        #expect(!Quorum.isReached(.empty) { _ in true })
    }
}

struct MembershipHistoryTests {
    @Test func truncationBringsBackTheOneBefore() {
        let first = Membership(voters: [member(1)])
        let second = Membership(voters: [member(2)], outgoing: [member(1)])
        var history = MembershipHistory(index: LogIndex(1), membership: first)
        history.append(index: LogIndex(5), membership: second)
        #expect(history.current == second)
        #expect(history.membership(at: LogIndex(4)) == first)
        history.truncate(from: LogIndex(5))
        #expect(history.current == first)
    }

    @Test func aReplicaMayLeadUntilItsRemovalIsCommitted() {
        var history = MembershipHistory(
            index: LogIndex(1), membership: Membership(voters: [member(1), member(2)]))
        history.append(index: LogIndex(5), membership: Membership(voters: [member(2)]))
        #expect(history.isVoter(ReplicaID(1), sinceCommit: LogIndex(4)))
        #expect(!history.isVoter(ReplicaID(1), sinceCommit: LogIndex(5)))
    }

    @Test func membershipsSurviveEncoding() throws {
        let membership = Membership(
            voters: [member(3), member(1)], outgoing: [member(2)], learners: [member(9)])
        #expect(try Membership.decode(membership.encoded()) == membership)
        #expect(throws: DatabaseError.self) {
            try Membership.decode(Bytes(membership.encoded().dropLast()))
        }
    }
}

struct DurabilityTests {
    @Test func replacedEntriesAreNotDurableByAnOlderTicket() {
        var disk = Durability(term: Term(1), index: LogIndex(3))
        let old = disk.issue(term: Term(1), last: LogIndex(6))
        disk.truncated(from: LogIndex(5))
        disk.appended(LogIndex(5))
        let new = disk.issue(term: Term(2), last: LogIndex(5))
        disk.complete(old)
        #expect(disk.index == LogIndex(4))
        disk.complete(new)
        #expect(disk.index == LogIndex(5))
        #expect(disk.term == Term(2))
    }

    @Test func messagesWaitForTheirTicketAndOldTermsAreDropped() {
        var disk = Durability(term: Term(1), index: .none)
        var effects = Effects()
        let first = disk.issue(term: Term(1), last: .none)
        let vote = Message.voteResponse(
            term: Term(1), isPreVote: false, granted: true, retryAfter: .zero)
        disk.waiting.append((ReplicaID(2), vote))
        disk.hold(into: &effects)
        disk.release(term: Term(1), into: &effects)
        #expect(effects.messages.isEmpty)
        disk.complete(first)
        disk.release(term: Term(2), into: &effects)
        #expect(effects.messages.isEmpty)
        disk.waiting.append((ReplicaID(2), vote))
        disk.hold(into: &effects)
        #expect(effects.messages.count == 1)
    }
}
