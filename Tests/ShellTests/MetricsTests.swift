import KVBase
import Synchronization
import Testing

@testable import Metrics

private func text(_ registry: MetricsRegistry) -> String {
    String(decoding: registry.render(), as: UTF8.self)
}

@Suite struct MetricsTests {
    @Test func rendersEachKindAsPrometheusReadsIt() {
        let registry = MetricsRegistry()
        let get = registry.counter("kv_requests_total", "Requests.", MetricLabel("op", "get"))
        registry.counter("kv_requests_total", "Requests.", MetricLabel("op", "put")).increment()
        get.increment(by: 41)
        get.increment()
        registry.gauge("kv_depth", "Depth\nand \\ more.").set(-3)
        registry.gauge("kv_ratio", "Ratio.") { 0.25 }
        registry.gauge("kv_absent", "Left out.") { nil }
        registry.info("kv_build_info", "Build.", MetricLabel("version", "a\"b\\c\n"))
        registry.collector("kv_states", .gauge, "States.") {
            [MetricSample(labels: [MetricLabel("state", "up")], value: 2)]
        }
        let expected = """
            # HELP kv_requests_total Requests.
            # TYPE kv_requests_total counter
            kv_requests_total{op="get"} 42
            kv_requests_total{op="put"} 1
            # HELP kv_depth Depth\\nand \\\\ more.
            # TYPE kv_depth gauge
            kv_depth -3
            # HELP kv_ratio Ratio.
            # TYPE kv_ratio gauge
            kv_ratio 0.25
            # HELP kv_absent Left out.
            # TYPE kv_absent gauge
            # HELP kv_build_info Build.
            # TYPE kv_build_info gauge
            kv_build_info{version="a\\"b\\\\c\\n"} 1
            # HELP kv_states States.
            # TYPE kv_states gauge
            kv_states{state="up"} 2

            """
        #expect(text(registry) == expected)
    }

    @Test func sameNameAndLabelsAreOneInstrument() {
        let registry = MetricsRegistry()
        let one = registry.counter("kv_a_total", "A.")
        #expect(one === registry.counter("kv_a_total", "A."))
        #expect(registry.familyNames == ["kv_a_total"])
    }

    @Test(arguments: [DurationHistogram.Scale.requests, .upkeep, .operations])
    func bucketsAreTheSmallestBoundNotBelow(scale: DurationHistogram.Scale) {
        for index in 0..<DurationHistogram.boundCount {
            let bound = scale.bound(index)
            #expect(scale.bucket(of: bound) == index)
            #expect(scale.bucket(of: Nanoseconds(bound.count + 1)) == index + 1)
        }
        #expect(scale.bucket(of: .zero) == 0)
        #expect(scale.bucket(of: Nanoseconds(.max)) == DurationHistogram.boundCount)
    }

    @Test func longWorkHasLongBuckets() {
        let registry = MetricsRegistry()
        let histogram = registry.histogram("kv_long_seconds", "Long.", scale: .operations)
        histogram.observe(.seconds(3_600))
        let lines = text(registry).split(separator: "\n")
        #expect(lines[2] == "kv_long_seconds_bucket{le=\"1\"} 0")
        #expect(lines.contains("kv_long_seconds_bucket{le=\"2048\"} 0"))
        #expect(lines.contains("kv_long_seconds_bucket{le=\"4096\"} 1"))
        #expect(lines[18] == "kv_long_seconds_bucket{le=\"65536\"} 1")
    }

    @Test func histogramCumulates() {
        let registry = MetricsRegistry()
        let histogram = registry.histogram("kv_wait_seconds", "Wait.")
        histogram.observe(.microseconds(50), count: 2)
        histogram.observe(.microseconds(150))
        histogram.observe(.seconds(100))
        let lines = text(registry).split(separator: "\n").map(String.init)
        #expect(lines[1] == "# TYPE kv_wait_seconds histogram")
        #expect(lines[2] == "kv_wait_seconds_bucket{le=\"0.0001\"} 2")
        #expect(lines[3] == "kv_wait_seconds_bucket{le=\"0.0002\"} 3")
        #expect(lines[18] == "kv_wait_seconds_bucket{le=\"6.5536\"} 3")
        #expect(lines[19] == "kv_wait_seconds_bucket{le=\"+Inf\"} 4")
        #expect(lines[20] == "kv_wait_seconds_sum 100.00025")
        #expect(lines[21] == "kv_wait_seconds_count 4")
        #expect(lines.count == 22)
    }

    @Test func processFamiliesReadTheProcess() throws {
        let registry = MetricsRegistry()
        ProcessMetrics.register(in: registry)
        #expect(try #require(ProcessMetrics.residentBytes()) > 1_000_000)
        #expect(try #require(ProcessMetrics.openFileDescriptors()) >= 3)
        #expect(try #require(ProcessMetrics.maxFileDescriptors()) >= 64)
        // After the first of January 2024.
        #expect(try #require(ProcessMetrics.startTimeSeconds()) > 1_704_067_200)
        #expect(text(registry).contains("\nprocess_cpu_seconds_total "))
    }

