// The steps of operations: each is stored before it is acted on, and what it changes takes effect once it
// is durable.

import KVBase
import ShardCore

extension Controller {
    /// Stores a new operation and takes it up once it is there.
    mutating func begin(
        _ change: OperationChange, request: RequestID?, _ decision: String, now: Instant,
        into effects: inout ControllerEffects
    ) {
        var change = change
        let at = wallClock(now)
        change.record.startedAt = at
        change.record.changedAt = at
        var status = OperationStatus(record: change.record, reachedAt: now)
        if let request { status.requests = [request] }
        operations.set(status, for: change.record.id)
        decide(
            "operation \(change.record.id) \(decision), because \(change.record.reason)",
            nodes: [change.record.old.node, change.record.new.node].filter { $0 != .none },
            group: change.record.group, operation: change.record.id,
            shard: change.record.work?.shard ?? .none, now: now, into: &effects)
        save(change, now: now, into: &effects)
    }

    /// Stores the next state of an operation. Nothing is done for it before that is durable.
    mutating func save(
        _ change: OperationChange, now: Instant, into effects: inout ControllerEffects
    ) {
        var change = change
        let id = change.record.id
        change.record.changedAt = wallClock(now)
        if change.record.isFinished { change.record.endedAt = change.record.changedAt }
        var transaction = MetadataTransaction()
        transaction.put(StoreKey.operation(id)) { change.record.encode(into: &$0) }
        keepHistory(of: change.record, now: now, in: &transaction)
        if change.usesIDs {
            transaction.put(ids)
            transaction.put(StoreKey.nextOperation) { $0.write(nextOperation) }
        }
        if let group = change.group { groups.update(group.group.id) { $0.isStoring = true } }
        change.write(into: &transaction)
        if change.record.isFinished {
            let finished = operations.elements.filter(\.record.isFinished).map(\.record.id)
            for old in finished.dropLast(Self.finishedOperationsMax - 1) {
                operations.remove(old)
                transaction.changes.append(.delete(key: StoreKey.operation(old)))
            }
        }
        operations.update(id) { status in
            status.isStoring = true
            status.storing = change.record.step
            // The outcome of a command of the same step still counts.
            guard status.record.step != change.record.step else { return }
            commands[status.command] = nil
            for command in status.progress.sent { commands[command] = nil }
        }
        store(transaction, then: .operation(change), into: &effects)
    }

    /// Ends an operation.
    mutating func finish(
        _ change: OperationChange, as step: OperationRecord.Step, _ outcome: String, now: Instant,
        into effects: inout ControllerEffects
    ) {
        var change = change
        change.record.step = step
        change.record.outcome = outcome
        decide(
            "operation \(change.record.id) is \(step): \(outcome)",
            nodes: [change.record.old.node, change.record.new.node].filter { $0 != .none },
            group: change.record.group, operation: change.record.id,
            shard: change.record.work?.shard ?? .none, now: now, into: &effects)
        save(change, now: now, into: &effects)
    }

    /// Goes on to the next step. `outcome`: what this one brought, if that is worth telling.
    mutating func advance(
        _ record: OperationRecord, to step: OperationRecord.Step, _ outcome: String = "",
        now: Instant, into effects: inout ControllerEffects
    ) {
        var record = record
        record.step = step
        if !outcome.isEmpty { record.outcome = outcome }
        effects.append(.decided("operation \(record.id) goes on: \(step.words)"))
        save(OperationChange(record: record), now: now, into: &effects)
    }

    mutating func operationStored(
        _ change: OperationChange, now: Instant, into effects: inout ControllerEffects
    ) {
        let id = change.record.id
        let isNewStep =
            operations[id]?.record.step != change.record.step
            || operations[id]?.record.new != change.record.new
        var requests: [RequestID] = []
        operations.update(id) { status in
            status.record = change.record
            status.isStoring = false
            status.isStored = true
            requests = status.requests
            status.requests = []
            if isNewStep {
                status.command = 0
                status.sendAgainAt = .origin
                status.isConfirmed = false
                status.note = ""
                status.reached = 0
                status.reachedAt = now
                status.copied = CopyProgress()
                status.progress = ShardProgress(mayHaveSent: false)
            }
        }
        for node in change.nodes {
            nodes.update(node.id) { $0.record.isSpare = node.isSpare }
            if let record = nodes[node.id]?.record { changes.append(.node(record)) }
        }
        for replica in change.retired { retired.set(replica, for: replica.replica) }
        if let record = change.former {
            former.set(FormerShardStatus(record: record), for: id)
        }
        if change.held != .none { nodes.update(change.held) { $0.isHeld = true } }
        if change.released != .none { nodes.update(change.released) { $0.isHeld = false } }
        take(change.shards, removed: change.removedShards)
        formed(change.newGroups, now: now)
        if let group = change.group {
            takeOver(placementsOf: group, now: now)
            consider(group.group.id, now: now, into: &effects)
        }
        if change.record.isFinished, let work = change.record.work {
            // What was measured before says nothing about the groups as they are now.
            rules.hot.remove(work.source)
            rules.hot.remove(work.target)
        }
        for request in requests { operationAnswers.append((request, .success(id))) }
        pump(id, now: now, into: &effects)
        if change.record.isFinished, change.record.parent != .none {
            operations.update(change.record.parent) { $0.sendAgainAt = .origin }
            pump(change.record.parent, now: now, into: &effects)
        }
    }
}
