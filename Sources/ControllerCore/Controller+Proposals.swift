// Proposals of rules: withdrawn when their grounds are gone.

import KVBase
import ShardCore

extension Controller {
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
