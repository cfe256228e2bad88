// Leading: proposals, pipelined appends, heartbeats and commit.

import KVBase

extension Replica {
    // MARK: Term of office

    mutating func becomeLeader(now: Instant, into effects: inout Effects) {
        role = .leader
        leader = id
        effects.roleChanged = true
        effects.leadershipChanges.append(candidacy)
        ballots.removeAll(keepingCapacity: true)
        nomination = nil
        leaderSince = now
        lease = Lease()
        reads = QuorumReads()
        followers.removeAll(keepingCapacity: true)
        uncommittedBytes = 0
        if commit < log.lastIndex {
            for entry in log.slice(from: commit.next(), through: log.lastIndex) {
                uncommittedBytes += entry.payload.count
            }
        }
        rebuildFollowers(now: now)
        let previous = log.last
        termStart = appendOwn(kind: .noop, payload: [])
        sendHeartbeats(now: now, into: &effects)
        // The first probe carries the new entry: most followers hold everything before it.
        let probe = Message.append(
            term: term, previous: previous, entries: [log[termStart]], commit: commit)
        for place in followers.indices {
            effects.messages.append((followers[place].member.replica, probe))
            followers[place].isProbing = true
        }
    }

    /// Gives up what belongs to the leadership. The caller sets the new role.
    mutating func abandonLeadership(
        because reason: LeadershipReason, into effects: inout Effects
    ) {
        effects.leadershipChanges.append(reason)
        reads.refuseAll(into: &effects)
        if let change = pendingChange, let token = change.token {
            let error = DatabaseError(
                .unknownOutcome, "the leader stepped down before the change was committed")
            effects.membershipOutcomes.append((token, error))
        }
        pendingChange = nil
        transfer = nil
        followers.removeAll(keepingCapacity: true)
        uncommittedBytes = 0
        lease = Lease()
        heartbeatDue = .distantFuture
    }

    /// One progress per other member, in order of replica id; known ones are kept.
    mutating func rebuildFollowers(now: Instant) {
        let old = followers
        followers.removeAll(keepingCapacity: true)
        for member in membership.all where member.replica != id {
            if let known = old.first(where: { $0.member.replica == member.replica }) {
                followers.append(known)
            } else {
                followers.append(
                    FollowerProgress(member: member, next: log.lastIndex.next(), now: now))
            }
        }
        recomputeLease()
    }

    func followerPlace(_ replica: ReplicaID) -> Int? {
        followers.firstIndex { $0.member.replica == replica }
    }

    /// The leader's view of each other member, in order of replica id; empty elsewhere.
    public var progress: [FollowerProgress] {
        followers.map { follower in
            var follower = follower
            follower.lag = log.lastIndex.rawValue - follower.match.rawValue
            return follower
        }
    }

    // MARK: Time

    mutating func tickLeader(now: Instant, into effects: inout Effects) {
        // Heard from a majority: own term's start counts, so that a new leader has time to.
        let heard = Quorum.reached(membership) { replica -> Instant in
            if replica == id { return now }
            guard let place = followerPlace(replica) else { return leaderSince }
            return max(leaderSince, followers[place].acknowledgedAt ?? .origin)
        }
        if let heard, now - heard > tuning.quorumLossTimeout {
            becomeFollower(
                term: term, leader: .none, because: .quorumLost, now: now, into: &effects)
            return
        }
        tickTransfer(now: now, into: &effects)
        if role == .leader, now >= heartbeatDue { sendHeartbeats(now: now, into: &effects) }
    }

    mutating func sendHeartbeats(now: Instant, into effects: inout Effects) {
        heartbeatDue = now + tuning.heartbeatInterval
        let heartbeat = Message.heartbeat(
            term: term, commit: commit, sentAt: now, round: reads.startRound())
        for follower in followers {
            effects.messages.append((follower.member.replica, heartbeat))
        }
        finishReads(into: &effects)
    }

