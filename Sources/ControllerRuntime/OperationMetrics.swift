// The figures of operations and of load.

import ControllerCore
import KVBase
import Metrics
import ShardCore
import Synchronization

/// Labels are few and known: places in the order of load stand for groups and shards.
struct OperationMetrics: Sendable {
    static let kinds: [OperationRecord.Kind] = [
        .replaceReplica, .addReplica, .replaceNode, .drain, .transfer, .split, .move, .merge,
        .rebalance, .backup, .verifyBackup,
    ]
    static let results: [OperationRecord.Step] = [.done, .cancelled, .failed]
    /// Groups and shards whose load is told.
    static let ranksMax = 10

    /// What was told already, so that counters rise once for each thing.
    private struct Told {
        var isFirst = true
        var ended: Set<OperationID> = []
        var copied: [ShardID: CopyReport] = [:]
    }

    /// In order of `kinds`.
    private let inFlight: [Gauge]
    private let percents: [Gauge]
    private let paused: Gauge
    private let proposals: [Gauge]
    /// In order of `kinds`, and of `results`.
    private let ended: [[Counter]]
    private let durations: [DurationHistogram]
    private let copies: Gauge
    private let copiesThrottled: Gauge
    private let copiedBytes: Counter
    private let copiedRecords: Counter
    private let groupLoads: [Gauge]
    private let shardLoads: [Gauge]
    private let told = Box()

    private final class Box: Sendable {
        let value = Mutex(Told())
    }

    init(_ registry: MetricsRegistry, shownBy acting: MetricsSwitch) {
        inFlight = Self.kinds.map { kind in
            registry.gauge(
                "kvcontroller_operations_in_flight", "Operations under way.",
                MetricLabel("kind", "\(kind)"), shownBy: acting)
        }
        percents = Self.kinds.map { kind in
            registry.gauge(
                "kvcontroller_operation_progress_percent",
                "How far the oldest operation under way has come; 0 without one.",
                MetricLabel("kind", "\(kind)"), shownBy: acting)
        }
        paused = registry.gauge(
            "kvcontroller_operations_paused", "Operations under way that are held.",
            shownBy: acting)
        proposals = Self.kinds.map { kind in
            registry.gauge(
                "kvcontroller_proposals", "Operations that rules propose and nobody applied yet.",
                MetricLabel("kind", "\(kind)"), shownBy: acting)
        }
        ended = Self.kinds.map { kind in
            Self.results.map { result in
                registry.counter(
                    "kvcontroller_operations_total", "Operations that ended.",
                    MetricLabel("kind", "\(kind)"), MetricLabel("result", "\(result)"))
            }
        }
        durations = Self.kinds.map { kind in
            registry.histogram(
                "kvcontroller_operation_duration_seconds", "Operations that ended as done.",
                MetricLabel("kind", "\(kind)"), scale: .operations)
        }
        copies = registry.gauge(
            "kvcontroller_copies", "Shards that are being copied.", shownBy: acting)
        copiesThrottled = registry.gauge(
            "kvcontroller_copies_throttled",
            "Copies that rest because requests on their nodes take too long.", shownBy: acting)
        copiedBytes = registry.counter(
            "kvcontroller_copied_bytes_total", "Keys and values copied between groups.")
        copiedRecords = registry.counter(
            "kvcontroller_copied_records_total", "Records copied between groups.")
        let ranks = (1...Self.ranksMax).map { MetricLabel("rank", "\($0)") }
        groupLoads = ranks.map {
            registry.gauge(
                "kvcontroller_group_requests_per_second",
                "Requests to the busiest groups, by their place among them.", $0, shownBy: acting)
        }
        shardLoads = ranks.map {
            registry.gauge(
                "kvcontroller_shard_requests_per_second",
                "Requests to the busiest shards, by their place among them.", $0, shownBy: acting)
        }
    }

    func update(_ controller: Controller, _ progress: [OperationRecord.Kind: Int]) {
        let operations = controller.storedOperations.map(\.record)
        let open = operations.filter { !$0.isFinished }
        for (kind, (gauge, proposed)) in zip(Self.kinds, zip(inFlight, proposals)) {
            let ofKind = open.filter { $0.kind == kind }
            let waiting = ofKind.count { $0.step == .proposed }
            gauge.set(Int64(ofKind.count - waiting))
            proposed.set(Int64(waiting))
        }
        for (kind, gauge) in zip(Self.kinds, percents) { gauge.set(Int64(progress[kind] ?? 0)) }
        paused.set(Int64(open.count { $0.isPaused }))
        let reports = Array(controller.copyReports.elements)
        copies.set(Int64(reports.count { !$0.isWhole }))
        copiesThrottled.set(Int64(reports.count { $0.isThrottled && !$0.isWhole }))
        told.value.withLock { told in
            count(operations.filter(\.isFinished), &told)
            count(reports, &told)
        }
        rank(controller.groupLoads.elements.map(\.operations), groupLoads)
        rank(controller.shardLoads.elements.map(\.operations), shardLoads)
    }

    /// Those that had ended before this process looked first are not counted.
    private func count(_ finished: [OperationRecord], _ told: inout Told) {
        for record in finished where !told.isFirst && !told.ended.contains(record.id) {
            guard let kind = Self.kinds.firstIndex(of: record.kind),
                let result = Self.results.firstIndex(of: record.step)
            else { continue }
            ended[kind][result].increment()
            if record.step == .done, record.endedAt >= record.startedAt {
                durations[kind].observe(
                    .milliseconds(record.endedAt - record.startedAt))
            }
        }
        told.ended = Set(finished.map(\.id))
        told.isFirst = false
    }

    private func count(_ reports: [CopyReport], _ told: inout Told) {
        var next: [ShardID: CopyReport] = [:]
        for report in reports {
            // A new leader of a copy counts from zero.
            let before = told.copied[report.shard].flatMap { before in
                before.epoch == report.epoch && before.bytes <= report.bytes
                    && before.records <= report.records ? before : nil
            }
            copiedBytes.increment(by: report.bytes - (before?.bytes ?? 0))
            copiedRecords.increment(by: report.records - (before?.records ?? 0))
            next[report.shard] = report
        }
        told.copied = next
    }

    private func rank(_ loads: [UInt64], _ gauges: [Gauge]) {
        let busiest = loads.sorted(by: >)
        for (rank, gauge) in gauges.enumerated() {
            gauge.set(rank < busiest.count ? Int64(busiest[rank]) : 0)
        }
    }
}
