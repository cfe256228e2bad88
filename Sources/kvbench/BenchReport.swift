// What a run found, for people and for programs.

import KVBase

struct BenchReport {
    private let options: BenchOptions
    private let counters: BenchCounters
    private let seconds: Double

    init(_ options: BenchOptions, _ counters: BenchCounters, seconds: Double) {
        self.options = options
        self.counters = counters
        self.seconds = seconds
    }

    private static let quantiles: [(name: String, share: Double)] = [
        ("p50", 0.5), ("p90", 0.9), ("p99", 0.99), ("p99.9", 0.999),
    ]

    private var succeeded: Int { counters.answered - counters.refused }
    /// Answers without error in a second.
    private var throughput: Double { Double(succeeded) / seconds }
    private var errors: [(kind: String, count: Int)] {
        counters.errors.sorted { $0.key < $1.key }.map { ($0.key, $0.value) }
    }

    var text: String {
        var lines = [
            "\(options.workload.rawValue) (\(options.dialect.rawValue)): \(counters.answered) requests"
                + " in \(Self.decimal(seconds, 2)) s over \(options.connections) connections"
                + " with \(options.pipeline) in flight each",
            "throughput  \(Self.decimal(throughput, 0)) requests/s",
        ]
        let latencies =
            Self.quantiles.map {
                "\($0.name) \(Self.milliseconds(counters.latency.quantile($0.share)))"
            }
            + ["max \(Self.milliseconds(counters.latency.max))"]
        lines.append("latency     " + latencies.joined(separator: ", ") + " ms")
        let stalls = counters.stalls.byKey
        if stalls.count > 0 {
            let quantiles = Self.quantiles.map {
                "\($0.name) \(Self.milliseconds(stalls.quantile($0.share)))"
            }
            lines.append(
                "stalls      "
                    + (quantiles + ["max \(Self.milliseconds(stalls.max))"])
                    .joined(separator: ", ") + " ms of \(stalls.count) keys")
        }
        lines.append("silence     \(Self.milliseconds(counters.stalls.silence.count)) ms")
        if counters.absent > 0 { lines.append("absent      \(counters.absent)") }
        let kinds = errors.map { "\($0.kind) \($0.count)" }.joined(separator: ", ")
        lines.append("errors      " + (kinds.isEmpty ? "none" : kinds))
        if options.workload == .load {
            lines.append("loaded      \(succeeded) of \(options.records) records")
        }
        return lines.joined(separator: "\n")
    }

    var json: String {
        let stalls = counters.stalls.byKey
        let stallMicros =
            stalls.count == 0
            ? "null" : "{\"keys\":\(stalls.count),\(Self.micros(stalls).joined(separator: ","))}"
        let latencies =
            Self.micros(counters.latency)
            + ["\"mean\":\(Self.decimal(counters.latency.mean / 1e3, 1))"]
        // Error kinds are words of a protocol; what would need escaping is left out of them.
        let kinds = errors.map { kind, count in
            "\"\(String(kind.filter { $0.isASCII && $0 != "\"" && $0 != "\\" && $0 >= " " }))\":\(count)"
        }
        return "{\"workload\":\"\(options.workload.rawValue)\""
            + ",\"command\":\"\(options.dialect.rawValue)\""
            + ",\"connections\":\(options.connections),\"pipeline\":\(options.pipeline)"
            + ",\"records\":\(options.records),\"valueBytes\":\(options.valueBytes)"
            + ",\"seconds\":\(Self.decimal(seconds, 3)),\"requests\":\(counters.answered)"
            + ",\"throughput\":\(Self.decimal(throughput, 1)),\"absent\":\(counters.absent)"
            + ",\"latencyMicros\":{\(latencies.joined(separator: ","))}"
            + ",\"stallMicros\":\(stallMicros)"
            + ",\"silenceMicros\":\(Self.decimal(Double(counters.stalls.silence.count) / 1e3, 1))"
            + ",\"errors\":{\(kinds.joined(separator: ","))}}"
    }

    /// Members of a JSON object.
    private static func micros(_ histogram: LatencyHistogram) -> [String] {
        (quantiles.map { ($0.name, histogram.quantile($0.share)) } + [("max", histogram.max)])
            .map { name, value in "\"\(name)\":\(decimal(Double(value) / 1e3, 1))" }
    }

    private static func milliseconds(_ nanoseconds: UInt64) -> String {
        decimal(Double(nanoseconds) / 1e6, 2)
    }

    private static func decimal(_ value: Double, _ digits: Int) -> String {
        var factor = 1.0
        for _ in 0..<digits { factor *= 10 }
        let whole = UInt64((value * factor).rounded())
        guard digits > 0 else { return String(whole) }
        let fraction = String(whole % UInt64(factor))
        return String(whole / UInt64(factor)) + "."
            + String(repeating: "0", count: digits - fraction.utf8.count) + fraction
    }
}
