// A picture of the node for other threads: metrics and readiness.

import Glibc
import KVBase
import LSMEngine
import Metrics
import NodeCore
import RPC
import ReplicatedLog
import ReplicationCore
import ShardCore
import StorageAPI
import Synchronization

/// Published by the loop every second; read by the admin server's thread.
final class NodeStatus: Sendable {
    struct Snapshot: Sendable {
        var isAdmitted = false
        /// Why the controllers do not take this node; nil while one does, and when none said so.
        var refusal: String?
        /// The cluster has it in the spare pool.
        var isSpare = false
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
        /// When this was published, by the loop's clock.
        var time = Instant.origin
        var replicas: [ReplicaPicture] = []
        var peers: [PeerPicture] = []
        var controllersConnected = 0
        var routers = 0
        /// Requests that wait for their answer.
        var requestsInFlight = 0
        /// Log entries proposed here and not applied.
        var proposalsPending = 0
        var readCounts = LSMReadCounts()
    }

    /// What there is to know of one replica.
    struct ReplicaPicture: Sendable {
        var group: GroupID
        var replica: ReplicaID
        var role: String
        var leader: ReplicaID
        var term: Term
        var last: LogIndex
        var commit: LogIndex
        var applied: LogIndex
        var disk: Int
        var shards: Int
        /// Writes and reads that wait, and the bytes of those not yet logged.
        var writesWaiting: Int
        var readsWaiting: Int
        var pendingBytes: Int
        var retainedBytes: Int
        var snapshotsSending: Int
        var isReceivingSnapshot: Bool
    }

    struct PeerPicture: Sendable {
        var node: NodeID
        var isOpen: Bool
        var sendFailures: UInt64
        var pendingBytes: Int
    }

    struct DiskStatus: Sendable {
        var path: String
        var isFailed: Bool
        var isSlow: Bool
        /// What a write of the log and a read through an engine cost now.
        var logDelay: Nanoseconds
        var engineDelay: Nanoseconds
        var fileSystem: UInt64
        var totalBytes: UInt64
        var freeBytes: UInt64
        var dataBytes: UInt64
        var log: LogStatistics
        var engines: EngineStatistics
        var scrub: DiskScrub
    }

    let clockOffset = ClockOffset()
    private let current = Mutex(Snapshot())
    private let tickCount = Atomic<UInt64>(0)

    /// Looks of the loop at its replicas so far.
    var ticks: UInt64 { tickCount.load(ordering: .relaxed) }
    func countTick() { tickCount.wrappingAdd(1, ordering: .relaxed) }

    private let recovery = Mutex(Recovery())

    /// How far the start is.
    private struct Recovery {
        var began = NodeStatus.monotonicNow()
        var ended: Instant?
        var done: [UInt64] = []
        var total: [UInt64] = []
    }

    /// The replay of one disk's log went on.
    func recovered(disk: Int, of disks: Int, done: UInt64, total: UInt64) {
        recovery.withLock { recovery in
            if recovery.done.count != disks {
                recovery.done = Array(repeating: 0, count: disks)
                recovery.total = Array(repeating: 0, count: disks)
            }
            recovery.done[disk] = done
            recovery.total[disk] = total
        }
    }

    /// Disks and replicas are there.
    func endRecovery() { recovery.withLock { $0.ended = Self.monotonicNow() } }

    private static func monotonicNow() -> Instant {
        var time = timespec()
        clock_gettime(CLOCK_MONOTONIC, &time)
        return Instant(nanoseconds: UInt64(time.tv_sec) * 1_000_000_000 + UInt64(time.tv_nsec))
    }

    func publish(_ snapshot: Snapshot) { current.withLock { $0 = snapshot } }
    func read() -> Snapshot { current.withLock { $0 } }

    /// Why the node cannot serve, or nil.
    func problem() -> String? {
        let snapshot = read()
        if let refusal = snapshot.refusal { return "refused by the controllers: \(refusal)" }
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
        registry.gauge(ClockOffset.metricName, ClockOffset.metricHelp) { [clockOffset] in
            clockOffset.value(at: Self.monotonicNow()).map { Double($0) / 1e9 }
        }
        registerRecovery(in: registry)
        registerTraffic(in: registry)
        registerLoad(in: registry)
        registerDisks(in: registry)
    }

    private func registerRecovery(in registry: MetricsRegistry) {
        registry.gauge(
            "kvnode_recovery_progress_ratio",
            "How much of the logs is replayed at the start; 1 when it is over."
        ) { [self] in
            recovery.withLock { recovery in
                guard recovery.ended == nil else { return 1 }
                let total = recovery.total.reduce(0, +)
                return total == 0 ? 0 : Double(recovery.done.reduce(0, +)) / Double(total)
            }
        }
        registry.gauge(
            "kvnode_recovery_duration_seconds",
            "What opening the disks and replaying the logs took at the start, so far."
        ) { [self] in
            recovery.withLock { recovery in
                let end = recovery.ended ?? Self.monotonicNow()
                return Double((end - recovery.began).count) / 1e9
            }
        }
    }