    @Test func openMetricsNamesFamiliesWithoutTheirSuffixAndEnds() {
        let registry = MetricsRegistry()
        registry.counter("kv_requests_total", "Said \"so\".").increment()
        registry.info("kv_build_info", "Build.", MetricLabel("version", "1"))
        registry.gauge("kv_depth", "Depth.").set(2)
        let expected = """
            # HELP kv_requests Said \\"so\\".
            # TYPE kv_requests counter
            kv_requests_total 1
            # HELP kv_build Build.
            # TYPE kv_build info
            kv_build_info{version="1"} 1
            # HELP kv_depth Depth.
            # TYPE kv_depth gauge
            kv_depth 2
            # EOF

            """
        #expect(String(decoding: registry.render(.openMetrics), as: UTF8.self) == expected)
    }

    @Test(
        arguments: [
            (nil, MetricsFormat.text), ("*/*", .text), ("text/plain", .text),
            ("application/openmetrics-text", .openMetrics),
            ("application/openmetrics-text; version=1.0.0; charset=utf-8", .openMetrics),
            // Prometheus 2.42.
            (
                "application/openmetrics-text;version=1.0.0,application/openmetrics-text;version=0.0.1"
                    + ";q=0.75,text/plain;version=0.0.4;q=0.5,*/*;q=0.1", .openMetrics
            ),
            // Prometheus 3.
            (
                "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.5,text/plain"
                    + ";version=1.0.0;escaping=allow-utf-8;q=0.4,*/*;q=0.2", .openMetrics
            ),
            ("application/openmetrics-text;q=0.1,text/plain;q=0.9", .text),
            ("application/openmetrics-text;q=0", .text),
            ("application/openmetrics-text;version=2.0.0", .text),
            ("application/json", .text), ("", .text), (";;,,q=", .text),
        ] as [(String?, MetricsFormat)])
    func formatIsNegotiated(accept: String?, format: MetricsFormat) {
        #expect(MetricsFormat.negotiated(accept: accept) == format)
    }

    @Test(
        arguments: [
            (nil, false), ("gzip", true), ("deflate, GZIP;q=0.5", true), ("gzip;q=0", false),
            ("*", true), ("identity", false), ("br", false), ("", false),
        ] as [(String?, Bool)])
    func gzipIsNegotiated(accepted: String?, admits: Bool) {
        #expect(MetricsFormat.admitsGzip(accepted) == admits)
    }

    @Test func gzipIsOneMemberAndSmaller() throws {
        let text = Bytes(String(repeating: "kv_requests_total 1\n", count: 100).utf8)
        let small = try #require(Gzip.compress(text))
        #expect(small.starts(with: [0x1F, 0x8B]))
        #expect(small.count < text.count / 4)
        // The length of the input, little-endian, ends a member.
        #expect(small.suffix(4) == [UInt8(text.count & 255), UInt8(text.count >> 8), 0, 0])
        #expect(Gzip.compress([1, 2, 3]) == nil, "what grows is not compressed")
    }

    @Test func aSwitchHidesItsSeries() {
        let registry = MetricsRegistry()
        let acting = MetricsSwitch()
        registry.gauge("kv_nodes", "Nodes.", shownBy: acting).set(5)
        #expect(!text(registry).contains("kv_nodes 5"))
        acting.isOn = true
        #expect(text(registry).contains("\nkv_nodes 5\n"))
        acting.isOn = false
        #expect(!text(registry).contains("kv_nodes 5"))
    }

    /// As large as a node of 1,000 groups would be if every group had series of its own.
    @Test func aPageStaysBelowItsLimitAndCountsWhatItLeavesOut() throws {
        let registry = MetricsRegistry()
        registry.registerRendering()
        for family in 0..<10 {
            registry.collector("kv_group_\(family)", .gauge, "Per group.") {
                (0..<1_000).map {
                    MetricSample(labels: [MetricLabel("group", "\($0)")], value: Double($0))
                }
            }
        }
        let small = registry.render()
        #expect(small.count < MetricsRegistry.pageBytesMax)
        #expect(text(registry).contains("kv_group_9{group=\"999\"} 999\n"))
        #expect(text(registry).contains("\nkv_metrics_series_left_out 0\n"))

        registry.collector("kv_many", .gauge, "More than a collector may bring.") {
            (0..<MetricsRegistry.collectedMax + 7).map {
                MetricSample(labels: [MetricLabel("key", "\($0)")], value: 1)
            }
        }
        let wide = String(repeating: "x", count: 1_000)
        registry.collector("kv_wide", .gauge, "More than fits.") {
            (0..<1_000).map {
                MetricSample(labels: [MetricLabel("text", "\(wide)\($0)")], value: 1)
            }
        }
        let late = registry.histogram("kv_late_seconds", "Behind the limit.")
        late.observe(.seconds(1))
        let large = registry.render(.openMetrics)
        #expect(large.count <= MetricsRegistry.pageBytesMax)
        #expect(large.count > MetricsRegistry.pageBytesMax - 10_000)
        #expect(large.suffix(6) == Bytes("# EOF\n".utf8)[...])
        let lines = String(decoding: large, as: UTF8.self).split(separator: "\n")
        let shown = lines.count { $0.hasPrefix("kv_wide{") }
        #expect(lines.count { $0.hasPrefix("kv_many{") } == MetricsRegistry.collectedMax)
        #expect(registry.seriesLeftOut.load(ordering: .relaxed) == UInt64(7 + 1_000 - shown + 1))
    }
}
