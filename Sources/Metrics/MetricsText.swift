// The lines of Prometheus' text format 0.0.4 and of OpenMetrics 1.0.

import KVBase

struct MetricsText {
    private(set) var bytes: Bytes = []

    private let format: MetricsFormat

    init(_ format: MetricsFormat) {
        self.format = format
        bytes.reserveCapacity(64 << 10)
    }

    /// The whole page.
    mutating func finish() -> Bytes {
        if format == .openMetrics { append("# EOF\n") }
        return bytes
    }

    mutating func header(_ name: String, _ type: String, _ help: String) {
        var (name, type) = (name, type)
        if format == .openMetrics {
            // There the family is what its samples have in common.
            if type == "counter" { name.removeLast("_total".count) }
            if name.hasSuffix("_info") {
                name.removeLast("_info".count)
                type = "info"
            }
        }
        append("# HELP \(name) ")
        for byte in help.utf8 {
            switch byte {
            case UInt8(ascii: "\\"): append("\\\\")
            case UInt8(ascii: "\"") where format == .openMetrics: append("\\\"")
            case 0x0A: append("\\n")
            default: bytes.append(byte)
            }
        }
        append("\n# TYPE \(name) \(type)\n")
    }

    mutating func sample(_ name: String, _ labels: [MetricLabel], _ value: some BinaryInteger) {
        start(name, labels)
        append("\(value)\n")
    }

    mutating func sample(_ name: String, _ labels: [MetricLabel], _ value: Double) {
        start(name, labels)
        append(Self.number(value))
        append("\n")
    }

    mutating func histogram(
        _ name: String, _ labels: [MetricLabel], _ histogram: DurationHistogram
    ) {
        let (buckets, sum) = histogram.snapshot()
        var cumulated: UInt64 = 0
        for (index, count) in buckets.enumerated() {
            cumulated += count
            let bound =
                index < DurationHistogram.boundCount
                ? Self.seconds(histogram.scale.bound(index)) : "+Inf"
            sample("\(name)_bucket", labels + [MetricLabel("le", bound)], cumulated)
        }
        start("\(name)_sum", labels)
        append("\(Self.seconds(sum))\n")
        // From the buckets, so that it always equals the last of them.
        sample("\(name)_count", labels, cumulated)
    }

    private mutating func start(_ name: String, _ labels: [MetricLabel]) {
        append(name)
        if !labels.isEmpty {
            append("{")
            for (index, label) in labels.enumerated() {
                if index > 0 { append(",") }
                append("\(label.name)=\"")
                for byte in label.value.utf8 {
                    switch byte {
                    case UInt8(ascii: "\\"): append("\\\\")
                    case UInt8(ascii: "\""): append("\\\"")
                    case 0x0A: append("\\n")
                    default: bytes.append(byte)
                    }
                }
                append("\"")
            }
            append("}")
        }
        append(" ")
    }

    private mutating func append(_ text: String) { bytes.append(contentsOf: text.utf8) }

    /// Exact decimal seconds: `0.0001`, `1.6`.
    static func seconds(_ duration: Nanoseconds) -> String {
        let whole = duration.count / 1_000_000_000
        var fraction = String(duration.count % 1_000_000_000)
        if fraction == "0" { return String(whole) }
        fraction = String(repeating: "0", count: 9 - fraction.utf8.count) + fraction
        while fraction.last == "0" { fraction.removeLast() }
        return "\(whole).\(fraction)"
    }

    private static func number(_ value: Double) -> String {
        if value.isNaN { return "NaN" }
        if value.isInfinite { return value < 0 ? "-Inf" : "+Inf" }
        if let whole = Int64(exactly: value) { return String(whole) }
        return "\(value)"
    }
}
