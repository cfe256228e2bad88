// What operators may change while the controller runs: modes of the rules and the numbers they
// rest on. Stored under `setting/NAME` as the text that the operator gave; a setting without a
// record has its default, which for some comes from the controller's configuration file.

import KVBase

/// What the controller does without being asked.
public enum RuleName: String, CaseIterable, Sendable {
    /// Replaces replicas of nodes that stay down and of disks that failed.
    case repair = "repair"
    /// Splits or moves shards of groups with too many requests.
    case hotShard = "split.hot"
    /// Splits shards with too many bytes.
    case largeShard = "split.large"
    /// Joins what a split made and nobody needs any more.
    case coldShards = "merge.cold"
    /// Evens out load, bytes and replicas.
    case rebalance = "rebalance"

    var setting: RuntimeSetting {
        switch self {
        case .repair: .repair
        case .hotShard: .splitHot
        case .largeShard: .splitLarge
        case .coldShards: .mergeCold
        case .rebalance: .rebalance
        }
    }
}

public enum RuleMode: String, CaseIterable, Sendable {
    /// Not even looked for.
    case off
    /// Plans are stored and wait for `kvctl apply`.
    case propose
    case auto
}

/// One setting as operators see it.
public struct SettingStatus: Hashable, Sendable {
    public var name: String
    /// As an operator would write it.
    public var value: String
    public var defaultValue: String
    public var isDefault: Bool
    /// What it is for, in one sentence.
    public var meaning: String
    /// The form of its values.
    public var allowed: String
}

/// In the order in which operators see them.
enum RuntimeSetting: Int, CaseIterable, Sendable {
    case repair, splitHot, splitLarge, mergeCold, rebalance, repairAfter, replacementsMax,
        replicasMin, lagAfter, lagEntries, groupsEmptyAfter,
        splitRate, splitSustain, splitBytes, splitQuiet, mergeBytes, mergeQuiet,
        mergeSustain, movesMax, movesPerNodeMax, movesPerDiskMax, releaseAfter, sparesReserved,
        rebalanceQuiet, rebalanceSustain,
        holdAfterCancel, holdAfterTransfer

    enum Form: Sendable {
        case mode
        case count(ClosedRange<UInt64>)
        case bytes(ClosedRange<UInt64>)
        case duration(ClosedRange<Nanoseconds>)
    }

    static let names = allCases.map(\.name).joined(separator: ", ")

    static func named(_ name: String) -> RuntimeSetting? { allCases.first { $0.name == name } }

    /// The name that operators use.
    var name: String {
        switch self {
        case .repair: "repair"
        case .splitHot: "split.hot"
        case .splitLarge: "split.large"
        case .mergeCold: "merge.cold"
        case .rebalance: "rebalance"
        case .repairAfter: "repair.after"
        case .replacementsMax: "replacements.max"
        case .replicasMin: "replicas.min"
        case .lagAfter: "lag.after"
        case .lagEntries: "lag.entries"
        case .groupsEmptyAfter: "groups.empty.after"
        case .splitRate: "split.rate"
        case .splitSustain: "split.sustain"
        case .splitBytes: "split.bytes"
        case .splitQuiet: "split.quiet"
        case .mergeBytes: "merge.bytes"
        case .mergeQuiet: "merge.quiet"
        case .mergeSustain: "merge.sustain"
        case .movesMax: "moves.max"
        case .movesPerNodeMax: "moves.node.max"
        case .movesPerDiskMax: "moves.disk.max"
        case .releaseAfter: "release.after"
        case .sparesReserved: "spares.reserved"
        case .rebalanceQuiet: "rebalance.quiet"
        case .rebalanceSustain: "rebalance.sustain"
        case .holdAfterCancel: "hold.cancel"
        case .holdAfterTransfer: "hold.transfer"
        }
    }

    var form: Form {
        let day = Nanoseconds.seconds(86_400)
        switch self {
        case .repair, .splitHot, .splitLarge, .mergeCold, .rebalance: return .mode
        case .replacementsMax: return .count(1...64)
        case .replicasMin: return .count(1...5)
        case .lagAfter: return .duration(.seconds(1)...day)
        case .lagEntries: return .count(1...1_000_000_000)
        case .groupsEmptyAfter: return .duration(.seconds(1)...day * 365)
        case .movesMax, .movesPerNodeMax, .movesPerDiskMax: return .count(1...64)
        case .sparesReserved: return .count(0...1_000)
        case .splitRate: return .count(1...10_000_000)
        case .splitBytes, .mergeBytes: return .bytes((1 << 20)...(16 << 40))
        case .repairAfter: return .duration(.zero...day)
        case .splitSustain: return .duration(.seconds(1)...day)
        case .splitQuiet, .mergeQuiet, .releaseAfter, .rebalanceQuiet, .rebalanceSustain,
            .holdAfterCancel,
            .holdAfterTransfer:
            return .duration(.zero...day * 7)
        case .mergeSustain: return .duration(.zero...day * 30)
        }
    }

