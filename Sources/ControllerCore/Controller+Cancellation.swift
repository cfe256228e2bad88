// Cancelling an operation: what that means depends on how far it has come.

import KVBase
import ShardCore

extension Controller {
    mutating func cancel(_ id: OperationID, _ request: RequestID) throws(DatabaseError) {
        let status = try find(id)
        guard !status.record.isFinished else {
            throw DatabaseError(.refused, "operation \(id) has ended: \(status.record.step)")
        }
        guard status.cancellations.count < 16 else {
            throw DatabaseError(.overloaded, "too many cancellations of operation \(id) wait")
        }
        operations.update(id) { $0.cancellations.append(request) }
        touchedOperations.append(id)
    }

    /// A part of a cancelled operation is cancelled too.
    func wantsCancel(_ status: OperationStatus) -> Bool {
        guard !status.record.isCancelled, status.record.parent != .none,
            let parent = operations[status.record.parent]
        else { return false }
        return parent.record.isCancelled
    }

    mutating func startCancel(
        _ status: OperationStatus, now: Instant, into effects: inout ControllerEffects
    ) {
        let id = status.record.id
        var record = status.record
        operations.update(id) { status in
            status.requests += status.cancellations
            status.cancellations = []
        }
        if record.isCancelled {
            // Asked for before: whoever asks again is answered at once.
            for request in operations[id]?.requests ?? [] {
                operationAnswers.append((request, .success(id)))
            }
            operations.update(id) { $0.requests = [] }
            return
        }
        record.isCancelled = true
        record.isPaused = false
        record.isStopped = !status.cancellations.isEmpty
        if record.isStopped, let rule = RuleName(rawValue: record.origin) {
            let setting = RuntimeSetting.holdAfterCancel
            decide(
                "\(rule.rawValue) leaves this alone for \(setting.write(runtime[setting])): the "
                    + "operator stopped operation \(id)",
                nodes: [record.old.node].filter { $0 != .none },
                group: record.group, operation: id, now: now, into: &effects)
        }
        switch record.kind {
        case .restore: break
        case .transfer, .backup, .verifyBackup:
            if record.kind == .verifyBackup { effects.append(.verifyNoMore(id)) }
            finish(
                OperationChange(record: record), as: .cancelled, "stopped by the operator",
                now: now, into: &effects)
        case .replaceReplica where record.step == .proposed,
            .addReplica where record.step == .proposed:
            finish(
                OperationChange(record: record), as: .cancelled, "the proposal was withdrawn",
                now: now, into: &effects)
        case .replaceReplica where record.step == .creating,
            .addReplica where record.step == .creating:
            endReplacement(record, as: .cancelled, "stopped before it began", now: now, &effects)
        case .replaceReplica, .addReplica:
            record.step = .retracting
            decide(
                "operation \(id) is being cancelled: takes \(name(record.new.node)) out of group "
                    + "\(record.group) again",
                nodes: [record.new.node], group: record.group, operation: id, now: now,
                into: &effects)
            save(OperationChange(record: record), now: now, into: &effects)
        case .replaceNode, .drain:
            save(
                OperationChange(record: record, released: record.old.node), now: now,
                into: &effects)
        case .rebalance: save(OperationChange(record: record), now: now, into: &effects)
        case .split, .move, .merge:
            cancelShards(status, record, now: now, into: &effects)
        }
    }
}
