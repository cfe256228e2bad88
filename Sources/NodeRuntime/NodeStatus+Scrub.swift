// What metrics and the watchdog see of the checks of data at rest.

import KVBase
import Metrics

extension NodeStatus {
    func registerScrubs(in registry: MetricsRegistry, period: Nanoseconds) {
        let period = Double(period.count) / 1e9
        registry.gauge(
            "kvnode_scrub_period_seconds",
            "Time between two checks of what is on disk; 0 when there are none by themselves."
        ) { period }
        func family(
            _ name: String, _ type: MetricsRegistry.FamilyType, _ help: String,
            _ value: @escaping @Sendable (DiskScrub) -> Double
        ) {
            registry.collector(name, type, help) { [self] in
                read().disks.map {
                    MetricSample(labels: [MetricLabel("disk", $0.path)], value: value($0.scrub))
                }
            }
        }
        family(
            "kvnode_scrub_last_success_timestamp_seconds", .gauge,
            "When everything on the disk was last found whole; before the first time, when the disk"
                + " was first opened."
        ) { Double($0.record.since) }
        family("kvnode_scrub_bytes_total", .counter, "Bytes read to check them.") {
            Double($0.allBytes)
        }
        family("kvnode_scrub_running", .gauge, "1 while the disk is being checked.") {
            $0.isRunning ? 1 : 0
        }
    }

    /// What rises while a check computes; nil otherwise.
    func scrubProgress(_ index: Int) -> UInt64? {
        let disks = read().disks
        return index < disks.count ? disks[index].scrub.progress : nil
    }
}
