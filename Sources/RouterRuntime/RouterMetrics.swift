// The metric families of a router, read from its last snapshot.

import EventLoop
import KVBase
import Metrics
import RPC
import RouterCore

enum RouterMetrics {
    static func register(in registry: MetricsRegistry, _ status: RouterStatus) {
        registerCommands(registry, status)
        registerRouting(registry, status)
        registerConnections(registry, status)
        registry.gauge(ClockOffset.metricName, ClockOffset.metricHelp) {
            status.clockOffset.value(at: EventLoop.monotonicNow()).map { Double($0) / 1e9 }
        }
    }

    /// By get, put, delete, list: from taking over an operation to its answer.
    static func upstreamDurations(in registry: MetricsRegistry) -> [DurationHistogram] {
        [OperationClass.get, .put, .delete, .list].map { operation in
            registry.histogram(
                "kvrouter_upstream_duration_seconds",
                "Time from taking over an operation to a node's answer, retries included.",
                MetricLabel("op", operation.name))
        }
    }

    /// By operation class: from reading a command to writing its reply.
    static func requestDurations(in registry: MetricsRegistry) -> [DurationHistogram] {
        OperationClass.allCases.map { operation in
            registry.histogram(
                "kvrouter_request_duration_seconds",
                "Time from reading a client command to its reply; commands that the router answers "
                    + "by itself are not in it.",
                MetricLabel("op", operation.name))
        }
    }

    private static func registerCommands(_ registry: MetricsRegistry, _ status: RouterStatus) {
        registry.collector(
            "kvrouter_requests_total", .counter, "Client commands answered, by how they ended."
        ) {
            let statistics = status.current.statistics
            var samples: [MetricSample] = []
            for operation in OperationClass.allCases {
                for result in CommandResult.allCases {
                    samples.append(
                        MetricSample(
                            labels: [
                                MetricLabel("op", operation.name),
                                MetricLabel("result", result.name),
                            ], value: Double(statistics[operation, result])))
                }
            }
            return samples
        }
        registry.collector(
            "kvrouter_requests_shed_total", .counter,
            "Operations refused: too much unanswered in this router, or by one node."
        ) {
            let core = status.current.core
            return [("router_full", core.refusedFull), ("node_full", core.refusedNodeFull)].map {
                MetricSample(labels: [MetricLabel("reason", $0.0)], value: Double($0.1))
            }
        }
        registry.collector(
            "kvrouter_slow_requests_total", .counter,
            "Commands that took longer than slow.request."
        ) {
            let statistics = status.current.statistics
            return OperationClass.allCases.map {
                MetricSample(
                    labels: [MetricLabel("op", $0.name)], value: Double(statistics.slowCount($0)))
            }
        }
        registry.counter(
            "kvrouter_operations_total", "Operations taken over from clients, retries not counted."
        ) { Double(status.current.core.submitted) }
        registry.counter(
            "kvrouter_operations_sent_total", "Operations put into frames, retries counted."
        ) { Double(status.current.core.sent) }
        registry.counter(
            "kvrouter_frames_total",
            "Frames of requests sent; operations sent per frame is the quotient."
        ) { Double(status.current.core.frames) }
        registry.counter(
            "kvrouter_turns_total",
            "Turns of the loop that sent operations or replies; commands per turn is the quotient."
        ) { Double(status.current.statistics.busyTurns) }
        registry.gauge(
            "kvrouter_requests_in_flight", "Operations sent or held and not answered."
        ) { Double(status.current.pendingOperations) }
        registry.gauge("kvrouter_pending_bytes", "Bytes of the operations in flight.") {
            Double(status.current.pendingBytes)
        }
    }

    private static func registerRouting(_ registry: MetricsRegistry, _ status: RouterStatus) {
        registry.collector(
            "kvrouter_retries_total", .counter,
            "Operations that were not answered at their first attempt, by reason."
        ) {
            let core = status.current.core
            return RetryReason.allCases.map {
                MetricSample(labels: [MetricLabel("reason", $0.name)], value: Double(core[$0]))
            }
        }
        registry.collector(
            "kvrouter_route_lookups_total", .counter,
            "Look-ups in the cluster map: hit, miss (no such table), stale (refused by a node)."
        ) {
            let current = status.current
            let stale = current.core[.staleEpoch]
            let values: [(String, UInt64)] = [
                ("hit", current.core.submitted), ("miss", current.statistics.unknownTables),
                ("stale", stale),
            ]
            return values.map {
                MetricSample(labels: [MetricLabel("result", $0.0)], value: Double($0.1))
            }
        }
        registry.gauge(
            "kvrouter_route_epoch",
            "Revision of the cluster map in use: the controller term times 2^32, plus the revision's "
                + "number in that term. Compare it for being equal, or newer."
        ) {
            Double(status.current.revision.rawValue)
        }
        registry.counter(
            "kvrouter_map_updates_total", "Updates of the cluster map taken over."
        ) { Double(status.current.statistics.mapUpdates) }
        registry.gauge(
            "kvrouter_groups_unroutable",
            "Groups that have no known leader, or no connection to it."
        ) { Double(status.current.groupsUnroutable) }
        registry.counter(
            "kvrouter_late_responses_total",
            "Answers of nodes that came after the client had been told something else."
        ) { Double(status.current.core.lateResponses) }
    }

    private static func registerConnections(_ registry: MetricsRegistry, _ status: RouterStatus) {
        registry.collector("kvrouter_connections", .gauge, "Open connections.") {
            let current = status.current
            return [
                MetricSample(
                    labels: [MetricLabel("side", "client")], value: Double(current.clients)),
                MetricSample(
                    labels: [MetricLabel("side", "node")], value: Double(current.nodesOpen)),
            ]
        }
        registry.collector("kvrouter_backends", .gauge, "Nodes of the cluster map.") {
            let current = status.current
            return [
                MetricSample(
                    labels: [MetricLabel("state", "up")], value: Double(current.nodesOpen)),
                MetricSample(
                    labels: [MetricLabel("state", "down")],
                    value: Double(current.nodes - current.nodesOpen)),
            ]
        }
        registry.gauge("kvrouter_controller_connected", "1 while a controller is connected.") {
            status.current.controllerIsConnected ? 1 : 0
        }
        registry.counter("kvrouter_clients_refused_total", "Connections above clients.max.") {
            Double(status.current.statistics.refusedClients)
        }
    }
}
