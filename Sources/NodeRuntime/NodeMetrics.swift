// The figures of the data path: what came, how it ended, and where the time went.

import KVBase
import Metrics
import ReplicationCore
import ShardCore

/// Requests per frame, operations per entry and entries per engine batch are the quotients of
/// neighbouring counters. Every instrument is safe on every thread and takes no lock.
struct NodeMetrics: Sendable {
    let requestFrames: Counter
    let gets: Counter
    let lists: Counter
    let proposalsCommitted: Counter
    let proposalsRefused: Counter
    let proposalsUnknown: Counter
    let proposedOperations: Counter
    let appliedEntries: Counter
    let engineBatches: Counter
    let peerMessages: Counter
    let snapshotsSent: Counter
    let snapshotsNotSent: Counter
    let snapshotsReceived: Counter
    let snapshotsNotReceived: Counter
    let snapshotBytesSent: Counter
    let snapshotBytesReceived: Counter
    let groupQueueFull: Counter
    let copyQueueFull: Counter
    let engineChecksumFailures: Counter
    let logChecksumFailures: Counter
    let networkChecksumFailures: Counter
    /// From proposing an entry to its commit.
    let commitDuration: DurationHistogram
    /// One batch into an engine.
    let applyDuration: DurationHistogram
    let syncDuration: DurationHistogram
    let checkpointDuration: DurationHistogram
    let peerRoundTrip: DurationHistogram
    let loopWait: DurationHistogram
    let proposeWait: DurationHistogram
    let logWait: DurationHistogram
    let applyWait: DurationHistogram
    /// By `LeadershipReason`.
    private let leaderChanges: [Counter]
    /// By `RequestKind`, and within it by `RequestResult`.
    private let requests: [Counter]
    /// By `RequestKind`.
    private let durations: [DurationHistogram]
    private let slow: [Counter]

