// The figures of the controller. Gauges of the cluster's state hold only while it acts.

import ControllerCore
import EventLoop
import KVBase
import Metrics
import RPC
import ShardCore

struct ControllerMetrics: Sendable {
    static let nodeStates = ["up", "ill", "suspect", "down", "spare", "draining", "maintenance"]
    static let shardHealths = ["ok", "under_replicated", "unavailable", "misplaced"]
    static let groupHealths = ["ok", "under_replicated", "no_leader", "no_quorum"]

    let isServing: Gauge
    let isLeader: Gauge
    let hasLeader: Gauge
    let revision: Gauge
    let heartbeats: Counter
    let heartbeatsIgnored: Counter
    let leaderChanges: Counter
    let nominations: Counter
    let tableRequests: Counter
    let proceduresInFlight: Gauge
    let retiredReplicas: Gauge
    let fsyncDuration: DurationHistogram
    let tickDuration: DurationHistogram
    let lastTick: Gauge
    let storeRecords: Gauge
    let storeBytes: Gauge
    private let restored: Gauge
    private let operations: OperationMetrics
    private let nodes: [Gauge]
    private let shards: [Gauge]
    private let groups: [Gauge]
    let connections: Gauge
    let clockOffset = ClockOffset()
    /// On while this controller acts: others know the cluster less well, and tell nothing of it.
    private let acting = MetricsSwitch()

    init(_ registry: MetricsRegistry) {
        isServing = registry.gauge(
            "kvcontroller_serving", "1 while this controller acts and serves.")
        isLeader = registry.gauge(
            "kvcontroller_is_leader", "1 while this controller is the acting one.")
        hasLeader = registry.gauge(
            "kvcontroller_has_leader", "1 while this controller knows an acting one.")
        revision = registry.gauge(
            "kvcontroller_metadata_revision", "The newest revision of the metadata store.")
        heartbeats = registry.counter(
            "kvcontroller_heartbeats_total", "Heartbeats of nodes.", MetricLabel("result", "taken"))
        heartbeatsIgnored = registry.counter(
            "kvcontroller_heartbeats_total", "Heartbeats of nodes.",
            MetricLabel("result", "ignored"))
        leaderChanges = registry.counter(
            "kvcontroller_leader_changes_total", "Leaders of groups that were newly seen.")
        nominations = registry.counter(
            "kvcontroller_nominations_total", "Replicas told to stand for election.")
        tableRequests = registry.counter(
            "kvcontroller_table_requests_total", "Requests to create or drop a table.")
        proceduresInFlight = registry.gauge(
            "kvcontroller_operations_in_flight", "Operations under way.",
            MetricLabel("kind", "table"), shownBy: acting)
        fsyncDuration = registry.histogram(
            "kvcontroller_metadata_fsync_duration_seconds", "Syncs of the metadata log.")
        tickDuration = registry.histogram(
            "kvcontroller_reconcile_duration_seconds", "Looks at the whole cluster.")
        lastTick = registry.gauge(
            "kvcontroller_reconcile_last_success_timestamp_seconds",
            "When the cluster was last looked at, in seconds since 1970.", shownBy: acting)
        operations = OperationMetrics(registry, shownBy: acting)
        retiredReplicas = registry.gauge(
            "kvcontroller_retired_replicas", "Replaced replicas that wait for their deletion.",
            shownBy: acting)
        storeRecords = registry.gauge(
            "kvcontroller_metadata_records", "Records in the metadata store.")
        storeBytes = registry.gauge(
            "kvcontroller_metadata_memory_bytes", "Memory that the metadata store takes.")
        restored = registry.gauge(
            "kvcontroller_metadata_restored_timestamp_seconds",
            "When the metadata was last restored from a backup or from the nodes, in seconds since 1970; 0: never.",
            shownBy: acting)
        connections = registry.gauge(
            "kvcontroller_connections",
            "Open connections of nodes, routers, tools and controllers.")
        let (acting, clockOffset) = (acting, clockOffset)
        registry.gauge(ClockOffset.metricName, ClockOffset.metricHelp) {
            clockOffset.value(at: EventLoop.monotonicNow()).map { Double($0) / 1e9 }
        }
        nodes = Self.nodeStates.map {
            registry.gauge(
                "kvcontroller_nodes", "Nodes by state.", MetricLabel("state", $0), shownBy: acting)
        }
        groups = Self.groupHealths.map {
            registry.gauge(
                "kvcontroller_groups", "Groups by health.", MetricLabel("health", $0),
                shownBy: acting)
        }
        shards = Self.shardHealths.map {
            registry.gauge(
                "kvcontroller_shards", "Shards by the health of their group.",
                MetricLabel("health", $0), shownBy: acting)
        }
    }

