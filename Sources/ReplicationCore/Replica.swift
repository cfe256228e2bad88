// One replica of one group: the Raft state machine (Ongaro 2014), with elections nominated by a
// controller, leader leases carried by heartbeats, pipelined append, and the disk as a peer that
// answers. docs/internals/replication.md lists the departures from the paper and why they are safe.

import KVBase

/// One door in (`step`), one door out (`Effects`). Deterministic: time is an argument and never goes
/// back, randomness comes from the seed.
public struct Replica: Sendable {
    public enum Role: UInt8, Sendable {
        case follower = 0
        case preCandidate = 1
        case candidate = 2
        case leader = 3
        /// Votes in no membership that may be in force: receives the log, never campaigns.
        case learner = 4
    }

    public let group: GroupID
    public let id: ReplicaID
    public let tuning: Tuning
    public internal(set) var role: Role = .learner
    /// The leader of `term`; `.none` when unknown.
    public internal(set) var leader: ReplicaID = .none
    /// Known to be committed. Never above what is known to equal the leader's log.
    public internal(set) var commit: LogIndex
    /// The state machine stands here. Invariant: `compacted <= applied <= delivered <= commit`.
    public internal(set) var applied: LogIndex

    var hardState: HardState
    var log: EntryLog
    var memberships: MembershipHistory
    /// Handed out for application.
    var delivered: LogIndex
    var jitter: SeededRandom
    var durability: Durability

    // Follower: promises and timers.
    /// Up to here the log is known to equal that of the leader of `term`.
    var matched: LogIndex
    /// Until then no vote is given to anyone but `promisedTo`; see `Replica+Lease`.
    var promiseUntil: Instant
    var promisedTo: ReplicaID = .none
    /// When the replica nominates itself unless it hears from a leader or a controller.
    var fallbackDeadline: Instant
    /// A nomination that waits until this replica's own promise has run out.
    var nomination: (term: Term, until: Instant)?

    // Candidate.
    var ballots: [Ballot] = []
    var electionDeadline: Instant = .distantFuture
    /// Why it stands. One whose leader handed over tells voters that the lease is released.
    var candidacy = LeadershipReason.silence

    // Leader.
    var followers: [FollowerProgress] = []
    var heartbeatDue: Instant = .distantFuture
    var leaderSince: Instant = .origin
    /// The index of the first entry of the leader's own term.
    var termStart: LogIndex = .none
    var uncommittedBytes = 0
    var lease = Lease()
    var reads = QuorumReads()
    var transfer: Transfer?
    var pendingChange: PendingChange?
    /// The last slice sent in this step: followers at the same point share it.
    var sharedSlice: (first: LogIndex, last: LogIndex, entries: [LogEntry])?

    /// Precondition: entries of kind `.membership` decode; the log's checksums vouch for them.
    public init(
        group: GroupID, id: ReplicaID, tuning: Tuning, restored: RestoredState, seed: UInt64,
        now: Instant
    ) {
        self.group = group
        self.id = id
        self.tuning = tuning
        hardState = restored.hardState
        log = EntryLog(compacted: restored.compacted)
        for entry in restored.entries { log.append(entry) }
        let applied = restored.applied
        // A crash between the engine's and the log's part of a snapshot, or a log that lost its
        // unsynced tail, leaves a log that does not reach or not contain the applied position.
        let needsReset = log.term(at: applied.index) != applied.term
        if needsReset { log.reset(to: applied) }
        commit = applied.index
        self.applied = applied.index
        delivered = applied.index
        matched = applied.index
        memberships = MembershipHistory(index: applied.index, membership: restored.membership)
        durability = Durability(term: restored.hardState.term, index: log.lastIndex)
        if needsReset { durability.snapshot = applied }
        jitter = SeededRandom(seed: seed)
        // The promises given before a restart are forgotten; assume the latest possible one.
        promiseUntil =
            restored.hardState.term > .none ? now + tuning.leaseDuration : .origin
        fallbackDeadline = now
        if applied.index < log.lastIndex {
            for entry in log.slice(from: applied.index.next(), through: log.lastIndex)
            where entry.kind == .membership {
                guard let membership = try? Membership.decode(entry.payload) else {
                    preconditionFailure("membership entry \(entry.index) does not decode")
                }
                memberships.append(index: entry.index, membership: membership)
            }
        }
        role = isElectable ? .follower : .learner
        resetFallback(now)
    }

