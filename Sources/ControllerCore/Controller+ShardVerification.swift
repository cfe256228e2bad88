// Whether the replicas of the group that took a shard over hold the same of it.

import KVBase
import ShardCore

extension Controller {
    /// Compares what the replicas of the target hold.
    mutating func pumpVerifying(
        _ status: OperationStatus, _ work: ShardWork, _ shard: Shard, now: Instant,
        into effects: inout ControllerEffects
    ) {
        let record = status.record
        guard !isHeldBack(record) else { return }
        guard status.isConfirmed else {
            if status.progress.verifiedAbove == nil {
                let above = leaderApplied(of: work.target)
                operations.update(record.id) { $0.progress.verifiedAbove = above }
            }
            return tell(status, work.target, .verify(shard.id, shard.epoch), now: now)
        }
        switch compare(shard, in: work.target, above: status.progress.verifiedAbove ?? .none) {
        case .agree(let replicas, let records):
            advance(
                record, to: .finishing,
                "\(replicas) replicas of group \(work.target) agree on \(records) records",
                now: now, into: &effects)
        case .differ(let text):
            // Stays so until an operator looked: nothing is finished, the source keeps its records.
            var next = record
            next.isPaused = true
            next.outcome = text
            decide(
                "operation \(record.id) stops: \(text); go on with: kvctl ops resume \(record.id), "
                    + "go back with: kvctl ops cancel \(record.id)",
                group: work.target, operation: record.id, shard: shard.id, now: now,
                into: &effects)
            save(OperationChange(record: next), now: now, into: &effects)
            enter(.first, of: record.id)
            operations.update(record.id) { $0.progress.verifiedAbove = nil }
        case .waits(let text):
            note(text, of: record.id)
            let asked = status.progress.verifications
            if asked == 0 {
                let at = now + settings.digestPatience
                operations.update(record.id) { status in
                    status.progress.verifications = 1
                    status.progress.verifyAgainAt = at
                }
            } else if now >= status.progress.verifyAgainAt {
                enter(.first, of: record.id)
                let at = now + settings.digestPatience * (1 << min(asked, 8))
                operations.update(record.id) { status in
                    status.progress.verifications = asked + 1
                    status.progress.verifyAgainAt = at
                }
                pump(record.id, now: now, into: &effects)
            }
        }
    }

    enum Comparison {
        case agree(replicas: Int, records: UInt64)
        case differ(String)
        case waits(String)
    }

    /// What is known of the digests that replicas of the group made of the shard, in its present
    /// epoch, above a place of the group's log.
    func compare(_ shard: Shard, in id: GroupID, above: LogIndex) -> Comparison {
        guard let group = groups[id] else { return .waits("there is no group \(id)") }
        let places = group.record.placements
        let own = (digests[shard.id] ?? []).filter { digest in
            digest.group == id && digest.epoch == shard.epoch && digest.index > above
                && places.contains { $0.replica == digest.replica }
        }
        for digest in own {
            guard
                own.contains(where: {
                    $0.index == digest.index
                        && ($0.digest != digest.digest || $0.records != digest.records)
                })
            else { continue }
            let told = own.filter { $0.index == digest.index }.map { digest in
                let node = places.first { $0.replica == digest.replica }?.node ?? .none
                return "replica \(digest.replica) on \(name(node)): \(digest.records) records, "
                    + "digest \(hex(digest.digest))"
            }
            return .differ(
                "replicas of group \(id) hold different records of shard \(shard.id) at "
                    + "entry \(digest.index): " + told.joined(separator: "; "))
        }
        let live = places.enumerated().filter { index, place in
            nodes[place.node]?.isLive == true && group.reports[index]?.state == .active
        }.map(\.element)
        guard let newest = own.map(\.index).max() else { return .waits("no digest has come yet") }
        let agreeing = own.filter { $0.index == newest }
        let missing = live.filter { place in
            !agreeing.contains { $0.replica == place.replica }
        }
        guard missing.isEmpty else {
            let names = missing.map { name($0.node) }.joined(separator: ", ")
            return .waits("no digest has come from \(names) yet")
        }
        guard agreeing.count > places.count / 2, let first = agreeing.first else {
            return .waits("only \(agreeing.count) of \(places.count) replicas are live")
        }
        return .agree(replicas: agreeing.count, records: first.records)
    }

    /// How far the leader of a group had applied when it reported last.
    func leaderApplied(of id: GroupID) -> LogIndex {
        guard let group = groups[id], let index = group.placementIndex(node: group.leader.node)
        else { return .none }
        return group.reports[index]?.applied ?? .none
    }
}
