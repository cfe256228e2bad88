// The cluster as operators see it, computed from the controller's state.

import ControllerCore
import EventLoop
import KVBase
import MetadataBackup
import ShardCore

struct ClusterViews {
    let controller: Controller
    let now: Instant
    /// Of the snapshot that is being stored in the backup.
    var storing: BackupProgress?
    /// Objects that the verification of the backup has read.
    var verifying: (operation: OperationID, done: Int, total: Int)?

    /// In milliseconds since 1970.
    var wallClock: UInt64 { EventLoop.wallClockNanoseconds() / 1_000_000 }

    func nodes() -> [NodeView] {
        controller.nodes.elements.map { node in
            NodeView(
                name: node.record.name, id: node.record.id.rawValue, state: node.stateName,
                zone: node.record.zone, rpc: node.record.rpcAddress,
                admin: node.record.adminAddress, replicas: node.replicas, leaders: node.leaders,
                heartbeatAgeMillis: (now - node.lastHeard).count / 1_000_000,
                weight: node.weight, maintenanceUntil: node.maintenanceUntil,
                disks: node.disks.map { disk in
                    DiskView(
                        path: disk.path, state: "\(disk.state)",
                        fileSystem: disk.fileSystem, totalBytes: disk.totalBytes,
                        freeBytes: disk.freeBytes, dataBytes: disk.dataBytes,
                        logDelayMillis: disk.logDelay.count / 1_000_000,
                        engineDelayMillis: disk.engineDelay.count / 1_000_000)
                })
        }
    }

    func groups() -> [GroupView] {
        controller.groups.elements.map { group in
            let leaderIndex = group.record.placements.firstIndex { $0.node == group.leader.node }
            let head = leaderIndex.flatMap { group.reports[$0]?.lastIndex.rawValue } ?? 0
            let replicas = group.record.placements.enumerated().map { index, placement in
                let report = group.reports[index]
                let last = report?.lastIndex.rawValue ?? 0
                return ReplicaView(
                    node: nodeName(placement.node), replica: placement.replica.rawValue,
                    role: "\(report?.role ?? .follower)", state: state(report, placement),
                    lag: head > last ? head - last : 0)
            }
            let load = controller.groupLoads[group.record.id]
            return GroupView(
                id: group.record.id.rawValue, engine: "\(group.record.engine)",
                state: "\(group.record.state)", term: group.leader.term.rawValue,
                leader: Nullable(group.hasLeader ? nodeName(group.leader.node) : nil),
                reads: load?.reads, writes: load?.writes, replicasWanted: group.wanted,
                replicas: replicas + incoming(group, head: head))
        }
    }

    /// The replica that an operation brings into a group.
    private func incoming(_ group: GroupStatus, head: UInt64) -> [ReplicaView] {
        guard
            let record = openOperations.last(where: {
                $0.record.group == group.record.id
                    && controller.extraReports[$0.record.new.replica] != nil
            })?.record, let report = controller.extraReports[record.new.replica]
        else { return [] }
        let last = report.lastIndex.rawValue
        return [
            ReplicaView(
                node: nodeName(record.new.node), replica: record.new.replica.rawValue,
                role: "\(report.role)", state: state(report, record.new),
                lag: head > last ? head - last : 0)
        ]
    }

    /// In order of tables and keys.
    func shards(of table: Table? = nil) -> [ShardView] {
        let chosen = controller.shards.elements.filter { table == nil || $0.table == table?.id }
        let ordered = chosen.sorted { left, right in
            left.table == right.table
                ? compareBytes(left.range.start, right.range.start) < 0 : left.table < right.table
        }
        return ordered.compactMap { shard in
            controller.tables[shard.table].map { view(shard, $0) }
        }
    }

    func tables() -> [TableView] {
        // One walk over all shards, however many tables there are.
        var totals: [TableID: (shards: Int, bytes: UInt64, records: UInt64, groups: Set<GroupID>)] =
            [:]
        for shard in controller.shards.elements {
            let report = controller.shardReports[shard.id]
            var total = totals[shard.table] ?? (0, 0, 0, [])
            total.shards += 1
            total.bytes += report?.bytes ?? 0
            total.records += report?.records ?? 0
            total.groups.insert(shard.group)
            totals[shard.table] = total
        }
        return controller.tables.elements.map { table in
            let total = totals[table.id] ?? (0, 0, 0, [])
            var ranges: UInt16?
            if case .hash(let count) = table.partitioning { ranges = count }
            return TableView(
                name: table.name, id: table.id.rawValue, partitioning: "\(table.partitioning)",
                virtualRanges: ranges, engine: "\(table.engine)", replicas: table.replicas,
                state: "\(table.state)", shards: .count(total.shards),
                groups: total.groups.sorted().map(\.rawValue), bytes: total.bytes,
                records: total.records)
        }
    }

    // MARK: Helpers

    func view(_ shard: Shard, _ table: Table) -> ShardView {
        let report = controller.shardReports[shard.id]
        let load = load(of: shard)
        return ShardView(
            id: shard.id.rawValue, table: table.name,
            start: KeyText.bound(shard.range.start, of: table.partitioning),
            end: Nullable(shard.range.end.map { KeyText.bound($0, of: table.partitioning) }),
            group: shard.group.rawValue, state: "\(shard.state)", epoch: shard.epoch.rawValue,
            bytes: Nullable(report?.bytes), records: Nullable(report?.records), reads: load?.reads,
            writes: load?.writes)
    }

    /// Leaders leave shards without requests out of their reports.
    func load(of shard: Shard) -> ShardLoad? {
        if let load = controller.shardLoads[shard.id] { return load }
        guard controller.groupLoads[shard.group] != nil else { return nil }
        return ShardLoad(shard: shard.id, epoch: shard.epoch, reads: 0, writes: 0)
    }

    func nodeName(_ node: NodeID) -> String {
        controller.nodes[node]?.record.name ?? "node \(node) (removed)"
    }

    func state(_ report: ReplicaReport?, _ placement: Placement) -> String {
        guard let node = controller.nodes[placement.node], node.isLive, node.hasReported else {
            return "unreachable"
        }
        if report?.state == .active, controller.isLagging(placement.replica) { return "lagging" }
        return report.map { "\($0.state)" } ?? "restoring"
    }
}
