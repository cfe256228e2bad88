// What a move leaves in the group that the shard came from, until it is deleted.
//
// The records stay for `release.after`, and go only when the groups that have their keys now prove
// that they own them: a `verify` goes through the log of each, which is refused in any epoch but the
// stored one, and all live replicas report the same digest. A shard that is to come back to the
// group does not wait for the time, only for the proof.

import KVBase
import ShardCore

extension Controller {
    /// When the time of a former shard has come, on the wall clock in milliseconds since 1970.
    public func releaseTime(of record: FormerShard) -> UInt64 {
        record.since + runtime[.releaseAfter] / 1_000_000
    }

    /// What the target of a move still holds of the keys that come to it. Its group refuses them
    /// before that is given up.
    func formerShard(inTheWayOf work: ShardWork) -> FormerShard? {
        guard work.moving != .none, let range = (shards[work.moving] ?? shards[work.shard])?.range
        else { return nil }
        return former.elements.first { status in
            status.record.group == work.target && status.record.table == work.table
                && status.record.range.overlaps(range)
        }?.record
    }

    mutating func releaseFormerShards(now: Instant, into effects: inout ControllerEffects) {
        guard now >= formerCheckAt, !former.isEmpty else { return }
        formerCheckAt = now + settings.commandRetryDelay * 4
        let wanted = openOperations.compactMap { status -> OperationID? in
            guard status.record.step == .forming, !isHeldBack(status.record),
                let work = status.record.work
            else { return nil }
            return formerShard(inTheWayOf: work)?.operation
        }
        var underWay = 0
        for status in former.elements {
            let id = status.record.operation
            if !wanted.contains(id) {
                guard isPast(status.record.since, by: runtime.time(.releaseAfter), now: now),
                    underWay < runtime[.movesMax]
                else {
                    // What nobody goes on with must not keep others from the same owner.
                    if status.provesOwner != nil { former.update(id) { $0.restart() } }
                    continue
                }
                underWay += 1
            }
            pumpFormer(id, now: now, into: &effects)
        }
    }

    private mutating func pumpFormer(
        _ id: OperationID, now: Instant, into effects: inout ControllerEffects
    ) {
        guard let status = former[id] else { return }
        let record = status.record
        guard groups[record.group] != nil else {
            return forget(status, "is gone with its group", now: now, into: &effects)
        }
        // Nobody needs the records of a table that is dropped, nor can anybody prove anything.
        if tables[record.table]?.state == .active, !prove(status, now: now, into: &effects) {
            return
        }
        guard let leader = serving(record.group) else {
            return note("group \(record.group) has no serving leader", ofFormer: id)
        }
        guard let status = former[id], now >= status.sendAgainAt else { return }
        let sent = command(
            leader, .shard(record.group, .release(record.shard, record.epoch)), .former(id))
        keep(sent, of: id, now: now)
        former.update(id) { $0.isReleasing = true }
    }

    // MARK: The proof

