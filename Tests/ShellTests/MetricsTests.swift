import KVBase
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

    @Test func bucketsAreTheSmallestBoundNotBelow() {
        for index in 0..<DurationHistogram.boundCount {
            let bound = DurationHistogram.bound(index)
            #expect(DurationHistogram.bucket(of: bound) == index)
            #expect(DurationHistogram.bucket(of: Nanoseconds(bound.count + 1)) == index + 1)
        }
        #expect(DurationHistogram.bucket(of: .zero) == 0)
        #expect(DurationHistogram.bucket(of: Nanoseconds(.max)) == DurationHistogram.boundCount)
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
}
