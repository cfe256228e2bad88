// Where the load is.

import ControllerCore
import KVBase
import ShardCore

struct TopView: Encodable {
    struct GroupLine: Encodable {
        var id: UInt32
        var leader: Nullable<String>
        /// Requests per second; nil when its leader has not reported them.
        var reads: UInt32?
        var writes: UInt32?
        var shards: Int
        var bytes: UInt64
        var records: UInt64
    }

    struct ShardLine: Encodable {
        var id: UInt32
        var table: String
        var start: String
        var end: Nullable<String>
        var group: UInt32
        var reads: UInt32
        var writes: UInt32
        var bytes: Nullable<UInt64>
        var records: Nullable<UInt64>
        /// The key with the largest share of the requests, when that is a tenth or more.
        var hottest: String?
        var hottestPercent: UInt8?
        /// The key that halves the load.
        var median: String?
    }

    /// Busiest first.
    var groups: [GroupLine]
    var shards: [ShardLine]
}

extension ClusterViews {
    /// The busiest groups and shards, at most `limit` of each.
    func top(limit: Int) -> TopView {
        let busiest = controller.shardLoads.elements.filter { $0.operations > 0 }
            .sorted { ($1.operations, $0.shard) < ($0.operations, $1.shard) }
        // One walk over the shards, however many groups there are.
        var totals = SortedRecords<GroupID, (bytes: UInt64, records: UInt64)>()
        for group in controller.groups.elements { totals.set((0, 0), for: group.record.id) }
        for shard in controller.shards.elements {
            guard let report = controller.shardReports[shard.id] else { continue }
            totals.update(shard.group) {
                $0.bytes += report.bytes
                $0.records += report.records
            }
        }
        let groups = controller.groups.elements.map(\.record.id).sorted {
            let (left, right) = (operations(of: $0), operations(of: $1))
            return left != right ? left > right : $0 < $1
        }
        return TopView(
            groups: groups.prefix(limit).map { line($0, totals[$0] ?? (0, 0)) },
            shards: busiest.prefix(limit).compactMap(line))
    }

    func operations(of group: GroupID) -> UInt64 { controller.groupLoads[group]?.operations ?? 0 }

    private func line(
        _ id: GroupID, _ total: (bytes: UInt64, records: UInt64)
    ) -> TopView.GroupLine {
        let group = controller.groups[id]
        let load = controller.groupLoads[id]
        let leader = group.flatMap { $0.hasLeader ? nodeName($0.leader.node) : nil }
        return TopView.GroupLine(
            id: id.rawValue, leader: Nullable(leader), reads: load?.reads,
            writes: load?.writes, shards: controller.shardCount(of: id), bytes: total.bytes,
            records: total.records)
    }

    private func line(_ load: ShardLoad) -> TopView.ShardLine? {
        guard let shard = controller.shards[load.shard], let table = controller.tables[shard.table]
        else { return nil }
        let view = view(shard, table)
        return TopView.ShardLine(
            id: view.id, table: view.table, start: view.start, end: view.end, group: view.group,
            reads: load.reads, writes: load.writes, bytes: view.bytes, records: view.records,
            hottest: load.hottest.map { routedKey($0, table) },
            hottestPercent: load.hottest == nil ? nil : load.hottestPercent,
            median: load.median.map { KeyText.bound($0, of: table.partitioning) })
    }

    /// A key that was reported as a routed one, as its writer knows it.
    func routedKey(_ routed: Bytes, _ table: Table) -> String {
        guard case .hash = table.partitioning else { return KeyText.text(routed) }
        return KeyText.text(routed.dropFirst(2))
    }
}
