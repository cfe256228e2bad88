// A picture of the node for other threads: metrics and readiness.

import KVBase
import Metrics
import NodeCore
import ReplicatedLog
import ReplicationCore
import ShardCore
import Synchronization

/// Published by the loop every second; read by the admin server's thread.
final class NodeStatus: Sendable {
    struct Snapshot: Sendable {
        var isAdmitted = false
        var leaders = 0
        var followers = 0
        var learners = 0
        /// Replicas that know no leader.
        var leaderless = 0
        var failed = 0
        /// Entries committed and not applied, at most over all replicas.
        var applyLag: UInt64 = 0
        /// Entries that the slowest follower of a led group lacks, at most over those groups.
        var replicationLag: UInt64 = 0
        var snapshotsInFlight = 0
        /// Payload bytes of log entries held in memory.
        var retainedBytes = 0
        var disks: [DiskStatus] = []
        var load = LoadReport(groups: [], shards: [])
        /// Of the groups led here that are asked most.
        var groups: [LoadMeter.GroupTotals] = []
        /// Keys that were too long to be sampled.
        var keysSkipped: UInt64 = 0
    }

    struct DiskStatus: Sendable {
        var path: String
        var isFailed: Bool
        var isSlow: Bool
        /// What a write of the log and a read through an engine cost now.
        var logDelay: Nanoseconds
        var engineDelay: Nanoseconds
        var totalBytes: UInt64
        var freeBytes: UInt64
        var dataBytes: UInt64
        var logBytes: UInt64
        var log: LogStatistics
    }

    private let current = Mutex(Snapshot())
    private let tickCount = Atomic<UInt64>(0)

    /// Looks of the loop at its replicas so far.
    var ticks: UInt64 { tickCount.load(ordering: .relaxed) }
    func countTick() { tickCount.wrappingAdd(1, ordering: .relaxed) }

    func publish(_ snapshot: Snapshot) { current.withLock { $0 = snapshot } }
    func read() -> Snapshot { current.withLock { $0 } }

    /// Why the node cannot serve, or nil.
    func problem() -> String? {
        let snapshot = read()
        if !snapshot.isAdmitted { return "not admitted to a cluster yet: no controller answered" }
        if snapshot.disks.contains(where: \.isFailed) { return "a disk failed" }
        return nil
    }

    func register(in registry: MetricsRegistry) {
        registry.collector("kvnode_groups", .gauge, "Replicas on this node by role.") {
            [self] in
            let snapshot = read()
            return [
                ("leader", snapshot.leaders), ("follower", snapshot.followers),
                ("learner", snapshot.learners), ("leaderless", snapshot.leaderless),
                ("failed", snapshot.failed),
            ].map { role, count in
                MetricSample(labels: [MetricLabel("role", role)], value: Double(count))
            }
        }
        registry.gauge(
            "kvnode_apply_lag_entries",
            "Entries committed and not yet applied, at most over the replicas."
        ) { [self] in Double(read().applyLag) }
        registry.gauge(
            "kvnode_replication_lag_entries",
            "Entries that the slowest follower lacks, at most over the groups led here."
        ) { [self] in Double(read().replicationLag) }
        registry.gauge("kvnode_snapshots_in_flight", "Snapshots being sent or received.") {
            [self] in Double(read().snapshotsInFlight)
        }
        registry.gauge(
            "kvnode_retained_log_bytes", "Payload bytes of log entries held in memory."
        ) { [self] in Double(read().retainedBytes) }
        registerLoad(in: registry)
        registerDisks(in: registry)
    }

    private func registerDisks(in registry: MetricsRegistry) {
        func family(
            _ name: String, _ type: MetricsRegistry.FamilyType, _ help: String,
            _ value: @escaping @Sendable (DiskStatus) -> Double
        ) {
            registry.collector(name, type, help) { [self] in
                read().disks.map {
                    MetricSample(labels: [MetricLabel("disk", $0.path)], value: value($0))
                }
            }
        }
        family("kvnode_disk_failed", .gauge, "1 when the data directory failed.") {
            $0.isFailed ? 1 : 0
        }
        family("kvnode_disk_slow", .gauge, "1 while the data directory takes too long to answer.") {
            $0.isSlow ? 1 : 0
        }
        family(
            "kvnode_disk_log_delay_seconds", .gauge,
            "What the newest write of the log took, or the age of the one under way."
        ) { Double($0.logDelay.count) / 1e9 }
        family(
            "kvnode_disk_engine_delay_seconds", .gauge,
            "What the newest read probe of the engines took, or the age of the one under way."
        ) { Double($0.engineDelay.count) / 1e9 }
        family("kvnode_disk_size_bytes", .gauge, "Size of the disk's file system.") {
            Double($0.totalBytes)
        }
        family("kvnode_disk_free_bytes", .gauge, "Free bytes of the disk's file system.") {
            Double($0.freeBytes)
        }
        family("kvnode_data_bytes", .gauge, "Bytes of engines and log in the data directory.") {
            Double($0.dataBytes)
        }
        family("kvnode_log_bytes", .gauge, "Bytes of log records in all segments.") {
            Double($0.logBytes)
        }
        family("kvnode_wal_written_bytes_total", .counter, "Bytes written to the log.") {
            Double($0.log.bytes)
        }
        family("kvnode_wal_batches_total", .counter, "Writes to the log, one fdatasync each.") {
            Double($0.log.batches)
        }
        family("kvnode_wal_records_total", .counter, "Records written to the log.") {
            Double($0.log.records)
        }
        family("kvnode_wal_sync_seconds_total", .counter, "Time spent in log writes.") {
            Double($0.log.syncNanoseconds) / 1e9
        }
    }
}

extension NodeServer {
    func publishStatus() {
        var snapshot = NodeStatus.Snapshot()
        snapshot.isAdmitted = identity.node != .none
        for replica in replicas.elements {
            if replica.isFailed {
                snapshot.failed += 1
                continue
            }
            switch replica.core.role {
            case .leader: snapshot.leaders += 1
            case .learner: snapshot.learners += 1
            case .follower, .preCandidate, .candidate: snapshot.followers += 1
            }
            if replica.core.leader == .none { snapshot.leaderless += 1 }
            let committed = replica.core.commit.rawValue
            let applied = replica.state.applied.index.rawValue
            snapshot.applyLag = max(snapshot.applyLag, committed - min(committed, applied))
            let last = replica.core.lastPosition.index.rawValue
            for follower in replica.core.progress {
                let match = follower.match.rawValue
                snapshot.replicationLag = max(snapshot.replicationLag, last - min(last, match))
            }
            snapshot.snapshotsInFlight += replica.snapshotSenders.count
            if replica.snapshotReceiver != nil { snapshot.snapshotsInFlight += 1 }
            snapshot.retainedBytes += replica.core.retainedBytes
        }
        snapshot.disks = disks.map { disk in
            NodeStatus.DiskStatus(
                path: disk.path, isFailed: disk.failure != nil, isSlow: disk.probes.isSlow,
                logDelay: disk.probes.logDelay, engineDelay: disk.probes.engineDelay,
                totalBytes: disk.size.totalBytes,
                freeBytes: disk.size.freeBytes, dataBytes: disk.size.dataBytes,
                logBytes: disk.log.totalBytes, log: disk.log.statistics)
        }
        snapshot.load = loadReport
        snapshot.groups = NodeStatus.busiest(groupTotals, by: loadReport)
        snapshot.keysSkipped = load.keysSkipped
        status.publish(snapshot)
    }
}