    /// With the configuration file's word where it has one.
    func defaultValue(_ settings: ControllerSettings) -> UInt64 {
        switch self {
        case .repair: Self.ordinal(settings.repairs ? .auto : .off)
        case .splitHot, .splitLarge, .rebalance: Self.ordinal(.auto)
        case .mergeCold: Self.ordinal(.propose)
        case .repairAfter: settings.repairAfter.count
        case .replacementsMax: UInt64(settings.replacementsMax)
        case .replicasMin: 5
        case .lagAfter: Nanoseconds.seconds(60).count
        case .lagEntries: 10_000
        case .groupsEmptyAfter: Nanoseconds.seconds(600).count
        case .splitRate: 2_000
        case .splitSustain: Nanoseconds.seconds(30).count
        case .splitBytes: 64 << 30
        case .splitQuiet: Nanoseconds.seconds(600).count
        case .mergeBytes: 1 << 30
        case .mergeQuiet: Nanoseconds.seconds(3_600).count
        case .mergeSustain: Nanoseconds.seconds(86_400).count
        case .movesMax: UInt64(settings.movesMax)
        case .movesPerNodeMax: 3
        case .movesPerDiskMax: 2
        case .releaseAfter: settings.releaseAfter.count
        case .sparesReserved: UInt64(settings.sparesReserved)
        case .rebalanceQuiet: Nanoseconds.seconds(60).count
        case .rebalanceSustain: Nanoseconds.seconds(300).count
        case .holdAfterCancel: Nanoseconds.seconds(600).count
        case .holdAfterTransfer: Nanoseconds.seconds(600).count
        }
    }

    var meaning: String {
        switch self {
        case .repair:
            "replace replicas of nodes that stay down, of failed disks and that lag; add lacking ones"
        case .splitHot: "split or move shards of groups with more requests than split.rate"
        case .splitLarge: "split shards with more bytes than split.bytes"
        case .mergeCold: "join shards that a split made and that nearly nobody uses"
        case .rebalance: "even out load and bytes of groups, and replicas of nodes"
        case .repairAfter: "how long a node is down before repair begins"
        case .replacementsMax:
            "new replicas under way at a time, one per disk; others wait their turn"
        case .replicasMin:
            "replicas with which a group is formed when there are too few nodes for all that its "
                + "table asks for; repair adds the others"
        case .lagAfter:
            "how long a follower is behind without coming closer before it counts as lagging"
        case .lagEntries: "log entries that a follower may be behind while it receives"
        case .groupsEmptyAfter:
            "how long a group has no shards before it is dissolved, where more than groups.initial "
                + "are left"
        case .splitRate: "requests per second for which a group is rated"
        case .splitSustain: "how long a group must be above split.rate, without a break"
        case .splitBytes: "bytes up to which a shard is left whole"
        case .splitQuiet: "how long rules leave a shard where it is after a move or merge"
        case .mergeBytes: "bytes of two shards together up to which they may be joined"
        case .mergeQuiet: "how long rules do not join a shard after a split, move or merge of it"
        case .mergeSustain: "how long two shards must be cold, without a break"
        case .movesMax: "moves of shards under way at a time"
        case .movesPerNodeMax: "moves of shards in which a node takes part at a time"
        case .movesPerDiskMax: "moves of shards that read from or write to a disk at a time"
        case .releaseAfter: "how long a group keeps its copy of a shard that has moved away"
        case .sparesReserved:
            "spares that no new group takes, whoever asks for it: they are kept for repair"
        case .rebalanceQuiet: "how long nothing must have happened before rebalance acts"
        case .rebalanceSustain: "how long the load must be uneven before rebalance moves shards"
        case .holdAfterCancel:
            "how long a rule leaves alone what an operator has stopped it from doing"
        case .holdAfterTransfer: "how long the balance of leaders does not undo a transfer"
        }
    }

    var allowed: String {
        switch form {
        case .mode: "off, propose or auto"
        case .count(let range): "a number from \(range.lowerBound) to \(range.upperBound)"
        case .bytes(let range):
            "bytes from \(write(range.lowerBound)) to \(write(range.upperBound)), such as 64GiB"
        case .duration(let range):
            "a time from \(write(range.lowerBound.count)) to \(write(range.upperBound.count)), "
                + "such as 30s, 10m or 1h"
        }
    }

    // MARK: Text

    /// Throws `.refused` with the allowed form.
    func parse(_ text: String) throws(DatabaseError) -> UInt64 {
        let value: UInt64?
        switch form {
        case .mode: value = RuleMode(rawValue: text).map(Self.ordinal)
        case .count(let range): value = UInt64(text).flatMap { range.contains($0) ? $0 : nil }
        case .bytes(let range):
            value = Self.scaled(text, Self.byteUnits).flatMap { range.contains($0) ? $0 : nil }
        case .duration(let range):
            // A number alone would be taken for one of seconds.
            if UInt64(text) != nil {
                throw DatabaseError(
                    .refused,
                    "\(name) is \(allowed); '\(text)' has no unit: say \(text)s for seconds")
            }
            value = Self.scaled(text, Self.timeUnits).flatMap {
                range.contains(Nanoseconds($0)) ? $0 : nil
            }
        }
        guard let value else {
            throw DatabaseError(.refused, "\(name) is \(allowed), not '\(text)'")
        }
        return value
    }

