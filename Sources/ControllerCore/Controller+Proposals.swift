// Proposals of rules: what they would do, and their end when their grounds are gone.

import KVBase
import ShardCore

extension Controller {
    /// The request whose plan says what applying a proposal would do now.
    public func proposed(_ id: OperationID) throws(DatabaseError) -> OperationRequest {
        let record = try find(id).record
        guard record.step == .proposed else {
            throw DatabaseError(
                .refused,
                "operation \(id) is \(record.step.words), not proposed: there is nothing to apply")
        }
        guard let work = record.work else {
            return record.kind == .addReplica
                ? .addReplica(record.group, on: name(record.new.node))
                : .replace(
                    node: name(record.old.node), group: record.group, with: name(record.new.node))
        }
        if let change = whatMoved(since: work) { throw worldMoved(change) }
        let target: MoveTarget = work.target == .none ? .any : .group(work.target)
        switch record.kind {
        case .split:
            return .split(
                SplitRequest(
                    table: tables[work.table]?.name ?? "", shard: work.shard, at: work.cut,
                    to: work.moving == .none ? nil : target))
        case .merge: return .merge(work.shard)
        default: return .move(work.shard, to: target)
        }
    }

    mutating func withdrawProposals(now: Instant, into effects: inout ControllerEffects) {
        for status in openOperations where status.record.step == .proposed && !status.isStoring {
            guard let rule = RuleName(rawValue: status.record.origin),
                let reason = objection(to: status.record, of: rule, now: now)
            else { continue }
            finish(
                OperationChange(record: status.record), as: .cancelled, "withdrawn: \(reason)",
                now: now, into: &effects)
        }
    }

    /// Why a proposal has no grounds any more, or nil. Some distance below the limits, so that none
    /// comes and goes.
    private func objection(
        to record: OperationRecord, of rule: RuleName, now: Instant
    ) -> String? {
        if mode(of: rule) == .off { return "the rule is off" }
        if let work = record.work {
            guard let shard = shards[work.shard] else { return "shard \(work.shard) is gone" }
            guard shard.epoch == work.epoch else { return "shard \(work.shard) has changed" }
            if let running = operation(onShard: work.shard) {
                return "operation \(running.record.id) works on shard \(work.shard)"
            }
        }
        switch rule {
        case .hotShard:
            guard let rate = rate(of: record.group, now: now), rate <= runtime[.splitRate] / 5 * 4
            else { return nil }
            return "group \(record.group) serves \(Self.counted(rate)) requests/s now"
        case .largeShard:
            guard let bytes = record.work.flatMap({ shardReports[$0.shard]?.bytes }),
                bytes <= runtime[.splitBytes] / 5 * 4
            else { return nil }
            return "it has \(quantity(bytes)) now"
        case .coldShards:
            guard let work = record.work, !rules.isOrderOld else { return nil }
            let seam = RuleState.Seam(lower: work.shard, upper: work.neighbour)
            guard rules.seams.contains(seam) else { return "they are no neighbours any more" }
            return isWarm(seam, now: now) ? "they are used again" : nil
        case .rebalance where record.work != nil:
            let age = wallClock(now) - min(wallClock(now), record.startedAt)
            return age >= 3_600_000 ? "it is an hour old and looked at anew" : nil
        case .repair, .rebalance: return objection(toReplacement: record, of: rule)
        }
    }
}
