// The figures of the data path: how much came, and how much one batch carried at each stage.

import KVBase
import Metrics

/// Requests per frame, operations per entry and entries per engine batch are the quotients of
/// neighbouring counters.
struct NodeMetrics: Sendable {
    let requestFrames: Counter
    let requests: Counter
    let gets: Counter
    let lists: Counter
    let proposedEntries: Counter
    let proposedOperations: Counter
    let appliedEntries: Counter
    let engineBatches: Counter
    let peerMessages: Counter
    let leaderChanges: Counter
    let snapshotsSent: Counter
    let snapshotsReceived: Counter

    init(_ registry: MetricsRegistry) {
        requestFrames = registry.counter(
            "kvnode_request_frames_total", "Frames of requests received from routers.")
        requests = registry.counter("kvnode_requests_total", "Requests received from routers.")
        gets = registry.counter("kvnode_gets_total", "Records looked up for clients.")
        lists = registry.counter("kvnode_lists_total", "Pages of sorted lists read for clients.")
        proposedEntries = registry.counter(
            "kvnode_proposals_total", "Log entries proposed by the leaders on this node.")
        proposedOperations = registry.counter(
            "kvnode_proposed_operations_total", "Writes in the proposed log entries.")
        appliedEntries = registry.counter(
            "kvnode_applied_entries_total", "Log entries applied to engines.")
        engineBatches = registry.counter(
            "kvnode_engine_batches_total", "Atomic batches written to engines.")
        peerMessages = registry.counter(
            "kvnode_peer_messages_total", "Replication messages received from other nodes.")
        leaderChanges = registry.counter(
            "kvnode_leader_changes_total", "Leaderships that began or ended on this node.")
        snapshotsSent = registry.counter(
            "kvnode_snapshots_total", "Snapshots that ended.", MetricLabel("direction", "sent"))
        snapshotsReceived = registry.counter(
            "kvnode_snapshots_total", "Snapshots that ended.", MetricLabel("direction", "received")
        )
    }
}
