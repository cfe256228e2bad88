// Telling groups what a step of an operation on shards asks for, and what their answers mean.

import KVBase
import ShardCore

extension Controller {
    /// The live leader of a group, when it serves.
    func serving(_ group: GroupID) -> NodeID? {
        guard let status = groups[group], status.hasLeader, status.isServing,
            nodes[status.leader.node]?.isLive == true
        else { return nil }
        return status.leader.node
    }

    /// Sends the command of a step, or of a part of it, when it is due. `isUrgent`: clients wait.
    mutating func tell(
        _ status: OperationStatus, _ group: GroupID, _ shardCommand: ShardCommand,
        isUrgent: Bool = false, now: Instant
    ) {
        guard now >= status.sendAgainAt else { return }
        let id = status.record.id
        guard let leader = serving(group) else {
            return note("group \(group) has no serving leader", of: id)
        }
        let sent = command(leader, .shard(group, shardCommand), .operation(id))
        let again = now + (isUrgent ? settings.commandRetryDelay * 4 : settings.commandTimeout)
        operations.update(id) { status in
            status.command = sent
            status.sendAgainAt = again
            status.progress.mayHaveSent = true
            status.progress.sent.append(sent)
            // A few of the same kind may be under way; any success counts.
            if status.progress.sent.count > 8 {
                commands[status.progress.sent.removeFirst()] = nil
            }
        }
    }

    /// The next part of the step begins at once.
    mutating func enter(_ part: ShardStepPart, of id: OperationID) {
        operations.update(id) { status in
            for command in status.progress.sent { commands[command] = nil }
            status.progress.sent = []
            status.progress.part = part
            status.command = 0
            status.sendAgainAt = .origin
            status.isConfirmed = false
            status.note = ""
        }
    }

    mutating func note(_ text: String, of id: OperationID) {
        operations.update(id) { $0.note = text }
    }

    mutating func shardsOutcome(
        _ status: OperationStatus, _ outcome: CommandOutcome, now: Instant,
        into effects: inout ControllerEffects
    ) {
        let id = status.record.id
        guard status.progress.sent.contains(outcome.id) else { return }
        guard let error = outcome.error else {
            operations.update(id) { status in
                status.isConfirmed = true
                if status.progress.part == .first { status.progress.floor = outcome.floor }
                status.note = ""
            }
            return pump(id, now: now, into: &effects)
        }
        // What an older one met with says nothing about the newest.
        guard status.command == outcome.id else { return }
        let delay =
            isPassing(error) ? settings.commandRetryDelay : settings.commandRetryDelay * 4
        operations.update(id) { status in
            status.command = 0
            status.note = error.message
            status.sendAgainAt = now + delay
        }
        guard !status.isStoring, !isPassing(error) else { return }
        refused(status, error, now: now, into: &effects)
    }

    /// The command was not decided on: the same one may succeed a moment later.
    private func isPassing(_ error: DatabaseError) -> Bool {
        error.code != .refused && error.code != .fenced
    }

    /// A group's log refused the command of a step.
    private mutating func refused(
        _ status: OperationStatus, _ error: DatabaseError, now: Instant,
        into effects: inout ControllerEffects
    ) {
        let record = status.record
        guard record.step == .splitting else {
            return moveRefused(status, error, now: now, into: &effects)
        }
        guard error.code == .refused else { return }
        finish(
            OperationChange(record: record), as: record.isCancelled ? .cancelled : .failed,
            "the cut was refused: \(error.message)", now: now, into: &effects)
    }

    /// A group has another leader, or it began to serve: operations that wait for it go on at once.
    mutating func touchMoves(of group: GroupID) {
        for status in operations.elements where !status.record.isFinished {
            guard let work = status.record.work,
                work.source == group || work.target == group
                    || shards[work.shard]?.group == group
            else { continue }
            operations.update(status.record.id) { $0.sendAgainAt = .origin }
            touchedOperations.append(status.record.id)
        }
    }

    // MARK: Shards

    /// Takes stored shards into what is known, and shows them.
    mutating func take(_ changed: [Shard], removed: [Shard]) {
        estimateSizes(of: changed, removed: removed)
        for shard in removed {
            forget(shard)
            changes.append(.shardRemoved(shard.id, shard.table))
        }
        for shard in changed {
            let before = shards[shard.id]
            if let before { shardCounts[before.group, default: 0] -= 1 }
            shardCounts[shard.group, default: 0] += 1
            shards.set(shard, for: shard.id)
            moveSize(of: shard.id, from: before?.group, to: shard.group)
            copyReports.remove(shard.id)
            digests.remove(shard.id)
            changes.append(.shard(shard))
        }
    }

    /// A shard that is there no more, and everything known of it.
    mutating func forget(_ shard: Shard) {
        moveSize(of: shard.id, from: shards[shard.id]?.group, to: nil)
        shards.remove(shard.id)
        shardCounts[shard.group, default: 0] -= 1
        shardReports.remove(shard.id)
        estimatedShards.remove(shard.id)
        shardLoads.remove(shard.id)
        copyReports.remove(shard.id)
        digests.remove(shard.id)
    }
}

extension Placement {
    /// For operations that replace no replica.
    static let nowhere = Placement(replica: .none, node: .none, disk: 0)
}