    /// Whether all shards that have the keys now were proven to be with their owners.
    private mutating func prove(
        _ status: FormerShardStatus, now: Instant, into effects: inout ControllerEffects
    ) -> Bool {
        let record = status.record
        let id = record.operation
        var owners = status.owners ?? []
        // Shards tile, so the others are the same while none of these has changed.
        if owners.isEmpty || owners.contains(where: { shards[$0.id] != $0 }) {
            owners = shards.elements.filter {
                $0.table == record.table && $0.range.overlaps(record.range)
            }
            former.update(id) { status in
                status.restart()
                status.owners = owners
            }
        }
        guard let status = former[id], status.provenCount < owners.count else { return true }
        let shard = owners[status.provenCount]
        if let running = operation(onShard: shard.id), hasBegun(running) {
            note("operation \(running.record.id) works on shard \(shard.id)", ofFormer: id)
            return false
        }
        guard status.isConfirmed else {
            guard let leader = serving(shard.group) else {
                note("group \(shard.group) has no serving leader", ofFormer: id)
                return false
            }
            guard now >= status.sendAgainAt else { return false }
            // Digests of two places of one log are not comparable: one proof of a shard at a time.
            let other = former.elements.first {
                $0.record.operation != id && $0.provesOwner == shard.id
            }
            if let other {
                note(
                    "shard \(shard.id) is proven for operation \(other.record.operation) first",
                    ofFormer: id)
                return false
            }
            let above = leaderApplied(of: shard.group)
            let sent = command(
                leader, .shard(shard.group, .verify(shard.id, shard.epoch)), .former(id))
            former.update(id) { $0.verifiedAbove = $0.verifiedAbove ?? above }
            keep(sent, of: id, now: now)
            return false
        }
        switch compare(shard, in: shard.group, above: status.verifiedAbove ?? .none) {
        case .agree(let replicas, let records):
            former.update(id) { status in
                status.next()
                status.provenCount += 1
                status.isDisputed = false
                status.note = ""
                status.findings.append(
                    "\(replicas) replicas of group \(shard.group) agree on \(records) records of "
                        + "shard \(shard.id)")
            }
            guard let status = former[id] else { return false }
            return prove(status, now: now, into: &effects)
        case .differ(let text):
            if !status.isDisputed {
                decide(
                    "group \(record.group) keeps its former copy of shard \(record.shard): \(text)",
                    group: record.group, operation: id, shard: shard.id, now: now, into: &effects)
            }
            let again = now + .seconds(60)
            former.update(id) { status in
                status.next()
                status.isDisputed = true
                status.note = text
                status.sendAgainAt = again
            }
        case .waits(let text):
            note(text, ofFormer: id)
            let asked = status.verifications
            guard asked == 0 || now >= status.verifyAgainAt else { break }
            let again = now + settings.digestPatience * (1 << min(asked, 8))
            former.update(id) { status in
                if asked > 0 { status.next() }
                status.verifications = asked + 1
                status.verifyAgainAt = again
            }
        }
        return false
    }

    // MARK: Outcomes

    mutating func formerOutcome(
        _ id: OperationID, _ outcome: CommandOutcome, now: Instant,
        into effects: inout ControllerEffects
    ) {
        guard let status = former[id], status.command == outcome.id else { return }
        if let error = outcome.error {
            let again = now + settings.commandRetryDelay * 4
            former.update(id) { status in
                status.command = 0
                status.note = error.message
                status.sendAgainAt = again
            }
            return
        }
        guard status.isReleasing else {
            former.update(id) { status in
                status.command = 0
                status.isConfirmed = true
            }
            return pumpFormer(id, now: now, into: &effects)
        }
        let findings = status.findings.joined(separator: ", ")
        forget(
            status, "is deleted" + (findings.isEmpty ? "" : ": \(findings)"), now: now,
            into: &effects)
    }

    private mutating func forget(
        _ status: FormerShardStatus, _ what: String, now: Instant,
        into effects: inout ControllerEffects
    ) {
        let record = status.record
        former.remove(record.operation)
        var transaction = MetadataTransaction()
        transaction.changes.append(.delete(key: StoreKey.former(record.operation)))
        decide(
            "the former copy of shard \(record.shard) in group \(record.group) \(what)",
            group: record.group, operation: record.operation, shard: record.shard, now: now,
            into: &effects)
        store(transaction, then: .nothing, into: &effects)
        for operation in openOperations where operation.record.step == .forming {
            touchedOperations.append(operation.record.id)
        }
    }

    private mutating func keep(_ sent: UInt64, of id: OperationID, now: Instant) {
        let again = now + settings.commandTimeout
        former.update(id) { status in
            commands[status.command] = nil
            status.command = sent
            status.sendAgainAt = again
        }
    }

    private mutating func note(_ text: String, ofFormer id: OperationID) {
        former.update(id) { $0.note = text }
    }
}