    private func registerTraffic(in registry: MetricsRegistry) {
        registry.gauge("kvnode_requests_in_flight", "Requests that wait for their answer.") {
            [self] in Double(read().requestsInFlight)
        }
        registry.gauge(
            "kvnode_proposals_pending", "Log entries proposed here and not yet applied."
        ) { [self] in Double(read().proposalsPending) }
        registry.gauge(
            "kvnode_controllers_connected", "Controllers that this node has a connection to."
        ) { [self] in Double(read().controllersConnected) }
        registry.collector(
            "kvnode_peer_send_failures_total", .counter,
            "Messages to a node that were dropped: no connection, or too much unsent."
        ) { [self] in
            read().peers.prefix(Self.peersMax).map {
                MetricSample(
                    labels: [MetricLabel("peer", "\($0.node)")], value: Double($0.sendFailures))
            }
        }
        registry.collector(
            "kvnode_peers", .gauge,
            "Other nodes of the cluster by the state of the connection to them."
        ) { [self] in
            let peers = read().peers
            let open = peers.count(where: \.isOpen)
            return [("connected", open), ("lost", peers.count - open)].map { state, count in
                MetricSample(labels: [MetricLabel("state", state)], value: Double(count))
            }
        }
        registry.collector(
            "kvnode_cache_requests_total", .counter,
            "Blocks of LSM engines that reads found in the cache, or read from disk."
        ) { [self] in
            let counts = read().readCounts
            return [("hit", counts.hits), ("miss", counts.misses)].map { result, count in
                MetricSample(labels: [MetricLabel("result", result)], value: Double(count))
            }
        }
    }

    /// Peers that have series of their own.
    private static let peersMax = 64

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
        family("kvnode_wal_written_bytes_total", .counter, "Bytes written to the log.") {
            Double($0.log.bytes)
        }
        family("kvnode_wal_batches_total", .counter, "Writes to the log, one fdatasync each.") {
            Double($0.log.batches)
        }
        family("kvnode_wal_records_total", .counter, "Records written to the log.") {
            Double($0.log.records)
        }
        family("kvnode_wal_sync_seconds_total", .counter, "Time spent in syncs of the log.") {
            Double($0.log.syncNanoseconds) / 1e9
        }
        family(
            "kvnode_wal_queued_bytes", .gauge,
            "Bytes handed to the log's writer and not yet durable."
        ) { Double($0.log.queuedBytes) }
        family(
            "kvnode_unflushed_bytes", .gauge,
            "Bytes of the engines that only the log has on disk."
        ) { Double($0.engines.unflushedBytes) }
        family(
            "kvnode_compaction_pending_bytes", .gauge,
            "What the LSM engine still has to compact, by its own estimate."
        ) { Double($0.engines.compactionPendingBytes) }
        family(
            "kvnode_compactions_running", .gauge, "Compactions of the LSM engine under way."
        ) { Double($0.engines.compactionsRunning) }
        family("kvnode_engine_memory_bytes", .gauge, "Memory of the engines.") {
            Double($0.engines.memoryBytes)
        }
        func family(
            _ name: String, _ type: MetricsRegistry.FamilyType, _ help: String, by label: String,
            _ values: @escaping @Sendable (DiskStatus) -> [(String, Double)]
        ) {
            registry.collector(name, type, help) { [self] in
                read().disks.flatMap { disk in
                    values(disk).map { name, value in
                        MetricSample(
                            labels: [MetricLabel("disk", disk.path), MetricLabel(label, name)],
                            value: value)
                    }
                }
            }
        }
        family(
            "kvnode_data_bytes", .gauge, "Bytes of engines and log in the data directory.",
            by: "kind"
        ) { disk in
            let engines = disk.engines.diskBytes
            let live = disk.engines.liveBytesOnDisk
            return [
                ("live", Double(live)), ("garbage", Double(engines - live)),
                ("log", Double(disk.dataBytes - engines)),
            ]
        }
        family(
            "kvnode_write_stall_seconds_total", .counter,
            "Time for which the LSM engine held writes back.", by: "reason"
        ) { disk in
            WriteStallReason.allCases.map { reason in
                (reason.name, Double(disk.engines.stallTimes[reason].count) / 1e9)
            }
        }
        family(
            "kvnode_write_stalled", .gauge,
            "1 while the LSM engine slows writes down, or takes none.", by: "state"
        ) { disk in
            [
                ("slowed", disk.engines.isSlowed ? 1 : 0),
                ("stopped", disk.engines.isStopped ? 1 : 0),
            ]
        }
    }
}

extension NodeServer {
    func publishStatus() {
        var snapshot = NodeStatus.Snapshot()
        snapshot.isAdmitted = identity.node != .none
        snapshot.refusal = controllers.contains(where: \.isRegistered) ? nil : refusal
        snapshot.isSpare = map.nodes[identity.node]?.isSpare ?? false
        snapshot.time = now
        snapshot.replicas.reserveCapacity(replicas.elements.count)
        for replica in replicas.elements {
            let picture = replica.picture
            snapshot.replicas.append(picture)
            snapshot.requestsInFlight += picture.writesWaiting + picture.readsWaiting
            snapshot.proposalsPending += replica.logged.count
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
                fileSystem: disk.size.fileSystem, totalBytes: disk.size.totalBytes,
                freeBytes: disk.size.freeBytes, dataBytes: disk.size.dataBytes,
                log: disk.log.statistics,
                engines: disk.engineFigures, scrub: disk.scrub)
        }
        snapshot.peers = peers.pictures.map {
            NodeStatus.PeerPicture(
                node: $0.node, isOpen: $0.isOpen, sendFailures: $0.sendFailures,
                pendingBytes: $0.pendingBytes)
        }
        snapshot.controllersConnected = controllers.count(where: \.isConnected)
        snapshot.routers = sessions.count
        snapshot.readCounts = LSMReadCounts.ofThisThread()
        let failures = transport.checksumFailures
        metrics.networkChecksumFailures.increment(
            by: failures - min(failures, metrics.networkChecksumFailures.value))
        snapshot.load = loadReport
        snapshot.groups = NodeStatus.busiest(groupTotals, by: loadReport)
        snapshot.keysSkipped = load.keysSkipped
        status.publish(snapshot)
    }
}
