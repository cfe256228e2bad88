// The figures of the metadata's backup. They hold only while the controller acts.

import KVBase
import Metrics

struct BackupMetrics: Sendable {
    static let reasons = ["unavailable", "refused", "storage", "other"]

    let lastSuccess: Gauge
    let revision: Gauge
    let lag: Gauge
    let bytes: Counter
    let objects: Counter
    private let failures: [Counter]

    init(_ registry: MetricsRegistry) {
        lastSuccess = registry.gauge(
            "kvcontroller_backup_last_success_timestamp_seconds",
            "When the backup last held everything, in seconds since 1970; 0: not since the start.")
        revision = registry.gauge(
            "kvcontroller_backup_revision", "The newest revision that the backup holds.")
        lag = registry.gauge(
            "kvcontroller_backup_lag_seconds",
            "Age of the oldest change that is not in the backup; 0 when it holds everything.")
        bytes = registry.counter(
            "kvcontroller_backup_bytes_total", "Written to the backup, compressed.")
        objects = registry.counter(
            "kvcontroller_backup_objects_total", "Objects written to the backup.")
        failures = Self.reasons.map {
            registry.counter(
                "kvcontroller_backup_failures_total", "Failed accesses to the backup.",
                MetricLabel("reason", $0))
        }
    }

    func failed(_ error: DatabaseError) {
        let reason =
            switch error.code {
            case .unavailable, .deadlineExceeded, .overloaded: 0
            case .refused, .invalidRequest: 1
            case .storageFailed: 2
            default: 3
            }
        failures[reason].increment()
    }
}
