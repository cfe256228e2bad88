// What a group's replicated log consists of.

import KVBase

/// One entry of a group's log.
public struct LogEntry: Hashable, Sendable {
    public enum Kind: UInt8, Sendable {
        /// A new leader's first entry: commits what earlier terms left.
        case noop = 0
        /// A payload for the state machine above.
        case command = 1
        /// An encoded `Membership` that is in force from the moment it is appended.
        case membership = 2
    }

    public var term: Term
    public var index: LogIndex
    public var kind: Kind
    /// Opaque here. Shared, never copied: entries of one batch reference the same storage.
    public var payload: Bytes

    public init(term: Term, index: LogIndex, kind: Kind, payload: Bytes) {
        self.term = term
        self.index = index
        self.kind = kind
        self.payload = payload
    }
}

/// What must survive a crash besides the entries. Invariant: a vote or an acknowledgement leaves
/// the node only after the state it rests on is durable.
public struct HardState: Hashable, Sendable {
    public var term: Term
    /// The candidate voted for in `term`; `.none` when none.
    public var vote: ReplicaID

    public init(term: Term = .none, vote: ReplicaID = .none) {
        self.term = term
        self.vote = vote
    }
}

/// The place in the log where the engine's state stands: everything up to it is applied.
public struct LogPosition: Hashable, Sendable {
    public var index: LogIndex
    public var term: Term

    public init(index: LogIndex = .none, term: Term = .none) {
        self.index = index
        self.term = term
    }
}

/// What a replica starts from: read back from its disk, or empty for a new one.
public struct RestoredState: Sendable {
    public var hardState: HardState
    /// The engine's durable state.
    public var applied: LogPosition
    /// The membership in force at `applied`; later ones are found in `entries`.
    public var membership: Membership
    /// Contiguous; the first has index `compacted.index + 1`.
    public var entries: [LogEntry]
    /// The entry before the first of `entries`; at most `applied`.
    public var compacted: LogPosition

    public init(
        hardState: HardState, applied: LogPosition, membership: Membership, entries: [LogEntry],
        compacted: LogPosition
    ) {
        self.hardState = hardState
        self.applied = applied
        self.membership = membership
        self.entries = entries
        self.compacted = compacted
    }
}