    init(_ registry: MetricsRegistry) {
        requestFrames = registry.counter(
            "kvnode_request_frames_total", "Frames of requests received from routers.")
        requests = RequestKind.allCases.flatMap { kind in
            RequestResult.allCases.map { result in
                registry.counter(
                    "kvnode_requests_total", "Requests of routers answered.",
                    MetricLabel("op", kind.name), MetricLabel("result", result.name))
            }
        }
        durations = RequestKind.allCases.map {
            registry.histogram(
                "kvnode_request_duration_seconds", "From a request's arrival to its answer.",
                MetricLabel("op", $0.name))
        }
        slow = RequestKind.allCases.map {
            registry.counter(
                "kvnode_slow_requests_total", "Requests that took longer than slow.request.",
                MetricLabel("op", $0.name))
        }
        gets = registry.counter("kvnode_gets_total", "Records looked up for clients.")
        lists = registry.counter("kvnode_lists_total", "Pages of sorted lists read for clients.")
        func proposals(_ result: String) -> Counter {
            registry.counter(
                "kvnode_proposals_total",
                "Log entries of the leaders on this node, by what became of them.",
                MetricLabel("result", result))
        }
        proposalsCommitted = proposals("committed")
        proposalsRefused = proposals("refused")
        proposalsUnknown = proposals("unknown")
        proposedOperations = registry.counter(
            "kvnode_proposed_operations_total", "Writes in the proposed log entries.")
        appliedEntries = registry.counter(
            "kvnode_applied_entries_total", "Log entries applied to engines.")
        engineBatches = registry.counter(
            "kvnode_engine_batches_total", "Atomic batches written to engines.")
        peerMessages = registry.counter(
            "kvnode_peer_messages_total", "Replication messages received from other nodes.")
        leaderChanges = LeadershipReason.allCases.map { reason in
            registry.counter(
                "kvnode_leader_changes_total", "Leaderships that began or ended on this node.",
                MetricLabel("reason", reason == .quorumLost ? "quorum_lost" : "\(reason)"))
        }
        func snapshots(_ direction: String, _ result: String) -> Counter {
            registry.counter(
                "kvnode_snapshots_total", "Snapshots that ended.",
                MetricLabel("direction", direction), MetricLabel("result", result))
        }
        snapshotsSent = snapshots("sent", "done")
        snapshotsNotSent = snapshots("sent", "failed")
        snapshotsReceived = snapshots("received", "done")
        snapshotsNotReceived = snapshots("received", "failed")
        func snapshotBytes(_ direction: String) -> Counter {
            registry.counter(
                "kvnode_snapshot_bytes_total", "Keys and values in snapshot chunks.",
                MetricLabel("direction", direction))
        }
        snapshotBytesSent = snapshotBytes("sent")
        snapshotBytesReceived = snapshotBytes("received")
        func shed(_ reason: String) -> Counter {
            registry.counter(
                "kvnode_requests_shed_total", "Requests refused because a queue was full.",
                MetricLabel("reason", reason))
        }
        groupQueueFull = shed("group_queue")
        copyQueueFull = shed("copy_queue")
        func checksumFailures(_ source: String) -> Counter {
            registry.counter(
                "kvnode_checksum_failures_total", "Bytes that did not match their checksum.",
                MetricLabel("source", source))
        }
        engineChecksumFailures = checksumFailures("engine")
        logChecksumFailures = checksumFailures("log")
        networkChecksumFailures = checksumFailures("network")
        commitDuration = registry.histogram(
            "kvnode_commit_duration_seconds", "From proposing a log entry to its commit.")
        applyDuration = registry.histogram(
            "kvnode_apply_duration_seconds", "Applying one batch of entries to an engine.")
        syncDuration = registry.histogram(
            "kvnode_wal_fsync_duration_seconds", "Syncs of the log, all disks.")
        checkpointDuration = registry.histogram(
            "kvnode_checkpoint_duration_seconds", "Making engines durable.", scale: .upkeep)
        peerRoundTrip = registry.histogram(
            "kvnode_peer_rtt_seconds",
            "From a ping to another node to its answer, once a second to each: the network, and the"
                + " event loops at both ends.")
        func wait(_ stage: String) -> DurationHistogram {
            registry.histogram(
                "kvnode_queue_wait_seconds", "Waiting at a stage.", MetricLabel("stage", stage))
        }
        loopWait = wait("loop")
        proposeWait = wait("propose")
        logWait = wait("log")
        applyWait = wait("apply")
    }

    /// Counts an answer.
    func count(_ kind: RequestKind, _ result: RequestResult, took: Nanoseconds) {
        requests[Int(kind.rawValue) * RequestResult.allCases.count + Int(result.rawValue)]
            .increment()
        durations[Int(kind.rawValue)].observe(took)
    }

    func countLeaderChange(_ reason: LeadershipReason) {
        leaderChanges[Int(reason.rawValue)].increment()
    }

    func countSlow(_ kind: RequestKind) { slow[Int(kind.rawValue)].increment() }
}

/// The kinds of requests that metrics tell apart.
enum RequestKind: UInt8, CaseIterable {
    case get, put, delete, list

    var name: String { "\(self)" }

    init(_ code: OperationCode) {
        switch code {
        case .get: self = .get
        case .list: self = .list
        case .delete: self = .delete
        default: self = .put
        }
    }
}

/// How a request ended, as metrics tell it.
enum RequestResult: UInt8, CaseIterable {
    case ok, condition, invalid, notLeader, stale, unavailable, overloaded, unknown, failed

    var name: String { self == .notLeader ? "not_leader" : "\(self)" }

    init(_ code: ErrorCode) {
        switch code {
        case .conditionFailed: self = .condition
        case .invalidRequest, .tooLarge, .tableNotFound, .tableExists, .unauthenticated, .refused:
            self = .invalid
        case .notLeader: self = .notLeader
        case .staleEpoch: self = .stale
        case .unavailable, .deadlineExceeded: self = .unavailable
        case .overloaded: self = .overloaded
        case .unknownOutcome: self = .unknown
        case .storageFailed, .fenced, .malformed: self = .failed
        }
    }
}