    public var term: Term { hardState.term }
    public var lastPosition: LogPosition { log.last }
    /// The last position whose entry is no longer held.
    public var compacted: LogPosition { log.compacted }
    /// In force: the latest one in the log, committed or not.
    public var membership: Membership { memberships.current }
    /// Payload bytes of the entries held in memory.
    public var retainedBytes: Int { log.payloadBytes }

    /// The membership in force at an applied index that is not compacted.
    public func membership(at index: LogIndex) -> Membership { memberships.membership(at: index) }

    /// Whether a complete snapshot at `position` would bring this replica forward. The shell asks
    /// right before it lets the snapshot replace the engine's state; when false it drops the snapshot.
    public func needsSnapshot(at position: LogPosition) -> Bool { position.index > delivered }

    /// Handles one event. Effects are added to `effects`; the shell drains them before it feeds the
    /// next `propose`. Precondition: `now` is not before that of the call before.
    public mutating func step(_ event: Event, now: Instant, into effects: inout Effects) {
        switch event {
        case .message(let from, let message):
            if from != id { receive(message, from: from, now: now, into: &effects) }
        case .tick:
            tick(now: now, into: &effects)
        case .persisted(let ticket):
            persisted(ticket, now: now, into: &effects)
        case .propose(let payloads):
            propose(payloads, now: now, into: &effects)
        case .changeMembership(let change, let token):
            changeMembership(change, token: token, now: now, into: &effects)
        case .nominate(let term):
            nominate(term, now: now, into: &effects)
        case .transferLeadership(let target):
            startTransfer(to: target, now: now, into: &effects)
        case .stepDown:
            guard role == .leader else { break }
            becomeFollower(
                term: term, leader: .none, because: .unfit, now: now, into: &effects)
        case .read(let token, let mode):
            read(token: token, mode: mode, now: now, into: &effects)
        case .applied(let index):
            applied = max(applied, min(index, delivered))
            if transfer != nil, !lease.isForfeited { maybeHandOver(now: now, into: &effects) }
        case .compact(let index):
            compact(upTo: index, now: now)
        case .snapshotInstalled(let position, let membership, let from):
            installSnapshot(
                position: position, membership: membership, from: from, now: now, into: &effects)
        case .unreachable(let replica):
            unreachable(replica, now: now)
        case .snapshotSent(let replica, let position, let succeeded):
            snapshotSent(to: replica, position: position, succeeded: succeeded)
        }
        updateRole(now: now, into: &effects)
        flush(into: &effects)
    }

    private mutating func receive(
        _ message: Message, from: ReplicaID, now: Instant, into effects: inout Effects
    ) {
        switch message {
        case .voteRequest(let term, let last, let isPreVote, let leaseReleased):
            let request = VoteRequest(
                term: term, last: last, isPreVote: isPreVote, leaseReleased: leaseReleased)
            receive(request, from: from, now: now, into: &effects)
        case .voteResponse(let term, let isPreVote, let granted, let retryAfter):
            let response = VoteResponse(
                term: term, isPreVote: isPreVote, granted: granted, retryAfter: retryAfter)
            receive(response, from: from, now: now, into: &effects)
        case .append(let term, let previous, let entries, let commit):
            receiveAppend(
                term: term, previous: previous, entries: entries, leaderCommit: commit, from: from,
                now: now, into: &effects)
        case .appendResponse(let term, let accepted, let match, let hint):
            receiveAppendResponse(
                term: term, accepted: accepted, match: match, hint: hint, from: from, now: now,
                into: &effects)
        case .heartbeat(let term, let commit, let sentAt, let round):
            receiveHeartbeat(
                term: term, leaderCommit: commit, sentAt: sentAt, round: round, from: from,
                now: now, into: &effects)
        case .heartbeatResponse(let term, let accepted, let sentAt, let round, let match):
            receiveHeartbeatResponse(
                term: term, accepted: accepted, sentAt: sentAt, round: round, match: match,
                from: from, now: now, into: &effects)
        case .timeoutNow(let term):
            receiveTimeoutNow(term: term, from: from, now: now, into: &effects)
        case .snapshotInstalled(let term, let position):
            receiveSnapshotInstalled(
                term: term, position: position, from: from, now: now, into: &effects)
        }
    }

