// The metrics of the load: few series, whatever the number of groups and shards.

import KVBase
import Metrics
import NodeCore
import ShardCore

extension NodeStatus {
    /// Series of single groups and shards are those of the busiest, so that a scrape stays small.
    private static let groupsMax = 64
    private static let shardsMax = 16

    func registerLoad(in registry: MetricsRegistry) {
        registry.collector(
            "kvnode_group_operations_total", .counter,
            "Requests taken in by the groups led here, the 64 busiest of them."
        ) { [self] in
            read().groups.flatMap { totals in
                Self.samples(
                    MetricLabel("group", "\(totals.group)"), reads: totals.reads,
                    writes: totals.writes)
            }
        }
        registry.collector(
            "kvnode_shard_operations_per_second", .gauge,
            "Requests per second of the 16 busiest shards led here, over the last ten seconds."
        ) { [self] in
            read().load.shards.prefix(Self.shardsMax).flatMap { load in
                Self.samples(
                    MetricLabel("shard", "\(load.shard)"), reads: UInt64(load.reads),
                    writes: UInt64(load.writes))
            }
        }
        registry.collector(
            "kvnode_shard_hottest_key_percent", .gauge,
            "The share of one key in the load of the 16 busiest shards, where it is 10 or more."
        ) { [self] in
            read().load.shards.prefix(Self.shardsMax).filter { $0.hottestPercent > 0 }.map {
                MetricSample(
                    labels: [MetricLabel("shard", "\($0.shard)")],
                    value: Double($0.hottestPercent))
            }
        }
        registry.counter(
            "kvnode_load_keys_skipped_total", "Sampled requests whose key is too long to be kept."
        ) { [self] in Double(read().keysSkipped) }
    }

    /// The totals of the busiest groups, in order of their ids.
    static func busiest(
        _ totals: [LoadMeter.GroupTotals], by load: LoadReport
    ) -> [LoadMeter.GroupTotals] {
        guard totals.count > groupsMax else { return totals }
        let shown = Set(
            load.groups.sorted { $0.operations > $1.operations }.prefix(groupsMax).map(\.group))
        return totals.filter { shown.contains($0.group) }
    }

    private static func samples(
        _ label: MetricLabel, reads: UInt64, writes: UInt64
    ) -> [MetricSample] {
        [("read", reads), ("write", writes)].map { kind, count in
            MetricSample(labels: [label, MetricLabel("kind", kind)], value: Double(count))
        }
    }
}
