// Driving operations: each goes as far as it can now, and its commands are repeated until their effect
// is seen. How they are asked for is in Controller+OperationRequests.swift, how their steps are stored in
// Controller+OperationSteps.swift; each kind has files of its own.

import KVBase
import ShardCore

extension Controller {
    /// Finished operations kept for operators.
    static let finishedOperationsMax = 200

    /// What may be told of: a new operation that never reaches the store gives its id to another one.
    public var storedOperations: [OperationStatus] { operations.elements.filter(\.isStored) }

    public func storedOperation(_ id: OperationID) -> OperationStatus? {
        operations[id].flatMap { $0.isStored ? $0 : nil }
    }

    var openOperations: [OperationStatus] {
        operations.elements.filter { !$0.record.isFinished }
    }

    /// The operation that works on the members or the leader of a group, if any. Those on its shards
    /// go on beside it.
    func operation(on group: GroupID) -> OperationStatus? {
        operations.elements.last {
            !$0.record.isFinished && $0.record.step != .proposed && $0.record.group == group
                && $0.record.work == nil
        }
    }

    /// Takes an operation as far as it goes now.
    mutating func pump(
        _ id: OperationID, now: Instant, into effects: inout ControllerEffects
    ) {
        guard isActing, let status = operations[id], !status.isStoring else { return }
        guard !status.record.isFinished else {
            let ended = DatabaseError(
                .refused, "operation \(id) has ended: \(status.record.step)")
            for request in status.cancellations + status.pauses.map(\.request) {
                operationAnswers.append((request, .failure(ended)))
            }
            operations.update(id) { status in
                status.cancellations = []
                status.pauses = []
            }
            return
        }
        if !status.pauses.isEmpty { return storePause(status, now: now, into: &effects) }
        if !status.cancellations.isEmpty || wantsCancel(status) {
            if let obstacle = obstacleToCancel(status.record) {
                for request in status.cancellations {
                    operationAnswers.append((request, .failure(obstacle)))
                    decide(
                        "refused cancel of operation \(id): \(obstacle.message)",
                        operation: id, now: now, into: &effects)
                }
                operations.update(id) { $0.cancellations = [] }
            } else {
                return startCancel(status, now: now, into: &effects)
            }
        }
        switch status.record.kind {
        case .replaceReplica, .addReplica:
            guard status.record.step != .proposed else { break }
            pumpReplacement(status, now: now, into: &effects)
        case .replaceNode, .drain: pumpNode(status, now: now, into: &effects)
        case .rebalance: pumpRebalance(status, now: now, into: &effects)
        case .backup, .verifyBackup: pumpBackup(status, into: &effects)
        case .restore: break
        case .transfer: pumpTransfer(status, now: now, into: &effects)
        case .split, .move, .merge: pumpShards(status, now: now, into: &effects)
        }
    }

    /// Sends a step's command; repeated until the step is seen to be done.
    mutating func send(
        _ id: OperationID, to node: NodeID, _ action: NodeCommand.Action, now: Instant
    ) {
        guard nodes[node]?.isLive == true else { return }
        let sent = command(node, action, .operation(id))
        operations.update(id) { status in
            commands[status.command] = nil
            status.command = sent
            status.sendAgainAt = now + settings.commandTimeout
        }
    }

    mutating func operationOutcome(
        _ id: OperationID, _ outcome: CommandOutcome, now: Instant,
        into effects: inout ControllerEffects
    ) {
        guard let status = operations[id] else { return }
        if status.record.work != nil {
            return shardsOutcome(status, outcome, now: now, into: &effects)
        }
        guard status.command == outcome.id else { return }
        let error = outcome.error
        operations.update(id) { status in
            status.command = 0
            if let error {
                status.note = error.message
                status.sendAgainAt = now + settings.commandRetryDelay * 4
            } else {
                status.isConfirmed = true
                status.note = ""
            }
        }
        if let error, status.record.step == .creating, error.code != .unavailable {
            return retarget(
                status.record, "\(name(status.record.new.node)) refused: \(error.message)",
                now: now, into: &effects)
        }
        pump(id, now: now, into: &effects)
    }
}
