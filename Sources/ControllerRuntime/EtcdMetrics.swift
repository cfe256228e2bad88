// The figures of a controller whose metadata is in etcd.

import EtcdMetadata
import Metrics

struct EtcdMetrics: Sendable {
    let isUp: Gauge
    let isElected: Gauge
    let isHistoryLost: Gauge
    private let requests: Counter
    private let failures: Counter
    private let images: Counter
    private let interruptions: Counter
    private let conflicts: Counter

    init(_ registry: MetricsRegistry) {
        isUp = registry.gauge(
            "kvcontroller_etcd_up", "1 while etcd answers, 0 while it does not.")
        isElected = registry.gauge(
            "kvcontroller_etcd_elected", "1 while this controller holds the election key.")
        isHistoryLost = registry.gauge(
            "kvcontroller_etcd_history_lost",
            "1 since etcd was found to hold other metadata than before: older, or none.")
        requests = registry.counter(
            "kvcontroller_etcd_requests_total", "Requests to etcd, the session's left out.")
        failures = registry.counter(
            "kvcontroller_etcd_failures_total", "Requests that no endpoint answered in time.")
        images = registry.counter(
            "kvcontroller_etcd_images_total",
            "Times that everything was read: at the start, and after a compaction during an outage."
        )
        interruptions = registry.counter(
            "kvcontroller_etcd_watch_interruptions_total", "Watches that broke.")
        conflicts = registry.counter(
            "kvcontroller_etcd_conflicts_total",
            "Transactions that another controller's came before.")
    }

    func update(
        _ statistics: EtcdStatistics, isUp: Bool, isElected: Bool, isHistoryLost: Bool
    ) {
        self.isHistoryLost.set(isHistoryLost ? 1 : 0)
        self.isUp.set(isUp ? 1 : 0)
        self.isElected.set(isElected ? 1 : 0)
        raise(requests, to: statistics.requests)
        raise(failures, to: statistics.failures)
        raise(images, to: statistics.images)
        raise(interruptions, to: statistics.interruptions)
        raise(conflicts, to: statistics.conflicts)
    }

    private func raise(_ counter: Counter, to value: UInt64) {
        let known = counter.value
        if value > known { counter.increment(by: value - known) }
    }
}