    private mutating func tick(now: Instant, into effects: inout Effects) {
        switch role {
        case .leader: tickLeader(now: now, into: &effects)
        case .candidate, .preCandidate: tickCandidate(now: now, into: &effects)
        case .follower: tickFollower(now: now, into: &effects)
        case .learner: break
        }
    }

    /// When `tick` is next needed; `distantFuture` for a replica that only answers.
    public func nextDeadline(now: Instant) -> Instant {
        switch role {
        case .leader:
            return min(heartbeatDue, transfer?.deadline ?? .distantFuture)
        case .candidate, .preCandidate:
            let retry = ballots.reduce(Instant.distantFuture) {
                $1.state == .open ? min($0, $1.askAt) : $0
            }
            return min(electionDeadline, retry, nominationDue(now))
        case .follower:
            return min(max(fallbackDeadline, promiseUntil), nominationDue(now))
        case .learner:
            return .distantFuture
        }
    }

    private func nominationDue(_ now: Instant) -> Instant {
        nomination == nil ? .distantFuture : max(promiseUntil, now)
    }

    // MARK: Becoming a follower

    /// Follows in `term` (at least the own one) under `leader`, `.none` when it is not known yet. `reason`
    /// is why a leader does, if not for another's term.
    mutating func becomeFollower(
        term: Term, leader: ReplicaID, because reason: LeadershipReason? = nil, now: Instant,
        into effects: inout Effects
    ) {
        let wasActive = role != .follower && role != .learner
        if role == .leader {
            abandonLeadership(
                because: reason ?? (lease.isForfeited ? .transfer : .superseded), into: &effects)
        }
        if term > hardState.term {
            hardState = HardState(term: term, vote: .none)
            durability.hardStateChanged = true
            matched = commit
            effects.roleChanged = true
        }
        if wasActive {
            ballots.removeAll(keepingCapacity: true)
            resetFallback(now)
        }
        let newRole: Role = isElectable ? .follower : .learner
        if newRole != role || leader != self.leader { effects.roleChanged = true }
        role = newRole
        self.leader = leader
        if let pending = nomination, pending.term <= hardState.term { nomination = nil }
    }

    /// Whether this replica may have to lead.
    var isElectable: Bool { memberships.isVoter(id, sinceCommit: commit) }

    /// Memberships came, went or were committed: a follower may have become a learner, or back.
    mutating func updateRole(now: Instant, into effects: inout Effects) {
        guard role == .follower || role == .learner, isElectable == (role == .learner) else {
            return
        }
        role = role == .learner ? .follower : .learner
        effects.roleChanged = true
        resetFallback(now)
    }

    mutating func resetFallback(_ now: Instant) {
        let base = tuning.fallbackElectionTimeout
        fallbackDeadline = now + base + Nanoseconds(jitter.below(max(1, base.count)))
    }

    private mutating func unreachable(_ replica: ReplicaID, now: Instant) {
        if role == .leader {
            guard let place = followerPlace(replica), followers[place].state == .replicate else {
                return
            }
            followers[place].probe(from: followers[place].match.next())
        } else if replica == leader {
            // A pre-vote guards the earlier election; the controller usually still comes first.
            let base = tuning.fallbackElectionTimeout.count
            let earlier = now + tuning.leaseDuration + Nanoseconds(jitter.below(max(1, base)))
            fallbackDeadline = min(fallbackDeadline, earlier)
        }
    }
}
