// The move of a shard between two groups (docs/internals/migration.md), and the way back.
//
// While it lasts the stored record of the shard says who serves it: the source with epoch e until
// the switch, then the target with e+1, and with e+2 once it has finished. Turned round, source and
// target have changed places and the epochs go on.

import KVBase
import ShardCore

extension Controller {
    mutating func pumpMove(
        _ status: OperationStatus, _ work: ShardWork, now: Instant,
        into effects: inout ControllerEffects
    ) {
        guard let shard = shards[work.moving] else { return }
        switch status.record.step {
        case .switching: pumpSwitching(status, work, shard, now: now, into: &effects)
        case .declining: pumpDeclining(status, work, shard, now: now, into: &effects)
        case .copying: pumpCopying(status, work, shard, now: now, into: &effects)
        case .verifying: pumpVerifying(status, work, shard, now: now, into: &effects)
        case .finishing:
            if status.isConfirmed {
                finished(status.record, work, shard, now: now, into: &effects)
            } else {
                tell(status, work.target, .finish(shard.id, shard.epoch), now: now)
            }
        default: break
        }
    }

    // MARK: The switch

    /// Fence, then activation, without anything in between: clients wait meanwhile.
    private mutating func pumpSwitching(
        _ status: OperationStatus, _ work: ShardWork, _ shard: Shard, now: Instant,
        into effects: inout ControllerEffects
    ) {
        let record = status.record
        switch (status.progress.part, status.isConfirmed) {
        case (.first, false):
            // Nothing is fenced for a target that cannot take over now.
            if !status.progress.mayHaveSent, serving(work.target) == nil {
                return note("group \(work.target) has no serving leader", of: record.id)
            }
            tell(
                status, work.source, .fence(shard.id, shard.epoch, to: work.target),
                isUrgent: true, now: now)
        case (.first, true):
            enter(.second, of: record.id)
            pump(record.id, now: now, into: &effects)
        case (.second, false):
            guard let table = tables[work.table] else { return }
            tell(
                status, work.target,
                .activate(
                    taken(shard, by: work.target), table.partitioning, from: work.source,
                    floor: status.progress.floor), isUrgent: true, now: now)
        case (.second, true):
            var change = OperationChange(record: record)
            change.record.step = .copying
            change.shards = [taken(shard, by: work.target)]
            decide(
                "operation \(record.id): group \(work.target) has taken shard \(shard.id) over from "
                    + "group \(work.source) with epoch \(shard.epoch.next()) and copies it"
                    + (work.isTurned ? " back" : ""),
                group: work.target, operation: record.id, shard: shard.id, now: now,
                into: &effects)
            save(change, now: now, into: &effects)
        case (.third, false):
            // The fence of the way back was refused: the source may have finished before.
            tell(
                status, work.source, .finish(shard.id, shard.epoch), isUrgent: true, now: now)
        case (.third, true):
            var change = record
            change.work?.source = work.target
            change.work?.target = work.source
            change.work?.isTurned = false
            finished(change, change.work ?? work, shard, now: now, into: &effects)
        }
    }

    /// The shard as its next owner has it.
    private func taken(_ shard: Shard, by group: GroupID) -> Shard {
        var taken = shard
        taken.group = group
        taken.epoch = shard.epoch.next()
        return taken
    }

    // MARK: The copy

