// Following a leader: appends, heartbeats and snapshots.

import KVBase

extension Replica {
    mutating func receiveAppend(
        term: Term, previous: LogPosition, entries: [LogEntry], leaderCommit: LogIndex,
        from: ReplicaID, now: Instant, into effects: inout Effects
    ) {
        guard acceptLeader(term: term, from: from, now: now, into: &effects) else {
            let refusal = Message.appendResponse(
                term: hardState.term, accepted: false, match: .none, hint: LogPosition())
            if term < hardState.term { effects.messages.append((from, refusal)) }
            return
        }
        guard isWellFormed(entries, after: previous, term: term) else { return }
        if previous.index > log.compacted.index, log.term(at: previous.index) != previous.term {
            let hint = log.lastPosition(atMost: previous.index, term: previous.term)
            let refusal = Message.appendResponse(
                term: term, accepted: false, match: .none, hint: hint)
            effects.messages.append((from, refusal))
            return
        }
        guard take(entries) else { return }
        matched = max(matched, min(previous.index.advanced(by: entries.count), log.lastIndex))
        commit = max(commit, min(leaderCommit, matched))
        sendWhenDurable(
            .appendResponse(term: term, accepted: true, match: matched, hint: LogPosition()),
            to: from)
    }

    /// Adds what the log lacks and replaces what contradicts. False when the entries contradict a
    /// committed one, or a membership does not decode: then nothing of the message may count.
    private mutating func take(_ entries: [LogEntry]) -> Bool {
        var place = 0
        while place < entries.count, entries[place].index <= log.lastIndex {
            let entry = entries[place]
            if entry.index > log.compacted.index, log.term(at: entry.index) != entry.term { break }
            place += 1
        }
        guard place < entries.count else { return true }
        let first = entries[place].index
        guard first > commit else { return false }
        var newMemberships: [(index: LogIndex, membership: Membership)] = []
        for entry in entries[place...] where entry.kind == .membership {
            guard let membership = try? Membership.decode(entry.payload) else { return false }
            newMemberships.append((entry.index, membership))
        }
        if first <= log.lastIndex {
            log.truncate(from: first)
            durability.truncated(from: first)
            memberships.truncate(from: first)
        }
        for entry in entries[place...] { log.append(entry) }
        durability.appended(first)
        for new in newMemberships {
            memberships.append(index: new.index, membership: new.membership)
        }
        return true
    }

    /// Bytes from a peer: consecutive indexes, terms that rise and stay within the leader's.
    private func isWellFormed(
        _ entries: [LogEntry], after previous: LogPosition, term: Term
    ) -> Bool {
        guard previous.term <= term else { return false }
        var last = previous
        for entry in entries {
            guard entry.index == last.index.next(), entry.term >= last.term, entry.term <= term
            else { return false }
            last = LogPosition(index: entry.index, term: entry.term)
        }
        return true
    }

    /// Takes `from` as the leader of `term`, unless the term is old or this replica leads it.
    private mutating func acceptLeader(
        term: Term, from: ReplicaID, now: Instant, into effects: inout Effects
    ) -> Bool {
        guard term >= hardState.term else { return false }
        if term == hardState.term, role == .leader || (leader != .none && leader != from) {
            return false
        }
        if leader != from || term > hardState.term || role == .candidate || role == .preCandidate {
            becomeFollower(term: term, leader: from, now: now, into: &effects)
        }
        resetFallback(now)
        return true
    }

    mutating func receiveHeartbeat(
        term: Term, leaderCommit: LogIndex, sentAt: Instant, round: UInt64, from: ReplicaID,
        now: Instant, into effects: inout Effects
    ) {
        guard acceptLeader(term: term, from: from, now: now, into: &effects) else {
            let refusal = Message.heartbeatResponse(
                term: hardState.term, accepted: false, sentAt: sentAt, round: round, match: .none)
            if term < hardState.term { effects.messages.append((from, refusal)) }
            return
        }
        promiseUntil = max(promiseUntil, now + tuning.leaseDuration)
        promisedTo = from
        commit = max(commit, min(leaderCommit, matched))
        let response = Message.heartbeatResponse(
            term: term, accepted: true, sentAt: sentAt, round: round,
            match: min(matched, durability.index))
        // After a restart the promise is remembered only by way of the durable term.
        if durability.term == term {
            effects.messages.append((from, response))
        } else {
            sendWhenDurable(response, to: from)
        }
    }

    // MARK: Snapshots and compaction

    mutating func installSnapshot(
        position: LogPosition, membership: Membership, from: ReplicaID, now: Instant,
        into effects: inout Effects
    ) {
        if needsSnapshot(at: position) {
            if log.term(at: position.index) == position.term {
                // The log holds the snapshot's last entry, hence (log matching) all before it; what
                // comes after may have been acknowledged and must stay.
            } else {
                log.reset(to: position)
                durability.reset(to: position)
                memberships.reset(index: position.index, membership: membership)
            }
            commit = max(commit, position.index)
            matched = max(matched, commit)
            applied = position.index
            delivered = position.index
        }
        resetFallback(now)
        let target = leader == .none ? from : leader
        if target != id {
            sendWhenDurable(
                .snapshotInstalled(term: hardState.term, position: position), to: target)
        }
    }

    /// Drops what the engine holds durably and no follower is likely to ask for.
    mutating func compact(upTo index: LogIndex, now: Instant) {
        let limit = min(index, min(applied, durability.index))
        guard limit > log.compacted.index else { return }
        // What every member holds can go at once; of the rest as much as the bound allows stays.
        var floor = log.compacted.index
        if role == .leader {
            let slowest = followers.reduce(limit) { min($0, $1.match) }
            floor = max(floor, slowest)
        }
        if floor < limit {
            var keptBytes = 0
            for entry in log.slice(from: floor.next(), through: limit) {
                keptBytes += entry.payload.count
            }
            let promised = keptForSnapshots(now)
            while floor < limit, keptBytes > tuning.retainedBytesMax {
                // Or the next snapshot would be needed as soon as this one has arrived.
                if let promised, floor >= promised, keptBytes <= tuning.restoreBytesMax { break }
                floor = floor.next()
                keptBytes -= log[floor].payload.count
            }
        }
        log.compact(through: floor)
        memberships.compact(through: floor)
    }

    /// The lowest index above which followers that get a snapshot will ask for entries; nil when no
    /// follower that answers gets one.
    private func keptForSnapshots(_ now: Instant) -> LogIndex? {
        guard role == .leader else { return nil }
        return followers.compactMap { follower in
            guard let from = follower.keptFrom else { return nil }
            let heard = max(follower.acknowledgedAt ?? .origin, follower.activeAt)
            return now - heard <= tuning.restorePatience ? max(from, follower.match) : nil
        }.min()
    }
}