    mutating func receiveHeartbeatResponse(
        term: Term, accepted: Bool, sentAt: Instant, round: UInt64, match: LogIndex,
        from: ReplicaID, now: Instant, into effects: inout Effects
    ) {
        guard
            let place = answeringFollower(term: term, from: from, now: now, into: &effects),
            accepted, sentAt <= now, match <= log.lastIndex
        else { return }
        if followers[place].acknowledgedAt.map({ $0 < sentAt }) ?? true {
            followers[place].acknowledgedAt = sentAt
            recomputeLease()
        }
        if followers[place].acknowledgedRound < round {
            followers[place].acknowledgedRound = round
            advanceReads(now: now, into: &effects)
        }
        followers[place].matched(match, now: now)
        if followers[place].state == .replicate,
            followers[place].next <= log.lastIndex
                || !followers[place].inFlight.isEmpty,
            now - followers[place].activeAt > tuning.heartbeatInterval * 4
        {
            // Messages were lost, or the follower's disk is slow: the answer to a probe will tell.
            followers[place].probe(from: followers[place].match.next())
        }
        // An unanswered probe was probably lost.
        if now - followers[place].activeAt >= tuning.heartbeatInterval {
            followers[place].isProbing = false
        }
        sendAppends(to: place, now: now, into: &effects)
        maybeCommit(now: now, into: &effects)
    }

    /// The place of a follower whose answer counts in this term; a higher term deposes.
    private mutating func answeringFollower(
        term: Term, from: ReplicaID, now: Instant, into effects: inout Effects
    ) -> Int? {
        guard role == .leader, let place = followerPlace(from) else { return nil }
        if term > hardState.term {
            becomeFollower(term: term, leader: .none, now: now, into: &effects)
            // Perhaps no one leads that term: its candidate lost, being bound to lose. The promises
            // of the others name this replica, so it asks them soon.
            let interval = tuning.heartbeatInterval
            fallbackDeadline = now + interval + Nanoseconds(jitter.below(max(1, interval.count)))
            return nil
        }
        return term == hardState.term ? place : nil
    }

    // MARK: Proposals

    /// Whether a proposal made now would be taken and its reads-before-writes are sound: leader, not
    /// transferring, an entry of the own term applied, uncommitted bytes below the bound.
    public var canPropose: Bool {
        role == .leader && transfer == nil && applied >= termStart
            && uncommittedBytes < tuning.uncommittedBytesMax
    }

    mutating func propose(_ payloads: [Bytes], now: Instant, into effects: inout Effects) {
        guard !payloads.isEmpty else { return }
        guard role == .leader, transfer == nil, uncommittedBytes < tuning.uncommittedBytesMax else {
            effects.proposalsRefused = true
            return
        }
        let first = log.lastIndex.next()
        for payload in payloads { _ = appendOwn(kind: .command, payload: payload) }
        effects.proposed = (term, first, payloads.count)
        sendAppendsToAll(now: now, into: &effects)
    }

    mutating func appendOwn(kind: LogEntry.Kind, payload: Bytes) -> LogIndex {
        let index = log.lastIndex.next()
        log.append(LogEntry(term: term, index: index, kind: kind, payload: payload))
        durability.appended(index)
        uncommittedBytes += payload.count
        return index
    }

    // MARK: Appends

    mutating func sendAppendsToAll(now: Instant, into effects: inout Effects) {
        for place in followers.indices { sendAppends(to: place, now: now, into: &effects) }
    }

    mutating func sendAppends(to place: Int, now: Instant, into effects: inout Effects) {
        let state = followers[place].state
        if state == .snapshot || (state == .probe && followers[place].isProbing) { return }
        let replica = followers[place].member.replica
        while true {
            let next = followers[place].next
            if state == .replicate {
                guard next <= log.lastIndex,
                    followers[place].inFlight.count < tuning.appendsInFlightMax
                else { return }
            }
            guard let previousTerm = log.term(at: next.previous()) else {
                followers[place].awaitSnapshot(of: applied)
                effects.snapshotsNeeded.append(replica)
                return
            }
            let previous = LogPosition(index: next.previous(), term: previousTerm)
            if state == .probe {
                followers[place].isProbing = true
                followers[place].activeAt = now
                effects.messages.append(
                    (replica, .append(term: term, previous: previous, entries: [], commit: commit)))
                return
            }
            let entries = slice(from: next)
            let last = next.advanced(by: entries.count - 1)
            followers[place].next = last.next()
            followers[place].inFlight.append(last)
            followers[place].activeAt = now
            effects.messages.append(
                (replica, .append(term: term, previous: previous, entries: entries, commit: commit))
            )
        }
    }

