// The page of metrics: which format a client gets, and how large a page may be.

import Glibc
import KVBase
import Synchronization

/// A text format for Prometheus.
public enum MetricsFormat: Sendable {
    /// Exposition format 0.0.4, which everybody reads.
    case text
    /// OpenMetrics 1.0: counters are described without `_total`, and the page ends with `# EOF`.
    case openMetrics

    public var contentType: String {
        switch self {
        case .text: "text/plain; version=0.0.4; charset=utf-8"
        case .openMetrics: "application/openmetrics-text; version=1.0.0; charset=utf-8"
        }
    }

    /// The format to answer with, from the `Accept` field of the request. OpenMetrics only for who
    /// asks for it and likes it at least as much as plain text.
    public static func negotiated(accept: String?) -> MetricsFormat {
        var openMetrics = 0.0
        var text = 0.0
        for part in (accept ?? "").lowercased().split(separator: ",") {
            let fields = part.split(separator: ";").map(trimmed)
            guard let type = fields.first else { continue }
            let weight =
                fields.dropFirst().first { $0.hasPrefix("q=") }.map {
                    Double($0.dropFirst(2)) ?? 0
                } ?? 1
            let version = fields.dropFirst().first { $0.hasPrefix("version=") }?.dropFirst(8)
            switch type {
            case "application/openmetrics-text"
            where version == nil || version == "1.0.0" || version == "0.0.1":
                openMetrics = max(openMetrics, weight)
            case "text/plain", "text/*", "*/*": text = max(text, weight)
            default: break
            }
        }
        return openMetrics > 0 && openMetrics >= text ? .openMetrics : .text
    }

    /// Whether the `Accept-Encoding` field of a request admits gzip.
    public static func admitsGzip(_ acceptEncoding: String?) -> Bool {
        for part in (acceptEncoding ?? "").lowercased().split(separator: ",") {
            let fields = part.split(separator: ";").map(trimmed)
            guard fields.first == "gzip" || fields.first == "*" else { continue }
            let weight = fields.dropFirst().first { $0.hasPrefix("q=") }
            return weight.map { (Double($0.dropFirst(2)) ?? 0) > 0 } ?? true
        }
        return false
    }

    private static func trimmed(_ text: Substring) -> Substring {
        var text = text.drop { $0 == " " || $0 == "\t" }
        while let last = text.last, last == " " || last == "\t" { text.removeLast() }
        return text
    }
}

extension MetricsRegistry {
    /// A page is never longer. Series beyond that are left out and counted.
    public static let pageBytesMax = 1_000_000
    /// Most series that one collector may bring to a page; more are left out and counted.
    public static let collectedMax = 2_048
    /// Room for the longest line and the end of the page.
    private static let reserve = 4_096

    /// All metrics as a page. Closures run here, outside of any lock.
    public func render(_ format: MetricsFormat = .text) -> Bytes {
        let began = Self.monotonicNanoseconds()
        var leftOut = 0
        var text = MetricsText(format)
        for family in currentFamilies {
            guard text.bytes.count + Self.reserve < Self.pageBytesMax else {
                leftOut += family.series.count
                continue
            }
            text.header(family.name, family.type.rawValue, family.help)
            let collected = family.collect?() ?? []
            leftOut += max(0, collected.count - Self.collectedMax)
            for sample in collected.prefix(Self.collectedMax) {
                guard text.bytes.count + Self.reserve < Self.pageBytesMax else {
                    leftOut += 1
                    continue
                }
                text.sample(family.name, sample.labels, sample.value)
            }
            for series in family.series where series.condition?.isOn != false {
                guard text.bytes.count + Self.reserve < Self.pageBytesMax else {
                    leftOut += 1
                    continue
                }
                Self.append(series, of: family, to: &text)
            }
        }
        let page = text.finish()
        renderNanoseconds.store(Self.monotonicNanoseconds() - began, ordering: .relaxed)
        renderedBytes.store(UInt64(page.count), ordering: .relaxed)
        seriesLeftOut.store(UInt64(leftOut), ordering: .relaxed)
        return page
    }

    private static func append(_ series: Series, of family: Family, to text: inout MetricsText) {
        switch series.source {
        case .counter(let counter): text.sample(family.name, series.labels, counter.value)
        case .gauge(let gauge): text.sample(family.name, series.labels, gauge.value)
        case .number(let value):
            if let value = value() { text.sample(family.name, series.labels, value) }
        case .histogram(let histogram): text.histogram(family.name, series.labels, histogram)
        }
    }

    /// Registers the figures of the rendering itself.
    public func registerRendering() {
        gauge("kv_metrics_render_seconds", "What the previous scrape took to render.") { [self] in
            Double(renderNanoseconds.load(ordering: .relaxed)) / 1e9
        }
        gauge("kv_metrics_render_bytes", "Bytes of the previous scrape before compression.") {
            [self] in Double(renderedBytes.load(ordering: .relaxed))
        }
        gauge(
            "kv_metrics_series_left_out",
            "Series that the previous scrape left out to stay below its limit."
        ) { [self] in Double(seriesLeftOut.load(ordering: .relaxed)) }
    }

    private static func monotonicNanoseconds() -> UInt64 {
        var time = timespec()
        clock_gettime(CLOCK_MONOTONIC, &time)
        return UInt64(time.tv_sec) * 1_000_000_000 + UInt64(time.tv_nsec)
    }
}
