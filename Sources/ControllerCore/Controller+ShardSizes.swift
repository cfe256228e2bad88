// How much shards and groups hold: as leaders counted it, and about so between a change of shards and the
// first count after it.

import KVBase
import ShardCore

extension Controller {
    // MARK: What is known

    /// As last counted, or estimated since; nil while nothing is known.
    func sizes(of shard: Shard) -> (bytes: UInt64, records: UInt64)? {
        shardReports[shard.id].map { ($0.bytes, $0.records) }
    }

    /// What the leader counted of the shard as it is now, for what must not rest on an estimate.
    func count(of shard: Shard) -> ShardReport? {
        guard let report = shardReports[shard.id], report.epoch == shard.epoch,
            !estimatedShards.contains(shard.id)
        else { return nil }
        return report
    }

    /// Records in a group: of its own shards, as last counted, and of those that it holds though another
    /// group owns them.
    public func bytes(of group: GroupID) -> UInt64 {
        var total = ownedBytes[group] ?? 0
        addUpFormer { if $0 == group { total += $1 } }
        return total
    }

    /// The same of all groups. For look-up only.
    func bytesOfGroups() -> [GroupID: UInt64] {
        var totals = ownedBytes
        addUpFormer { totals[$0, default: 0] += $1 }
        return totals
    }

    /// What groups hold of shards that others own.
    private func addUpFormer(_ take: (GroupID, UInt64) -> Void) {
        for status in former.elements { take(status.record.group, status.record.bytes) }
        for status in openOperations {
            guard former[status.record.id] == nil, hasBegun(status), let work = status.record.work,
                let shard = shards[work.moving], let group = secondHolder(of: shard, work)
            else { continue }
            take(group, shardReports[shard.id]?.bytes ?? 0)
        }
    }

    /// The group that a shard on the move is leaving, or is to come back to.
    private func secondHolder(of shard: Shard, _ work: ShardWork) -> GroupID? {
        if shard.group == work.target { return work.source }
        return work.isTurned ? work.target : nil
    }

    /// About how much of the shard's bytes lies below the cut, of `KeySpread.whole`; nil when not known.
    func bytesBelow(_ cut: Bytes, in shard: ShardID) -> UInt64? {
        guard let report = shardReports[shard] else { return nil }
        return report.middle == cut ? KeySpread.whole / 2 : report.spread.below(cut)
    }

    /// Likewise of the requests to it.
    func requestsBelow(_ cut: Bytes, in shard: ShardID) -> UInt64? {
        guard let load = shardLoads[shard] else { return nil }
        return load.median == cut ? KeySpread.whole / 2 : load.spread.below(cut)
    }

    // MARK: Counts and estimates

    /// Keeps what a leader counted, unless it is of before a change of the shard.
    mutating func observe(_ report: ShardReport) {
        // The half that a cut makes is counted before the cut may be stored.
        guard shards[report.shard] != nil || operation(onShard: report.shard) != nil,
            report.epoch >= shardReports[report.shard]?.epoch ?? .none
        else { return }
        keep(report)
        estimatedShards.remove(report.shard)
        note(report)
    }

    /// Before stored shards are taken into what is known: a cut gives each half its part, equal ones
    /// where the keys are not known, and a join the sum. Moves change no size.
    mutating func estimateSizes(of changed: [Shard], removed: [Shard]) {
        if changed.count == 2, removed.isEmpty, shards[changed[1].id] == nil,
            let whole = shardReports[changed[0].id], whole.epoch < changed[0].epoch
        {
            let (lower, upper) = (changed[0], changed[1])
            let below = bytesBelow(upper.range.start, in: lower.id) ?? KeySpread.whole / 2
            let (bytes, records) = (whole.bytes.share(below), whole.records.share(below))
            estimate(lower, bytes: bytes, records: records)
            estimate(upper, bytes: whole.bytes - bytes, records: whole.records - records)
        } else if let joined = changed.first, let right = removed.first,
            let one = sizes(of: joined), let other = sizes(of: right)
        {
            estimate(
                joined, bytes: one.bytes + other.bytes, records: one.records + other.records)
        }
    }

    private mutating func estimate(_ shard: Shard, bytes: UInt64, records: UInt64) {
        // Its leader may have told of the new shard already.
        guard shardReports[shard.id]?.epoch ?? .none < shard.epoch else { return }
        keep(ShardReport(shard: shard.id, epoch: shard.epoch, bytes: bytes, records: records))
        estimatedShards.insert(shard.id)
    }

    private mutating func keep(_ report: ShardReport) {
        let group = shards[report.shard]?.group
        moveSize(of: report.shard, from: group, to: nil)
        shardReports.set(report, for: report.shard)
        moveSize(of: report.shard, from: nil, to: group)
    }

    /// Keeps `ownedBytes`: a shard, as it is reported, leaves a group or comes to one.
    mutating func moveSize(of shard: ShardID, from old: GroupID?, to new: GroupID?) {
        guard old != new, let bytes = shardReports[shard]?.bytes else { return }
        if let old { ownedBytes[old, default: 0] -= bytes }
        if let new { ownedBytes[new, default: 0] += bytes }
    }

    // MARK: How long copies take

    /// About how many seconds the copy of a shard's records takes, at the pace of the newest copy that
    /// was watched; nil when there was none.
    public func secondsToCopy(shardBytes: UInt64) -> UInt64? {
        Self.seconds(shardBytes, at: shardCopyPace)
    }

    /// Likewise of a group's records to a new replica.
    public func secondsToCopy(replicaBytes: UInt64) -> UInt64? {
        Self.seconds(replicaBytes, at: replicaCopyPace)
    }

    private static func seconds(_ bytes: UInt64, at pace: UInt64?) -> UInt64? {
        if bytes == 0 { return 0 }
        return pace.map { (bytes + $0 - 1) / $0 }
    }
}
