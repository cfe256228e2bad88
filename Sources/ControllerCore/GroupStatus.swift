// A group as the controller knows it: the durable record, reports, leader and nomination.

import KVBase
import ShardCore

public struct GroupStatus: Sendable {
    /// One nomination on its way.
    struct Attempt: Sendable {
        var nomination: Nomination
        var startedAt: Instant
        /// Nominate anew when it did not lead by then.
        var deadline: Instant
        /// Durable, so the nominee was told.
        var isStored = false
        /// The newest command that told the nominee; 0 for none.
        var command: UInt64 = 0
    }

    var stored: GroupRecord
    public var record: Group { stored.group }
    /// The newest report of each placement's replica, in order of the placements, and when it came.
    public internal(set) var reports: [ReplicaReport?]
    var reportedAt: [Instant]
    /// The leader as last known; node `.none` when that leader is gone.
    public internal(set) var leader: GroupLeader
    /// The leader's own term's first entry is applied.
    public internal(set) var isServing = false
    /// When it was noticed that nobody leads.
    var leaderlessSince: Instant?
    /// The leader's node is known to be lost: no grace for hand-overs.
    var isLeaderLost = false
    var attempt: Attempt?
    var attempts = 0
    /// The leader's term in which it was last asked to go, for illness, how often, and when it is asked
    /// again.
    var moveTerm = Term.none
    var moveAttempts = 0
    var moveAgainAt = Instant.origin
    /// The newest nomination that is durable or on its way there.
    var nomination: Nomination?
    /// Repeat `createReplica` to placement i after this.
    var createAgainAt: [Instant]
    /// The newest such command; 0 for none.
    var createCommands: [UInt64]
    /// Created replicas as outcomes and reports told, ahead of the stored mask.
    var createdMask: UInt8
    /// The record is on its way to the store.
    var isStoring = false

    init(_ record: GroupRecord) {
        stored = record
        let count = record.group.placements.count
        reports = Array(repeating: nil, count: count)
        reportedAt = Array(repeating: .origin, count: count)
        createAgainAt = Array(repeating: .origin, count: count)
        createCommands = Array(repeating: 0, count: count)
        createdMask = record.createdMask
        leader = GroupLeader(group: record.group.id, term: .none, node: .none)
    }

    /// Replicas that the tables of its kind ask for, and how many of these have no place yet.
    public var wanted: Int { Int(stored.wanted) }
    public var lacking: Int { max(0, wanted - record.placements.count) }

    public var hasLeader: Bool { leader.node != .none }

    /// The highest term heard of or handed out.
    var highestTerm: Term {
        var term = max(leader.term, nomination?.term ?? .none)
        for report in reports {
            if let report, report.term > term { term = report.term }
        }
        return term
    }

    func placementIndex(node: NodeID) -> Int? {
        record.placements.firstIndex { $0.node == node }
    }

    func placementIndex(replica: ReplicaID) -> Int? {
        record.placements.firstIndex { $0.replica == replica }
    }
}
