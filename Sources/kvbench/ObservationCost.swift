// What it costs to count: `kvbench observe`.

import EventLoop
import Glibc
import KVBase
import Metrics
import Synchronization
import Threads

/// Measures the instruments of the daemons, which sit on the path of every request.
enum ObservationCost {
    private static let rounds: UInt64 = 20_000_000
    /// Groups of the page that is rendered, and families with a series for each.
    private static let groups = 1_000
    private static let families = 4

    static func run() throws(DatabaseError) -> String {
        let registry = MetricsRegistry()
        let counter = registry.counter("kv_measured_total", "Measured.")
        let histogram = registry.histogram("kv_measured_seconds", "Measured.")
        // Like request durations: from below the first bucket to some milliseconds.
        let durations = (0..<1_024).map { Nanoseconds(UInt64($0 * $0) * 7_919 % 8_000_000) }
        let increment = measure { _ in counter.increment() }
        let observe = measure { histogram.observe(durations[Int($0 & 1_023)]) }
        let shared = try measureShared { counter.increment() }

        for family in 0..<families {
            registry.collector("kv_group_\(family)", .gauge, "A series per group.") {
                (0..<groups).map {
                    MetricSample(labels: [MetricLabel("group", "\($0)")], value: Double($0))
                }
            }
        }
        let began = now()
        let page = registry.render()
        let rendered = now()
        let packed = Gzip.compress(page)?.count ?? page.count
        let end = now()
        return """
            counter           \(tenths(increment)) ns an increment
            shared counter    \(tenths(shared)) ns an increment, by each of 2 threads at once
            histogram         \(tenths(observe)) ns an observation
            page              \(families * groups) series, \(page.count) bytes: \
            \((rendered - began).count / 1_000) us
            gzip              \(packed) bytes: \((end - rendered).count / 1_000) us

            """
    }

    /// Nanoseconds of one call.
    private static func measure(_ body: (UInt64) -> Void) -> Double {
        let began = now()
        for round in 0..<rounds { body(round) }
        return Double((now() - began).count) / Double(rounds)
    }

    private static func measureShared(
        _ body: @escaping @Sendable () -> Void
    ) throws(DatabaseError) -> Double {
        let time = Mutex(Nanoseconds.zero)
        let count = rounds / 2
        let work: @Sendable () -> Void = {
            let began = now()
            for _ in 0..<count { body() }
            let took = now() - began
            time.withLock { $0 = max($0, took) }
        }
        let other = try NamedThread(name: "observe") { work() }
        work()
        other.join()
        return Double(time.withLock { $0 }.count) / Double(count)
    }

    private static func tenths(_ number: Double) -> String {
        let tenths = Int((number * 10).rounded())
        return "\(tenths / 10).\(tenths % 10)"
    }

    private static func now() -> Instant {
        var time = timespec()
        clock_gettime(CLOCK_MONOTONIC, &time)
        return Instant(nanoseconds: UInt64(time.tv_sec) * 1_000_000_000 + UInt64(time.tv_nsec))
    }
}
