// Replacements that a rule proposes: nothing is taken from the spare pool before they are applied.

import KVBase
import ShardCore

extension Controller {
    mutating func propose(
        _ plan: Replacement, origin: String, reason: String, now: Instant,
        into effects: inout ControllerEffects
    ) {
        let waiting = openOperations.count { $0.record.step == .proposed }
        guard waiting < settings.proposalsMax else { return }
        let record = OperationRecord(
            id: IDAllocators.take(&nextOperation),
            kind: plan.isAddition ? .addReplica : .replaceReplica, step: .proposed,
            origin: origin, reason: reason, group: plan.group, old: plan.old,
            new: Placement(replica: .none, node: plan.node, disk: plan.disk))
        begin(
            OperationChange(record: record, usesIDs: true), request: nil,
            "proposes: it " + describe(plan), now: now, into: &effects)
    }

    /// Starts a proposed replacement; another node takes over when the proposed one cannot any more.
    mutating func applyReplacement(
        _ status: OperationStatus, _ request: RequestID, now: Instant,
        into effects: inout ControllerEffects
    ) throws(DatabaseError) {
        var record = status.record
        let id = record.id
        guard !status.isStoring else {
            throw DatabaseError(.unavailable, "operation \(id) is being stored; repeat")
        }
        try checkFree(record.group)
        guard let group = groups[record.group],
            isGrounded(record, in: group)
        else { throw worldMoved(lackOfGrounds(record)) }
        try checkServes(group)
        let prefersSpares = record.kind == .replaceReplica
        var choice = choose(
            record.group, replacing: record.old, with: record.new.node,
            prefersSpares: prefersSpares, now: now)
        if case .failure = choice {
            choice = choose(
                record.group, replacing: record.old, prefersSpares: prefersSpares, now: now)
        }
        let plan = try choice.get()
        record.step = .creating
        record.wasSpare = nodes[plan.node]?.record.isSpare ?? false
        record.new = Placement(
            replica: IDAllocators.take(&ids.replica), node: plan.node, disk: plan.disk)
        operations.update(id) { $0.requests.append(request) }
        decide(
            "operation \(id) is applied by the operator: \(describe(plan))",
            nodes: [plan.old.node, plan.node].filter { $0 != .none }, group: plan.group,
            operation: id, now: now, into: &effects)
        save(
            OperationChange(record: record, nodes: [takeFromPool(plan.node)], usesIDs: true),
            now: now, into: &effects)
    }

    /// Why a proposed replacement has no grounds any more, or nil.
    func objection(toReplacement record: OperationRecord, of rule: RuleName) -> String? {
        guard let group = groups[record.group], isGrounded(record, in: group) else {
            return lackOfGrounds(record)
        }
        if let running = operation(on: record.group) {
            return "operation \(running.record.id) works on group \(record.group)"
        }
        guard let index = group.placementIndex(replica: record.old.replica) else { return nil }
        guard rule == .repair else {
            return isReplicaMoveDue(record) ? nil : "nothing would be gained any more"
        }
        guard nodes[record.old.node]?.isFit(disk: record.old.disk) == true,
            group.reports[index]?.state == .active, isUpToDate(record.old.replica)
        else { return nil }
        return "\(name(record.old.node)) is back with its replica"
    }

    /// Whether there still is a replica to replace, or one that lacks.
    private func isGrounded(_ record: OperationRecord, in group: GroupStatus) -> Bool {
        record.kind == .addReplica
            ? group.lacking > 0 : group.placementIndex(replica: record.old.replica) != nil
    }

    private func lackOfGrounds(_ record: OperationRecord) -> String {
        record.kind == .addReplica
            ? "group \(record.group) lacks no replica any more"
            : "group \(record.group) has no replica on \(name(record.old.node)) any more"
    }
}
