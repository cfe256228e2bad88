// Cancel, pause, resume and reverse, as far as operations on shards are concerned.

import KVBase
import ShardCore

extension Controller {
    // MARK: Cancel

    /// Why a cancellation would undo nothing any more, or nil.
    func obstacleToCancel(_ record: OperationRecord) -> DatabaseError? {
        guard record.work != nil, !record.isCancelled else { return nil }
        switch record.step {
        case .merging:
            return DatabaseError(
                .refused,
                "operation \(record.id) is joining the shards already; once it is done, its outcome "
                    + "says how to split them again: kvctl ops show \(record.id)")
        default: return nil
        }
    }

    /// `record` is marked as cancelled and not stored yet.
    mutating func cancelShards(
        _ status: OperationStatus, _ record: OperationRecord, now: Instant,
        into effects: inout ControllerEffects
    ) {
        guard let work = record.work else { return }
        var record = record
        let mayHaveSent = status.progress.mayHaveSent
        switch record.step {
        case .proposed:
            finish(
                OperationChange(record: record), as: .cancelled, "the proposal was withdrawn",
                now: now, into: &effects)
        case .forming: end(record, work, now: now, into: &effects)
        case .splitting where !mayHaveSent, .switching where !mayHaveSent && !work.isTurned:
            end(record, work, now: now, into: &effects)
        case .splitting:
            // The cut may be in the log: it is seen through, then the operation ends.
            save(OperationChange(record: record), now: now, into: &effects)
        case .switching:
            record.step = .declining
            record.outcome = ""
            decide(
                "operation \(record.id) is being cancelled: asks group \(work.target) to decline",
                group: work.source, operation: record.id, shard: work.moving, now: now,
                into: &effects)
            save(OperationChange(record: record), now: now, into: &effects)
        case .copying, .verifying, .finishing: turn(record, work, now: now, into: &effects)
        default: break
        }
    }

    /// Ends an operation of which no command is under way.
    private mutating func end(
        _ record: OperationRecord, _ work: ShardWork, now: Instant,
        into effects: inout ControllerEffects
    ) {
        var outcome = "stopped by the operator before anything moved" + standingCut(work)
        if work.moving != .none, groups[work.target] != nil, shardCount(of: work.target) == 0 {
            outcome += "; group \(work.target) has no shards and stays"
        }
        finish(
            OperationChange(record: record), as: .cancelled, outcome, now: now, into: &effects)
    }

    // MARK: Pause

    /// Whether the operation, or the one that it is part of, is paused.
    func isHeldBack(_ record: OperationRecord) -> Bool {
        record.isPaused
            || record.parent != .none && operations[record.parent]?.record.isPaused == true
    }

    mutating func pause(
        _ id: OperationID, _ isPaused: Bool, _ request: RequestID
    ) throws(DatabaseError) {
        let record = try find(id).record
        guard !record.isFinished else {
            throw DatabaseError(.refused, "operation \(id) has ended: \(record.step)")
        }
        if isPaused {
            guard record.step != .proposed else {
                throw DatabaseError(
                    .refused,
                    "operation \(id) is only proposed: start it with kvctl apply \(id), or "
                        + "withdraw it with kvctl ops cancel \(id)")
            }
            guard ![.transfer, .backup, .verifyBackup].contains(record.kind) else {
                throw DatabaseError(
                    .refused,
                    "operation \(id) has no place to rest; stop it with: kvctl ops cancel \(id)"
                )
            }
            guard !record.isCancelled else {
                throw DatabaseError(.refused, "operation \(id) is being cancelled")
            }
        }
        operations.update(id) { $0.pauses.append((request, isPaused)) }
        touchedOperations.append(id)
    }

    /// Stores the newest of the wishes that wait.
    mutating func storePause(
        _ status: OperationStatus, now: Instant, into effects: inout ControllerEffects
    ) {
        let id = status.record.id
        guard let wish = status.pauses.last?.isPaused else { return }
        operations.update(id) { $0.pauses = [] }
        guard wish != status.record.isPaused else {
            for (request, _) in status.pauses { operationAnswers.append((request, .success(id))) }
            return pump(id, now: now, into: &effects)
        }
        operations.update(id) { $0.requests += status.pauses.map(\.request) }
        var record = status.record
        record.isPaused = wish
        decide(
            "operation \(id) is \(wish ? "paused" : "resumed") while \(record.step.words) by the "
                + "operator",
            group: record.group, operation: id, shard: record.work?.shard ?? .none, now: now,
            into: &effects)
        save(OperationChange(record: record), now: now, into: &effects)
    }

