// A backup of the metadata that an operator asks for. The shell writes it; the operation makes sure that
// it is written though the controller changes, and keeps how it ended.

import KVBase
import ShardCore

extension Controller {
    mutating func beginBackup(
        _ request: RequestID, now: Instant, into effects: inout ControllerEffects
    ) throws(DatabaseError) {
        if let running = openOperations.first(where: { $0.record.kind == .backup }) {
            throw isWorkedOn("the backup", running)
        }
        let record = OperationRecord(
            id: IDAllocators.take(&nextOperation), kind: .backup, step: .writing,
            group: .none, old: .nowhere, new: .nowhere)
        begin(
            OperationChange(record: record, usesIDs: true), request: request,
            "stores the metadata and a snapshot of it in the backup", now: now, into: &effects)
    }

    /// Asks for it once in each controller's time.
    mutating func pumpBackup(_ status: OperationStatus, into effects: inout ControllerEffects) {
        guard status.sendAgainAt != .distantFuture else { return }
        operations.update(status.record.id) { $0.sendAgainAt = .distantFuture }
        effects.append(.backUp(status.record.id))
    }

    mutating func backupEnded(
        _ id: OperationID, _ result: Result<String, DatabaseError>, now: Instant,
        into effects: inout ControllerEffects
    ) {
        // It may have been cancelled meanwhile.
        guard isActing, let status = operations[id], !status.isStoring, !status.record.isFinished
        else { return }
        let change = OperationChange(record: status.record)
        switch result {
        case .success(let outcome):
            finish(change, as: .done, outcome, now: now, into: &effects)
        case .failure(let error):
            finish(change, as: .failed, error.message, now: now, into: &effects)
        }
    }
}
