// What a leader knows about one follower.

import KVBase

/// How far one follower is, as its leader sees it.
public struct FollowerProgress: Sendable {
    public enum State: UInt8, Sendable {
        /// The common prefix is not known: one empty append at a time looks for it.
        case probe = 0
        /// Entries are sent as they come, many messages ahead of the answers.
        case replicate = 1
        /// The next entry is compacted away: a snapshot is on its way, no entries are sent.
        case snapshot = 2
    }

    public internal(set) var member: Member
    /// The highest index known equal to the leader's and durable at the follower.
    public internal(set) var match: LogIndex = .none
    public internal(set) var state: State = .probe
    /// Entries of the leader's log above `match`, when the progress was asked for.
    public internal(set) var lag: UInt64 = 0

    /// Invariant: `next > match`.
    var next: LogIndex
    /// An append was sent in the probe state and neither answered nor given up.
    var isProbing = false
    /// Last indexes of the append messages on their way, oldest first.
    var inFlight: [LogIndex] = []
    /// When an append was last sent or answered with progress.
    var activeAt: Instant
    /// The newest of the leader's own instants that came back in an accepted heartbeat; nil: none.
    public internal(set) var acknowledgedAt: Instant?
    /// While a snapshot is on its way, and until what was logged meanwhile has arrived: entries above it are
    /// kept for this follower. nil: no more are kept for it than for any other.
    private(set) var keptFrom: LogIndex?
    /// To match this ends that; nil while the snapshot is on its way.
    private var keptUntil: LogIndex?
    /// The newest quorum-read round that came back in an accepted heartbeat.
    var acknowledgedRound: UInt64 = 0

    init(member: Member, next: LogIndex, now: Instant) {
        self.member = member
        self.next = next
        self.activeAt = now
    }

    /// Takes note that the follower's log is durable and equal up to `index`.
    mutating func matched(_ index: LogIndex, now: Instant) {
        guard index > match else { return }
        match = index
        activeAt = now
        if next <= match { next = match.next() }
        var answered = 0
        while answered < inFlight.count, inFlight[answered] <= index { answered += 1 }
        inFlight.removeFirst(answered)
        endKeeping()
    }

    mutating func probe(from index: LogIndex) {
        state = .probe
        next = max(index, match.next())
        isProbing = false
        inFlight.removeAll(keepingCapacity: true)
    }

    /// `last`: the end of the leader's log.
    mutating func replicate(last: LogIndex) {
        state = .replicate
        next = match.next()
        isProbing = false
        inFlight.removeAll(keepingCapacity: true)
        if keptFrom != nil { keptUntil = last }
        endKeeping()
    }

    private mutating func endKeeping() {
        guard let keptUntil, match >= keptUntil else { return }
        keptFrom = nil
        self.keptUntil = nil
    }

    /// `position`: the snapshot is not older.
    mutating func awaitSnapshot(of position: LogIndex) {
        state = .snapshot
        keptFrom = position
        keptUntil = nil
        isProbing = false
        inFlight.removeAll(keepingCapacity: true)
    }
}