    private mutating func pumpCopying(
        _ status: OperationStatus, _ work: ShardWork, _ shard: Shard, now: Instant,
        into effects: inout ControllerEffects
    ) {
        let id = status.record.id
        let report = copyReports[shard.id].flatMap { $0.epoch == shard.epoch ? $0 : nil }
        if isHeldBack(status.record) {
            guard now >= status.progress.holdAgainAt, let leader = serving(work.target) else {
                return
            }
            _ = command(leader, .holdCopy(work.target, shard.id), .hold)
            let again = now + settings.commandTimeout
            operations.update(id) { status in
                status.progress.holdAgainAt = again
                status.reachedAt = now
                status.note = ""
            }
            return
        }
        if let report {
            if report.bytes != status.reached || report.isThrottled {
                operations.update(id) { status in
                    status.reached = report.bytes
                    status.reachedAt = now
                    status.copied.count(bytes: report.bytes, records: report.records, now: now)
                }
                shardCopyPace = operations[id]?.copied.bytesPerSecond(now: now) ?? shardCopyPace
            }
            if !report.isWhole {
                let silence = (now - status.reachedAt).count / 1_000_000_000
                return note(
                    report.isThrottled
                        ? "the copy rests: requests on the nodes involved take too long"
                        : now - status.reachedAt > settings.stallTimeout
                            ? "nothing was copied for \(silence) s" : "", of: id)
            }
        } else {
            guard serving(work.target) != nil else {
                operations.update(id) { $0.reachedAt = now }
                return note("group \(work.target) has no serving leader", of: id)
            }
            guard now - status.reachedAt >= settings.copySilence else { return }
        }
        var record = status.record
        if report != nil, let copied = operations[id]?.copied.bytes { record.work?.bytes = copied }
        advance(
            record, to: .verifying, report.map { "\(quantity($0.bytes)) are copied" } ?? "",
            now: now, into: &effects)
    }

    // MARK: The end

    /// The target owns the shard alone. What the source still holds is from here on a matter of its
    /// own (Controller+FormerShards.swift): nobody waits for it.
    private mutating func finished(
        _ record: OperationRecord, _ work: ShardWork, _ shard: Shard, now: Instant,
        into effects: inout ControllerEffects
    ) {
        let owned = taken(shard, by: work.target)
        var change = OperationChange(record: record)
        change.shards = [owned]
        change.former = FormerShard(
            operation: record.id, shard: owned.id, table: owned.table, range: owned.range,
            group: work.source, epoch: owned.epoch, since: max(1, wallClock(now)),
            bytes: sizes(of: shard)?.bytes ?? work.bytes)
        let isLate = record.isCancelled && !work.isTurned
        decide(
            "operation \(record.id): group \(work.target) owns shard \(shard.id) with epoch "
                + "\(owned.epoch), \(record.outcome)"
                + (isLate ? "; the cancellation came too late" : ""),
            group: work.target, operation: record.id, shard: shard.id, now: now, into: &effects)
        if work.isTurned {
            return finish(
                change, as: .cancelled,
                "turned round: shard \(shard.id) is in group \(work.target) again, with all that was "
                    + "written meanwhile" + standingCut(work), now: now, into: &effects)
        }
        let done =
            "shard \(shard.id) moved from group \(work.source) to group \(work.target)"
            + (work.bytes > 0 ? " (\(quantity(work.bytes)))" : "")
        if work.neighbour != .none, !record.isCancelled {
            change.record.step = isHeldBack(record) ? .forming : .merging
            change.record.outcome = done
            effects.append(.decided("operation \(record.id) goes on: \(change.record.step.words)"))
            return save(change, now: now, into: &effects)
        }
        let grace = RuntimeSetting.releaseAfter
        finish(
            change, as: .done,
            done + (isLate ? "; the cancellation came too late" : "")
                + (runtime[grace] == 0
                    ? ""
                    : "; group \(work.source) keeps its copy for \(grace.write(runtime[grace]))"),
            now: now, into: &effects)
    }

    /// What a cancellation leaves.
    func standingCut(_ work: ShardWork) -> String {
        work.cut != nil && shards[work.upper] != nil
            ? "; the cut stays: shard \(work.upper) has the upper keys" : ""
    }

    // MARK: Giving up