    func write(_ value: UInt64) -> String {
        switch form {
        case .mode: Self.mode(value).rawValue
        case .count: "\(value)"
        case .bytes: Self.written(value, Self.byteUnits)
        case .duration: Self.written(Nanoseconds(value))
        }
    }

    static func ordinal(_ mode: RuleMode) -> UInt64 {
        switch mode {
        case .off: 0
        case .propose: 1
        case .auto: 2
        }
    }

    static func mode(_ ordinal: UInt64) -> RuleMode {
        ordinal == 0 ? .off : ordinal == 1 ? .propose : .auto
    }

    private static let byteUnits: [(unit: String, factor: UInt64)] = [
        ("B", 1), ("KB", 1_000), ("kB", 1_000), ("KiB", 1 << 10), ("MB", 1_000_000),
        ("MiB", 1 << 20), ("GB", 1_000_000_000), ("GiB", 1 << 30), ("TB", 1_000_000_000_000),
        ("TiB", 1 << 40),
    ]

    private static let timeUnits: [(unit: String, factor: UInt64)] = [
        ("ms", 1_000_000), ("s", 1_000_000_000), ("m", 60_000_000_000),
        ("h", 3_600_000_000_000), ("d", 86_400_000_000_000),
    ]

    /// A whole number followed by one of the units; without one it counts single things.
    private static func scaled(
        _ text: String, _ units: [(unit: String, factor: UInt64)]
    ) -> UInt64? {
        let digits = text.prefix { $0.isASCII && $0.isNumber }
        let unit = text.dropFirst(digits.count).drop { $0 == " " }
        guard let number = UInt64(digits),
            let factor = unit.isEmpty ? 1 : units.first(where: { $0.unit == unit })?.factor
        else { return nil }
        let (product, overflow) = number.multipliedReportingOverflow(by: factor)
        return overflow ? nil : product
    }

    /// `30s`, `10m`, `1h`.
    static func written(_ time: Nanoseconds) -> String {
        time == .zero ? "0s" : written(time.count, [("ns", 1)] + timeUnits)
    }

    /// In the largest of the units, which are in order, that leaves a whole number; the first counts
    /// single things.
    private static func written(
        _ value: UInt64, _ units: [(unit: String, factor: UInt64)]
    ) -> String {
        let (unit, factor) = units.last { value % $0.factor == 0 } ?? units[0]
        return "\(value / factor)\(unit)"
    }
}

/// The value of every setting.
struct RuntimeSettings: Sendable {
    private let defaults: [UInt64]
    /// In order of `RuntimeSetting.allCases`; nil for the default.
    private var values: [UInt64?]

    init(_ settings: ControllerSettings) {
        defaults = RuntimeSetting.allCases.map { $0.defaultValue(settings) }
        values = Array(repeating: nil, count: defaults.count)
    }

    /// Throws `.refused`: there is no setting of this name.
    static func setting(named name: String) throws(DatabaseError) -> RuntimeSetting {
        guard let setting = RuntimeSetting.named(name) else {
            throw DatabaseError(
                .refused, "there is no setting named \(name); there are \(RuntimeSetting.names)")
        }
        return setting
    }

    subscript(_ setting: RuntimeSetting) -> UInt64 {
        values[setting.rawValue] ?? defaults[setting.rawValue]
    }

    func mode(_ rule: RuleName) -> RuleMode { RuntimeSetting.mode(self[rule.setting]) }
    func time(_ setting: RuntimeSetting) -> Nanoseconds { Nanoseconds(self[setting]) }

    /// Nil goes back to the default. Throws `.refused` when the value has another form or does not
    /// go with the others; then nothing is changed.
    mutating func set(_ setting: RuntimeSetting, to text: String?) throws(DatabaseError) {
        var next = self
        next.values[setting.rawValue] = try text.map { (text) throws(DatabaseError) in
            try setting.parse(text)
        }
        // What was just split must be far from being joined again.
        guard next[.mergeBytes] <= next[.splitBytes] / 2 else {
            let (merge, split) = (RuntimeSetting.mergeBytes, RuntimeSetting.splitBytes)
            throw DatabaseError(
                .refused,
                "merge.bytes (\(merge.write(next[merge]))) must be at most half of split.bytes "
                    + "(\(split.write(next[split]))), or shards would be split and joined in turn")
        }
        self = next
    }

    var list: [SettingStatus] {
        RuntimeSetting.allCases.map { setting in
            SettingStatus(
                name: setting.name, value: setting.write(self[setting]),
                defaultValue: setting.write(defaults[setting.rawValue]),
                isDefault: values[setting.rawValue] == nil,
                meaning: setting.meaning, allowed: setting.allowed)
        }
    }
}
