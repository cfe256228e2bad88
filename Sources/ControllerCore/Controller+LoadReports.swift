// What heartbeats tell of load, and of shards on the move.

import KVBase
import ShardCore

extension Controller {
    /// Keeps what a node tells of the load on what it leads; shards it names no more have none.
    mutating func observe(_ load: LoadReport, of node: NodeID) {
        for report in load.groups where groups[report.group]?.leader.node == node {
            groupLoads.set(report, for: report.group)
        }
        let leads = load.shards.filter { report in
            shards[report.shard].map { groups[$0.group]?.leader.node == node } ?? false
        }
        for shard in loadedShards[node] ?? []
        where !leads.contains(where: { $0.shard == shard }) {
            // Another node may lead it by now.
            let leader = shards[shard].flatMap { groups[$0.group]?.leader.node }
            if leader == nil || leader == node { shardLoads.remove(shard) }
        }
        for report in leads { shardLoads.set(report, for: report.shard) }
        loadedShards.set(leads.map(\.shard), for: node)
    }

    /// Keeps what is told of copies and digests; the operations that wait for it go on at once.
    mutating func observeMoves(_ heartbeat: NodeHeartbeat, of node: NodeID) {
        for report in heartbeat.copies {
            guard let shard = shards[report.shard], shard.epoch == report.epoch,
                groups[shard.group]?.leader.node == node
            else { continue }
            copyReports.set(report, for: report.shard)
            touchMove(of: report.shard)
        }
        for digest in heartbeat.digests {
            guard let shard = shards[digest.shard], shard.epoch == digest.epoch,
                shard.group == digest.group
            else { continue }
            var known = digests[digest.shard] ?? []
            known.removeAll { $0.replica == digest.replica }
            known.append(digest)
            digests.set(known, for: digest.shard)
            touchMove(of: digest.shard)
        }
    }

    private mutating func touchMove(of shard: ShardID) {
        if !former.isEmpty { formerCheckAt = .origin }
        guard let status = operation(onShard: shard), !status.isStoring else { return }
        touchedOperations.append(status.record.id)
    }
}
