// The registry of a program's metrics.

import KVBase
import Synchronization

/// One label of a series. Values are few and known: never a key, a range or a client's address.
public struct MetricLabel: Hashable, Sendable {
    public let name: String
    public let value: String
    public init(_ name: String, _ value: String) {
        self.name = name
        self.value = value
    }
}

/// What a collector reports at a scrape.
public struct MetricSample: Sendable {
    public let labels: [MetricLabel]
    public let value: Double
    public init(labels: [MetricLabel] = [], value: Double) {
        self.labels = labels
        self.value = value
    }
}

/// Families of metrics by name. Registering is for start-up and takes a lock; updating an
/// instrument never does. Registering the same name and labels again gives the same instrument; the
/// same name with another type or help stops the program.
public final class MetricsRegistry: Sendable {
    public enum FamilyType: String, Sendable {
        case counter
        case gauge
        case histogram
    }

    enum Source {
        case counter(Counter)
        case gauge(Gauge)
        case histogram(DurationHistogram)
        /// A series that is left out while the closure answers nil.
        case number(@Sendable () -> Double?)
    }

    struct Series {
        let labels: [MetricLabel]
        let source: Source
        /// The series is left out while it is off.
        let condition: MetricsSwitch?
    }

    struct Family {
        let name: String
        let type: FamilyType
        let help: String
        var series: [Series] = []
        /// Families whose series are known at the scrape only.
        var collect: (@Sendable () -> [MetricSample])?
    }

    private let families = Mutex<[Family]>([])
    /// What the last rendering cost.
    let renderNanoseconds = Atomic<UInt64>(0)
    let renderedBytes = Atomic<UInt64>(0)
    let seriesLeftOut = Atomic<UInt64>(0)

    public init() {}

    /// The families as they are now; their instruments go on counting.
    var currentFamilies: [Family] { families.withLock { $0 } }

    // MARK: Registering

    /// `name` ends with `_total`.
    public func counter(_ name: String, _ help: String, _ labels: MetricLabel...) -> Counter {
        precondition(name.hasSuffix("_total"), "\(name): counters end with _total")
        let made = register(name, .counter, help, labels) { .counter(Counter()) }
        guard case .counter(let counter) = made else { taken(name) }
        return counter
    }

    /// `shownBy`: the series is left out while that switch is off.
    public func gauge(
        _ name: String, _ help: String, _ labels: MetricLabel..., shownBy: MetricsSwitch? = nil
    ) -> Gauge {
        let made = register(name, .gauge, help, labels, shownBy) { .gauge(Gauge()) }
        guard case .gauge(let gauge) = made else { taken(name) }
        return gauge
    }

    /// A gauge that is computed at the scrape, on the scraping thread. The series is left out
    /// whenever `value` answers nil.
    public func gauge(
        _ name: String, _ help: String, _ labels: MetricLabel...,
        value: @escaping @Sendable () -> Double?
    ) {
        _ = register(name, .gauge, help, labels) { .number(value) }
    }

    /// A counter that someone else keeps, read at the scrape.
    public func counter(
        _ name: String, _ help: String, _ labels: MetricLabel...,
        value: @escaping @Sendable () -> Double?
    ) {
        precondition(name.hasSuffix("_total"), "\(name): counters end with _total")
        _ = register(name, .counter, help, labels) { .number(value) }
    }

    /// `name` ends with `_seconds`.
    public func histogram(
        _ name: String, _ help: String, _ labels: MetricLabel...,
        scale: DurationHistogram.Scale = .requests
    ) -> DurationHistogram {
        precondition(name.hasSuffix("_seconds"), "\(name): durations are in seconds")
        let made = register(name, .histogram, help, labels) {
            .histogram(DurationHistogram(scale))
        }
        guard case .histogram(let histogram) = made else { taken(name) }
        return histogram
    }

    /// A constant 1 whose labels carry the news. `name` ends with `_info`.
    public func info(_ name: String, _ help: String, _ labels: MetricLabel...) {
        precondition(name.hasSuffix("_info"), "\(name): constants end with _info")
        let made = register(name, .gauge, help, labels) { .gauge(Gauge()) }
        guard case .gauge(let gauge) = made else { taken(name) }
        gauge.set(1)
    }

    /// A family whose series come and go: `collect` is asked at each scrape, on the scraping
    /// thread, and gives each combination of labels at most once.
    public func collector(
        _ name: String, _ type: FamilyType, _ help: String,
        _ collect: @escaping @Sendable () -> [MetricSample]
    ) {
        precondition(type != .histogram, "\(name): histograms are instruments")
        families.withLock { families in
            let index = Self.family(&families, name, type, help)
            precondition(
                families[index].series.isEmpty && families[index].collect == nil,
                "\(name) is registered twice")
            families[index].collect = collect
        }
    }

    private func register(
        _ name: String, _ type: FamilyType, _ help: String, _ labels: [MetricLabel],
        _ condition: MetricsSwitch? = nil, _ make: () -> Source
    ) -> Source {
        families.withLock { families in
            let index = Self.family(&families, name, type, help)
            precondition(families[index].collect == nil, "\(name) has a collector")
            if let series = families[index].series.first(where: { $0.labels == labels }) {
                if case .number = series.source { taken(name) }
                return series.source
            }
            let source = make()
            families[index].series.append(
                Series(labels: labels, source: source, condition: condition))
            return source
        }
    }

    private static func family(
        _ families: inout [Family], _ name: String, _ type: FamilyType, _ help: String
    ) -> Int {
        precondition(isValidName(name), "\(name) is not a metric's name")
        if let index = families.firstIndex(where: { $0.name == name }) {
            precondition(
                families[index].type == type && families[index].help == help,
                "\(name) is registered as something else")
            return index
        }
        families.append(Family(name: name, type: type, help: help))
        return families.count - 1
    }

    private static func isValidName(_ name: String) -> Bool {
        guard let first = name.utf8.first, !(0x30...0x39).contains(first) else { return false }
        return name.utf8.allSatisfy { byte in
            (0x61...0x7A).contains(byte) || (0x30...0x39).contains(byte) || byte == 0x5F
        }
    }

    private func taken(_ name: String) -> Never {
        preconditionFailure("\(name) with these labels is another instrument")
    }

    /// The names of all families, in the order of registration.
    public var familyNames: [String] { families.withLock { $0.map(\.name) } }
}
