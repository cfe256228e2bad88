// A backup of the metadata that an operator asks for, and its verification. The shell does it; the operation
// makes sure that it is done though the controller changes, and keeps how it ended.

import KVBase
import ShardCore

extension Controller {
    mutating func beginBackup(
        _ kind: OperationRecord.Kind, _ request: RequestID, now: Instant,
        into effects: inout ControllerEffects
    ) throws(DatabaseError) {
        if let running = openOperations.first(where: { $0.record.kind == kind }) {
            throw isWorkedOn("the backup", running)
        }
        let writes = kind == .backup
        let record = OperationRecord(
            id: IDAllocators.take(&nextOperation), kind: kind, step: writes ? .writing : .reading,
            group: .none, old: .nowhere, new: .nowhere)
        begin(
            OperationChange(record: record, usesIDs: true), request: request,
            writes
                ? "stores the metadata and a snapshot of it in the backup"
                : "reads every object of the backup",
            now: now, into: &effects)
    }

    /// Asks for it once in each controller's time.
    mutating func pumpBackup(_ status: OperationStatus, into effects: inout ControllerEffects) {
        guard status.sendAgainAt != .distantFuture else { return }
        let id = status.record.id
        operations.update(id) { $0.sendAgainAt = .distantFuture }
        effects.append(status.record.kind == .backup ? .backUp(id) : .verifyBackup(id))
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