    private mutating func slice(from first: LogIndex) -> [LogEntry] {
        if let shared = sharedSlice, shared.first == first,
            shared.last == first.advanced(by: shared.entries.count - 1),
            shared.last == log.lastIndex
        {
            return shared.entries
        }
        let entries = log.slice(
            from: first, countMax: tuning.appendEntriesMax, bytesMax: tuning.appendBytesMax)
        sharedSlice = (first, first.advanced(by: entries.count - 1), entries)
        return entries
    }

    mutating func receiveAppendResponse(
        term: Term, accepted: Bool, match: LogIndex, hint: LogPosition, from: ReplicaID,
        now: Instant, into effects: inout Effects
    ) {
        guard
            let place = answeringFollower(term: term, from: from, now: now, into: &effects),
            match <= log.lastIndex
        else { return }
        if accepted {
            followers[place].matched(match, now: now)
            switch followers[place].state {
            case .probe:
                followers[place].replicate(last: log.lastIndex)
            case .snapshot:
                if followers[place].match >= log.compacted.index {
                    followers[place].replicate(last: log.lastIndex)
                }
            case .replicate:
                break
            }
            maybeCommit(now: now, into: &effects)
            // Commit may have ended the leadership or the follower's membership.
            guard role == .leader, let place = followerPlace(from) else { return }
            sendAppends(to: place, now: now, into: &effects)
            maybeHandOver(now: now, into: &effects)
        } else if followers[place].state != .snapshot, hint.index < followers[place].next {
            let common = log.lastPosition(atMost: hint.index, term: hint.term)
            // When the logs part below the compaction point only a snapshot helps.
            let isKnown = common.index <= hint.index && common.term <= hint.term
            let before = followers[place].next
            followers[place].probe(
                from: isKnown ? common.index.next() : min(hint.index, log.compacted.index))
            if followers[place].next < before {
                sendAppends(to: place, now: now, into: &effects)
            } else {
                // Late, or from a disk that lost what it had acknowledged: no faster than heartbeats.
                followers[place].isProbing = true
                followers[place].activeAt = now
            }
        }
    }

    // MARK: Snapshots

    mutating func snapshotSent(to replica: ReplicaID, position: LogPosition, succeeded: Bool) {
        guard role == .leader, let place = followerPlace(replica),
            followers[place].state == .snapshot
        else { return }
        // The next heartbeat's answer starts the probe, so that failures do not spin.
        let next = succeeded ? position.index : followers[place].match
        followers[place].probe(from: min(next, log.lastIndex).next())
        followers[place].isProbing = true
        followers[place].activeAt = .origin
    }

    mutating func receiveSnapshotInstalled(
        term: Term, position: LogPosition, from: ReplicaID, now: Instant,
        into effects: inout Effects
    ) {
        guard
            let place = answeringFollower(term: term, from: from, now: now, into: &effects),
            position.index <= log.lastIndex
        else { return }
        followers[place].matched(position.index, now: now)
        if followers[place].state != .replicate { followers[place].replicate(last: log.lastIndex) }
        sendAppends(to: place, now: now, into: &effects)
        maybeCommit(now: now, into: &effects)
    }

    // MARK: Commit

    /// Commits what a majority holds durably, own-term entries only (Ongaro 2014, section 3.6.2).
    mutating func maybeCommit(now: Instant, into effects: inout Effects) {
        while role == .leader {
            let reached = Quorum.reached(membership) { replica -> LogIndex in
                if replica == id { return durability.index }
                guard let place = followerPlace(replica) else { return .none }
                return followers[place].match
            }
            guard let reached, reached > commit, log.term(at: reached) == term else { return }
            for entry in log.slice(from: commit.next(), through: reached) {
                uncommittedBytes -= entry.payload.count
            }
            commit = reached
            membershipCommitted(now: now, into: &effects)
        }
    }
}
