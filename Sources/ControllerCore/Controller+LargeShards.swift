// The rule for shards with more bytes than `split.bytes`: cut them in the middle, and move one half
// where another group has clearly less.

import KVBase
import ShardCore

extension Controller {
    /// Keeps the list of shards above the limit; called for each size that a leader reports.
    mutating func note(_ report: ShardReport) {
        if report.bytes > runtime[.splitBytes] {
            Self.insert(report.shard, into: &rules.large)
        } else if !rules.large.isEmpty {
            rules.large.removeAll { $0 == report.shard }
        }
    }

    /// The limit has changed.
    mutating func findLargeShards() {
        rules.large = shardReports.elements.filter { $0.bytes > runtime[.splitBytes] }
            .map(\.shard).sorted()
    }

    mutating func splitLargeShards(now: Instant, into effects: inout ControllerEffects) {
        guard !rules.large.isEmpty else { return }
        rules.large.removeAll { shards[$0] == nil }
        guard mode(of: .largeShard) != .off else { return }
        // One plan in a look: each walks over all shards.
        for id in rules.large {
            guard let shard = shards[id], let report = count(of: shard), hasRoomToAct(.largeShard),
                !isRefused(.largeShard, .shard(id)), operation(onShard: id) == nil,
                !isBusy(shard.group), serving(shard.group) != nil,
                !isProposed(.largeShard, where: { $0.work?.shard == id })
            else { continue }
            return split(shard, report, now: now, into: &effects)
        }
    }

    private mutating func split(
        _ shard: Shard, _ report: ShardReport, now: Instant,
        into effects: inout ControllerEffects
    ) {
        guard let table = tables[shard.table], table.state == .active else { return }
        let text =
            "\(title(of: shard)) has \(quantity(report.bytes)), more than "
            + RuntimeSetting.splitBytes.write(runtime[.splitBytes])
        if let id = stopped(.largeShard, now: now, where: { $0.work?.names(shard.id) == true }) {
            return refuse(
                .largeShard, .shard(shard.id),
                text + "; the operator stopped operation \(id) on it",
                now: now, into: &effects)
        }
        let quiet = runtime.time(.splitQuiet)
        if !isPast(rules.histories[shard.id]?.joinedAt ?? 0, by: quiet, now: now) {
            return refuse(
                .largeShard, .shard(shard.id),
                text
                    + "; it was joined less than \(RuntimeSetting.splitQuiet.write(quiet.count)) ago",
                now: now, into: &effects)
        }
        guard report.middle != nil || table.partitioning != .range else {
            return refuse(
                .largeShard, .shard(shard.id), text + "; its leader found no key that halves it",
                now: now, into: &effects)
        }
        do throws(DatabaseError) {
            var plan = try plan(
                split: SplitRequest(
                    table: table.name, shard: shard.id,
                    at: table.partitioning == .range ? report.middle : nil,
                    to: roomierGroup(
                        for: table, than: shard.group, half: report.bytes / 2, now: now)),
                now: now)
            plan.grounds =
                "the key \(keyText(plan.work.cut ?? [], of: table.id)) halves its bytes"
                + (plan.moves ? "" : "; no other group has clearly less, so both halves stay")
            act(.largeShard, plan, because: text, now: now, into: &effects)
        } catch {
            refuse(
                .largeShard, .shard(shard.id), text + "; \(error.message)", now: now,
                into: &effects)
        }
    }

    /// The group with the fewest bytes, when it would have at most three quarters of what the source
    /// has now.
    private func roomierGroup(
        for table: Table, than source: GroupID, half: UInt64, now: Instant
    ) -> MoveTarget? {
        var best: (bytes: UInt64, group: GroupID)?
        for group in groups.elements
        where group.record.id != source && group.record.state == .active
            && group.record.engine == table.engine
            && group.wanted == Int(table.replicas)
        {
            let id = group.record.id
            guard serving(id) != nil, !isBusy(id) else { continue }
            let bytes = ownedBytes[id] ?? 0
            if best.map({ bytes < $0.bytes }) ?? true { best = (bytes, id) }
        }
        guard let best, best.bytes + half <= (ownedBytes[source] ?? 0) / 4 * 3 else { return nil }
        return .group(best.group)
    }
}
