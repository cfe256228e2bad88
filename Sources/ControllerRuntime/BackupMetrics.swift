// The figures of the metadata's backup. Its state is told only while this controller acts and has a
// backup to keep.

import EventLoop
import KVBase
import MetadataBackup
import Metrics

struct BackupMetrics: Sendable {
    static let reasons = ["unavailable", "refused", "storage", "other"]

    let lastSuccess: Gauge
    let revision: Gauge
    let lag: Gauge
    let bytes: Counter
    let objects: Counter
    private let failures: [Counter]
    private let lastVerify: Gauge
    private let verifiedObjects: Gauge
    private let findings: Gauge
    /// On while this controller keeps a backup.
    let keeping = MetricsSwitch()

    init(_ registry: MetricsRegistry) {
        lastSuccess = registry.gauge(
            "kvcontroller_backup_last_success_timestamp_seconds",
            "When the backup last held everything, in seconds since 1970; 0: not since the start.",
            shownBy: keeping)
        revision = registry.gauge(
            "kvcontroller_backup_revision", "The newest revision that the backup holds.",
            shownBy: keeping)
        lag = registry.gauge(
            "kvcontroller_backup_lag_seconds",
            "Age of the oldest change that is not in the backup; 0 when it holds everything.",
            shownBy: keeping)
        bytes = registry.counter(
            "kvcontroller_backup_bytes_total", "Written to the backup, compressed.")
        objects = registry.counter(
            "kvcontroller_backup_objects_total", "Objects written to the backup.")
        lastVerify = registry.gauge(
            "kvcontroller_backup_last_verify_timestamp_seconds",
            "When the backup was last verified by this controller, in seconds since 1970; 0: not since the start.",
            shownBy: keeping)
        verifiedObjects = registry.gauge(
            "kvcontroller_backup_verified_objects", "Objects that the last verification read.",
            shownBy: keeping)
        findings = registry.gauge(
            "kvcontroller_backup_verify_findings",
            "What the last verification found damaged or missing.", shownBy: keeping)
        failures = Self.reasons.map {
            registry.counter(
                "kvcontroller_backup_failures_total", "Failed accesses to the backup.",
                MetricLabel("reason", $0))
        }
    }

    func verified(_ result: BackupVerification) {
        lastVerify.set(Int64(EventLoop.wallClockNanoseconds() / 1_000_000_000))
        verifiedObjects.set(Int64(result.objects))
        findings.set(Int64(result.findings.count))
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