    // MARK: Reverse

    /// One under way is cancelled; a move that is done goes back by a new one.
    mutating func reverse(
        _ id: OperationID, _ request: RequestID, now: Instant,
        into effects: inout ControllerEffects
    ) throws(DatabaseError) {
        let record = try find(id).record
        guard record.isFinished else { return try cancel(id, request) }
        guard record.step == .done else {
            throw DatabaseError(
                .refused, "operation \(id) is \(record.step): nothing of it is to be undone")
        }
        guard let work = record.work else {
            throw DatabaseError(.refused, "operation \(id) " + adviceToUndo(record))
        }
        if work.neighbour != .none {
            throw DatabaseError(
                .refused, "operation \(id) is a merge, which nothing takes back: \(record.outcome)")
        }
        guard work.moving != .none else {
            throw DatabaseError(
                .refused,
                "operation \(id) moved nothing; join the halves again with: kvctl merge "
                    + "\(work.shard)")
        }
        guard shards[work.moving]?.group == work.target else {
            throw DatabaseError(
                .refused,
                "shard \(work.moving) is not where operation \(id) put it"
                    + (shards[work.moving].map {
                        ": it is in group \($0.group); move it with: kvctl move \(work.moving) "
                            + "--to \(work.source)"
                    } ?? ": it is gone"))
        }
        let plan = try plan(moveOf: work.moving, to: .group(work.source), now: now)
        start(
            plan, reason: "takes back operation \(id)", request: request,
            now: now, into: &effects)
    }

    private func adviceToUndo(_ record: OperationRecord) -> String {
        let isGone = record.old.node != .none && nodes[record.old.node] == nil
        return switch record.kind {
        case .replaceReplica where isGone:
            "cannot be taken back, node \(record.old.node) was removed; put the replica elsewhere "
                + "with: kvctl replace --group \(record.group) --replica \(name(record.new.node))"
        case .replaceNode where isGone, .drain where isGone, .transfer where isGone:
            "cannot be taken back: node \(record.old.node) was removed"
        case .replaceReplica:
            "cannot be taken back, its old replica is deleted; put one there again with: kvctl "
                + "replace --group \(record.group) --replica \(name(record.new.node)) --with "
                + "\(name(record.old.node))"
        case .addReplica:
            "cannot be taken back: a group gives up no replica that its tables ask for; put it "
                + "elsewhere with: kvctl replace --group \(record.group) --replica "
                + name(record.new.node)
        case .replaceNode, .drain:
            "cannot be taken back; let \(name(record.old.node)) hold replicas again with: kvctl drain "
                + "\(name(record.old.node)) --end"
        case .transfer:
            "handed over the leadership; hand it back with: kvctl transfer \(record.group) "
                + name(record.old.node)
        case .backup: "wrote a backup: there is nothing to take back"
        case .verifyBackup: "read a backup: there is nothing to take back"
        case .restore: "is the restore of all metadata: there is nothing to go back to"
        case .rebalance:
            "took several steps; take back one of its moves with its own number: kvctl ops list"
        case .split, .move, .merge: "has nothing to undo"
        }
    }

    // MARK: Words

    /// A routed key as operators write it: printable ASCII as it is, other bytes as \xNN; a virtual
    /// range of a HASH table as `hash:N`.
    func keyText(_ key: Bytes, of table: TableID) -> String {
        if case .hash = tables[table]?.partitioning, key.count == 2 {
            return "hash:\(UInt16(key[0]) << 8 | UInt16(key[1]))"
        }
        return KeyText.text(key.prefix(64)) + (key.count > 64 ? "..." : "")
    }

    /// The whole key, so that the command can be given as it stands.
    func splitAdvice(_ key: Bytes, of table: TableID) -> String {
        "kvctl split \(tables[table]?.name ?? "") --at "
            + (tables[table].map { KeyText.bound(key, of: $0.partitioning) } ?? KeyText.text(key))
    }
}