    /// Before the activation: the target is asked to decline, then the source takes the shard back.
    private mutating func pumpDeclining(
        _ status: OperationStatus, _ work: ShardWork, _ shard: Shard, now: Instant,
        into effects: inout ControllerEffects
    ) {
        let record = status.record
        var back = taken(shard, by: work.source)
        back.epoch = back.epoch.next()
        switch (status.progress.part, status.isConfirmed) {
        case (.first, false):
            tell(
                status, work.target, .decline(shard.id, shard.epoch.next()), isUrgent: true,
                now: now)
        case (.first, true):
            enter(.second, of: record.id)
            pump(record.id, now: now, into: &effects)
        case (.second, false):
            // It may be under way still: after this one it can come no more.
            tell(
                status, work.source, .fence(shard.id, shard.epoch, to: work.target),
                isUrgent: true, now: now)
        case (.second, true):
            enter(.third, of: record.id)
            pump(record.id, now: now, into: &effects)
        case (.third, false):
            guard let table = tables[work.table] else { return }
            tell(
                status, work.source,
                .activate(back, table.partitioning, from: .none, floor: .zero), isUrgent: true,
                now: now)
        case (.third, true):
            var change = OperationChange(record: record)
            change.shards = [back]
            let reason = record.outcome.isEmpty ? "stopped by the operator" : record.outcome
            finish(
                change, as: .cancelled,
                "\(reason); shard \(shard.id) stays in group \(work.source)" + standingCut(work),
                now: now, into: &effects)
        }
    }

    /// The same move with the roles changed: the way back from the activation on.
    mutating func turn(
        _ record: OperationRecord, _ work: ShardWork, shards changed: [Shard] = [], now: Instant,
        into effects: inout ControllerEffects
    ) {
        var change = OperationChange(record: record)
        change.record.isCancelled = true
        change.record.isPaused = false
        change.record.step = .switching
        change.record.work?.source = work.target
        change.record.work?.target = work.source
        change.record.work?.isTurned = true
        change.shards = changed
        decide(
            "operation \(record.id) turns round: shard \(work.moving) goes from group \(work.target) "
                + "back to group \(work.source)",
            group: work.source, operation: record.id, shard: work.moving, now: now,
            into: &effects)
        save(change, now: now, into: &effects)
    }

    /// A group's log refused the command of a step.
    mutating func moveRefused(
        _ status: OperationStatus, _ error: DatabaseError, now: Instant,
        into effects: inout ControllerEffects
    ) {
        var record = status.record
        guard let work = record.work, let shard = shards[work.moving] else { return }
        switch (record.step, status.progress.part) {
        case (.switching, .first) where work.isTurned && error.code == .fenced:
            enter(.third, of: record.id)
            pump(record.id, now: now, into: &effects)
        case (.switching, .third): again(.first, of: record.id, now: now)
        case (.switching, .second) where !work.isTurned:
            // The source is fenced already: better back than waiting for a group that will not.
            record.step = .declining
            record.isCancelled = true
            record.outcome = "group \(work.target) refused the shard: \(error.message)"
            decide(
                "operation \(record.id) gives up: \(record.outcome)", group: work.target,
                operation: record.id, shard: shard.id, now: now, into: &effects)
            save(OperationChange(record: record), now: now, into: &effects)
        case (.declining, .first) where error.code == .refused:
            // It was activated before it could decline.
            turn(
                record, work, shards: [taken(shard, by: work.target)], now: now, into: &effects)
        case (.declining, .second) where error.code == .fenced:
            // Taken back already, by the command of a controller before this one.
            enter(.third, of: record.id)
            pump(record.id, now: now, into: &effects)
        case (.declining, .third): again(.second, of: record.id, now: now)
        case (.verifying, _), (.finishing, _):
            if error.code == .refused {
                advance(
                    record, to: .copying, "not copied whole: \(error.message)", now: now,
                    into: &effects)
            }
        default: break
        }
    }

    /// As `enter`, not in a hot circle.
    private mutating func again(_ part: ShardStepPart, of id: OperationID, now: Instant) {
        enter(part, of: id)
        let at = now + settings.commandRetryDelay * 4
        operations.update(id) { $0.sendAgainAt = at }
    }
}