    /// Takes the figures of the cluster over.
    func update(_ controller: Controller, progress: [OperationRecord.Kind: Int]) {
        isLeader.set(controller.isActing ? 1 : 0)
        hasLeader.set(controller.isActing ? 1 : 0)
        isServing.set(controller.isActing ? 1 : 0)
        revision.set(Int64(controller.revision.rawValue))
        raise(heartbeats, to: controller.heartbeatCount)
        raise(heartbeatsIgnored, to: controller.heartbeatsIgnoredCount)
        raise(leaderChanges, to: controller.leaderChangeCount)
        raise(nominations, to: controller.nominationCount)
        operations.update(controller, progress)
        restored.set(Int64(controller.restoredAt / 1_000))
        retiredReplicas.set(Int64(controller.retired.count))
        proceduresInFlight.set(Int64(controller.proceduresInFlight))
        var nodeCounts = [Int64](repeating: 0, count: Self.nodeStates.count)
        for node in controller.nodes.elements {
            if let index = Self.nodeStates.firstIndex(of: node.stateName) { nodeCounts[index] += 1 }
        }
        for (gauge, count) in zip(nodes, nodeCounts) { gauge.set(count) }
        var shardCounts = [Int64](repeating: 0, count: Self.shardHealths.count)
        var groupCounts = [Int64](repeating: 0, count: Self.groupHealths.count)
        let zones = Set(controller.nodes.elements.filter(\.isLive).map(\.record.zone))
        for group in controller.groups.elements {
            let health = group.health(in: controller)
            let shardHealth =
                health == .healthy && group.isMisplaced(in: controller, zones: zones)
                ? Self.misplaced : health.rawValue
            shardCounts[shardHealth] += Int64(controller.shardCount(of: group.record.id))
            let hasNoQuorum = health == .unavailable && !group.hasLiveMajority(in: controller)
            groupCounts[hasNoQuorum ? Self.noQuorum : health.rawValue] += 1
        }
        for (gauge, count) in zip(shards, shardCounts) { gauge.set(count) }
        for (gauge, count) in zip(groups, groupCounts) { gauge.set(count) }
        acting.isOn = controller.isActing
    }

    /// This controller acts no more: the figures of the cluster are somebody else's to tell.
    func standDown() {
        isServing.set(0)
        isLeader.set(0)
        acting.isOn = false
    }

    private static let misplaced = 3
    private static let noQuorum = 3

    /// One line for `systemctl status`.
    func sentence(_ quorum: QuorumMetrics, obstacle: String?) -> String {
        guard isServing.value == 1 else {
            if hasLeader.value == 1 { return "standing by: another controller acts" }
            return obstacle.map { "cannot act: \($0)" }
                ?? "waiting for a majority of the controllers: \(quorum.reachable.value) of "
                + "\(quorum.members.value) reachable"
        }
        func listed(_ gauges: [Gauge], _ names: [String]) -> String {
            let parts = zip(gauges, names).filter { $0.0.value > 0 }.map { "\($0.0.value) \($0.1)" }
            return parts.isEmpty ? "none" : parts.joined(separator: " ")
        }
        return "acting: nodes \(listed(nodes, Self.nodeStates)); shards "
            + listed(shards, Self.shardHealths)
            + "; metadata revision \(revision.value)"
    }

    private func raise(_ counter: Counter, to value: UInt64) {
        let known = counter.value
        if value > known { counter.increment(by: value - known) }
    }
}

/// How well a group serves its shards; raw values index `ControllerMetrics.shardHealths` and
/// `groupHealths`.
enum GroupHealth: Int {
    case healthy = 0
    case underReplicated = 1
    case unavailable = 2
}

extension GroupStatus {
    /// Whether enough of its nodes live to elect a leader.
    func hasLiveMajority(in controller: Controller) -> Bool {
        let live = record.placements.count { controller.nodes[$0.node]?.isLive == true }
        return live > record.placements.count / 2
    }

    /// Whether one failure domain holds two of its replicas although there is another one that
    /// holds none. `zones` are those of the live nodes.
    func isMisplaced(in controller: Controller, zones: Set<String>) -> Bool {
        guard zones.count > 1 else { return false }
        let own = record.placements.compactMap { controller.nodes[$0.node]?.record.zone }
        let distinct = Set(own)
        return distinct.count < own.count && !zones.isSubset(of: distinct)
    }

    func health(in controller: Controller) -> GroupHealth {
        guard hasLeader, isServing else { return .unavailable }
        guard lacking == 0 else { return .underReplicated }
        for (index, placement) in record.placements.enumerated() {
            guard controller.nodes[placement.node]?.isLive == true,
                reports[index]?.state == .active
            else { return .underReplicated }
        }
        return .healthy
    }
}
