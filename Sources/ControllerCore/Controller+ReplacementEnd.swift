// How a replacement ends: the group has the new replica, or the new one is taken out again and perhaps
// another node is tried.

import KVBase
import ShardCore

extension Controller {
    /// The group has the new replica as voter: the cluster map follows, the old one is retired.
    mutating func settle(
        _ record: OperationRecord, _ group: GroupStatus, now: Instant,
        into effects: inout ControllerEffects
    ) {
        guard !group.isStoring else { return }
        var next = GroupRecord(group: group.record, wanted: group.wanted)
        next.group.placements = voters(of: group, after: record).sorted { $0.replica < $1.replica }
        for (index, placement) in next.group.placements.enumerated() {
            let before = group.placementIndex(replica: placement.replica)
            if before.map({ group.createdMask & (1 << $0) != 0 }) ?? true {
                next.createdMask |= 1 << index
            }
        }
        let outcome =
            (record.kind == .addReplica
                ? "group \(record.group) has a replica on \(name(record.new.node)) now, "
                    + "\(next.group.placements.count) of \(group.wanted)"
                : "\(name(record.new.node)) has taken over group \(record.group) from "
                    + "\(name(record.old.node))")
            + (record.isCancelled ? "; the cancellation came too late" : "")
        finish(
            OperationChange(
                record: record, group: next, nodes: [takeFromPool(record.new.node)],
                retired: record.old == .nowhere
                    ? []
                    : [
                        RetiredReplica(
                            group: record.group, replica: record.old.replica,
                            node: record.old.node,
                            reason: "operation \(record.id): \(outcome), because \(record.reason)")
                    ]), as: .done, outcome, now: now, into: &effects)
    }

    /// Stops before the swap.
    mutating func abandon(
        _ record: OperationRecord, _ reason: String, now: Instant,
        _ effects: inout ControllerEffects
    ) {
        var record = record
        record.isCancelled = true
        record.outcome = reason
        if record.step == .creating {
            return endReplacement(record, as: .cancelled, reason, now: now, &effects)
        }
        record.step = .retracting
        decide(
            "operation \(record.id) gives up: \(reason)",
            nodes: [record.old.node].filter { $0 != .none },
            group: record.group, operation: record.id, now: now, into: &effects)
        save(OperationChange(record: record), now: now, into: &effects)
    }

    /// The new replica's node failed: take the replica out, then try another node.
    mutating func retarget(
        _ record: OperationRecord, _ reason: String, now: Instant,
        into effects: inout ControllerEffects
    ) {
        var record = record
        record.outcome = reason
        record.avoided.append(record.new.node)
        if record.step == .creating { return retracted(record, now: now, into: &effects) }
        record.step = .retracting
        decide(
            "operation \(record.id) looks for another node: \(reason)", nodes: [record.new.node],
            group: record.group, operation: record.id, now: now, into: &effects)
        save(OperationChange(record: record), now: now, into: &effects)
    }

    /// The new replica is not in the group (any more).
    mutating func retracted(
        _ record: OperationRecord, now: Instant, into effects: inout ControllerEffects
    ) {
        if record.isCancelled {
            let outcome = record.outcome.isEmpty ? "stopped by the operator" : record.outcome
            return endReplacement(record, as: .cancelled, outcome, now: now, &effects)
        }
        if record.origin == RuleName.rebalance.rawValue {
            // The old replica is as good as ever: no other node is needed.
            return endReplacement(record, as: .failed, record.outcome, now: now, &effects)
        }
        let plan = choose(
            record.group, replacing: record.old, prefersSpares: record.kind == .replaceReplica,
            avoiding: record.avoided, now: now)
        switch plan {
        case .failure(let error):
            endReplacement(
                record, as: .failed, "\(record.outcome); \(error.message)", now: now, &effects)
        case .success(let plan):
            let (retired, restored) = release(record, "its node failed: \(record.outcome)")
            var next = record
            next.step = .creating
            next.wasSpare = nodes[plan.node]?.record.isSpare ?? false
            next.new = Placement(
                replica: IDAllocators.take(&ids.replica), node: plan.node, disk: plan.disk)
            extraReports.remove(record.new.replica)
            decide(
                "operation \(record.id): \(record.outcome); \(describe(plan))",
                nodes: [record.new.node, plan.node], group: record.group, operation: record.id,
                now: now, into: &effects)
            save(
                OperationChange(
                    record: next, nodes: restored + [takeFromPool(plan.node)], retired: [retired],
                    usesIDs: true), now: now, into: &effects)
        }
    }

    /// Ends without a swap: the new replica is retired, its node goes back to the pool.
    mutating func endReplacement(
        _ record: OperationRecord, as step: OperationRecord.Step, _ outcome: String, now: Instant,
        _ effects: inout ControllerEffects
    ) {
        let (retired, restored) = release(record, outcome)
        extraReports.remove(record.new.replica)
        finish(
            OperationChange(record: record, nodes: restored, retired: [retired]), as: step,
            outcome, now: now, into: &effects)
    }

    private func release(_ record: OperationRecord, _ reason: String) -> (RetiredReplica, [Node]) {
        let retired = RetiredReplica(
            group: record.group, replica: record.new.replica, node: record.new.node,
            reason: "operation \(record.id): \(reason)")
        let isUsed = openOperations.contains {
            $0.record.id != record.id && $0.record.kind.bringsReplica
                && $0.record.step != .proposed
                && $0.record.new.node == record.new.node
        }
        guard record.wasSpare, !isUsed, let node = nodes[record.new.node], node.groups.isEmpty
        else { return (retired, []) }
        var spare = node.record
        spare.isSpare = true
        return (retired, [spare])
    }
}
