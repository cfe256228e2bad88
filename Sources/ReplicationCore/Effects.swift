// What a replica wants done: the one door out. The shell carries effects out in the order of the
// fields below and then calls `removeAll`.

import KVBase

/// State to make durable before `persisted(ticket)` may be answered.
public struct Persist: Sendable {
    public var ticket: PersistTicket
    /// Set when term or vote changed.
    public var hardState: HardState?
    /// To append. When the first index is not above the last one written, the log is cut there first.
    public var entries: [LogEntry]
    /// Set when a snapshot replaced the log: nothing at or below it is kept, `entries` is empty.
    public var snapshot: LogPosition?

    public init(
        ticket: PersistTicket, hardState: HardState? = nil, entries: [LogEntry] = [],
        snapshot: LogPosition? = nil
    ) {
        self.ticket = ticket
        self.hardState = hardState
        self.entries = entries
        self.snapshot = snapshot
    }
}

public enum ReadRefusal: Hashable, Sendable {
    case notLeader
    /// Leader, but no lease now, or its term's first entry is not applied yet; may be repeated.
    case notReady
}

/// Why a leadership began or ended.
public enum LeadershipReason: UInt8, CaseIterable, Sendable {
    /// It began: the controller named this replica.
    case nominated
    /// It began: neither a leader nor the controller was heard for long.
    case silence
    /// It began, or ended: a leader handed over, because it was told to or left the group.
    case transfer
    /// It ended: a replica at a higher term was heard.
    case superseded
    /// It ended: no majority answered for long.
    case quorumLost
    /// It ended: the shell found the replica unfit to lead.
    case unfit
}

public struct Effects: Sendable {
    public var persists: [Persist] = []
    public var messages: [(to: ReplicaID, message: Message)] = []
    /// Newly committed entries in order, without a gap: apply them and answer `.applied`.
    public var committed: [LogEntry] = []
    /// Reads that may be served once the state machine has applied `index` (0: now).
    public var readsReady: [(token: UInt64, index: LogIndex)] = []
    public var readsRefused: [(token: UInt64, ReadRefusal)] = []
    /// The (term, index) given to each accepted `propose` payload: a contiguous range.
    public var proposed: (term: Term, first: LogIndex, count: Int)?
    /// The propose event was refused as a whole: nothing was appended.
    public var proposalsRefused = false
    public var membershipOutcomes: [(token: UInt64, error: DatabaseError?)] = []
    /// Followers whose next entry is compacted away: stream a snapshot, then `snapshotSent`.
    public var snapshotsNeeded: [ReplicaID] = []
    /// Role, term or known leader changed.
    public var roleChanged = false
    /// Leaderships of this replica that began or ended, in order.
    public var leadershipChanges: [LeadershipReason] = []

    public init() {}

    public mutating func removeAll() {
        persists.removeAll(keepingCapacity: true)
        messages.removeAll(keepingCapacity: true)
        committed.removeAll(keepingCapacity: true)
        readsReady.removeAll(keepingCapacity: true)
        readsRefused.removeAll(keepingCapacity: true)
        proposed = nil
        proposalsRefused = false
        membershipOutcomes.removeAll(keepingCapacity: true)
        snapshotsNeeded.removeAll(keepingCapacity: true)
        roleChanged = false
        leadershipChanges.removeAll(keepingCapacity: true)
    }
}
