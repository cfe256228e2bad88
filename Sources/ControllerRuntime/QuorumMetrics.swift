// The figures of the metadata group as this controller sees it.

import KVBase
import MetadataCore
import Metrics
import ReplicationCore

struct QuorumMetrics: Sendable {
    private static let roles = ["follower", "candidate", "leader", "learner", "empty"]

    private let role: [Gauge]
    private let term: Gauge
    private let commit: Gauge
    private let applied: Gauge
    let members: Gauge
    let reachable: Gauge
    let snapshotBytes: Gauge
    let snapshots: Counter
    let takeOver: DurationHistogram

    init(_ registry: MetricsRegistry) {
        role = Self.roles.map {
            registry.gauge(
                "kvcontroller_metadata_role", "1 for the role in the metadata group.",
                MetricLabel("role", $0))
        }
        term = registry.gauge(
            "kvcontroller_metadata_term",
            "Term of the metadata group's elections; not the controller term, which is told as TERM "
                + "by kvctl controller list.")
        commit = registry.gauge(
            "kvcontroller_metadata_commit_index", "Entries known to be on a majority.")
        applied = registry.gauge(
            "kvcontroller_metadata_applied_index", "Entries applied to the copy in memory.")
        members = registry.gauge(
            "kvcontroller_metadata_members", "Controllers in the metadata group.")
        reachable = registry.gauge(
            "kvcontroller_metadata_members_reachable",
            "Controllers that answer, this one included.")
        snapshotBytes = registry.gauge(
            "kvcontroller_metadata_snapshot_bytes", "Length of the newest metadata snapshot.")
        snapshots = registry.counter(
            "kvcontroller_metadata_snapshots_total", "Metadata snapshots written.")
        takeOver = registry.histogram(
            "kvcontroller_take_over_duration_seconds",
            "From winning the metadata group to acting.")
    }

    static func name(_ role: Replica.Role) -> String {
        switch role {
        case .follower: "follower"
        case .preCandidate, .candidate: "candidate"
        case .leader: "leader"
        case .learner: "learner"
        }
    }

    func update(_ replica: MetadataReplica?, reachable count: Int) {
        let current = replica.map { Self.name($0.core.role) } ?? "empty"
        for (gauge, name) in zip(role, Self.roles) { gauge.set(name == current ? 1 : 0) }
        guard let replica else { return }
        term.set(Int64(replica.core.term.rawValue))
        commit.set(Int64(replica.core.commit.rawValue))
        applied.set(Int64(replica.image.position.index.rawValue))
        members.set(Int64(replica.image.roster.members.count))
        reachable.set(Int64(count))
    }
}
