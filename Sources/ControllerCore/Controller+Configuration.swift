// Changing settings at run time.

import KVBase
import ShardCore

extension Controller {
    /// Every setting that can be changed at run time.
    public var configuration: [SettingStatus] { runtime.list }

    public func mode(of rule: RuleName) -> RuleMode { runtime.mode(rule) }

    /// `value` is `default` to go back to the default.
    mutating func configure(
        _ name: String, _ value: String, _ request: RequestID, now: Instant,
        into effects: inout ControllerEffects
    ) throws(DatabaseError) {
        let setting = try RuntimeSettings.setting(named: name)
        let text = value == "default" ? nil : value
        let before = setting.write(configured[setting])
        try configured.set(setting, to: text)
        var transaction = MetadataTransaction()
        if let text {
            transaction.changes.append(
                .put(key: StoreKey.setting(name), value: Bytes(text.utf8), lease: .none))
        } else {
            transaction.changes.append(.delete(key: StoreKey.setting(name)))
        }
        let after = setting.write(configured[setting])
        if after != before {
            decide(
                "\(name) is \(after)\(text == nil ? ", the default" : "") now, was \(before): set by "
                    + "the operator", now: now, into: &effects)
        }
        store(transaction, then: .configured(configured, request), into: &effects)
    }

    mutating func configurationStored(_ settings: RuntimeSettings, _ request: RequestID) {
        let bytes = runtime[.splitBytes]
        runtime = settings
        if runtime[.splitBytes] != bytes { findLargeShards() }
        operationAnswers.append((request, .success(.none)))
    }

    /// Takes the settings from the store. One that this version does not know or allow has its
    /// default; the words are for the decision log.
    mutating func adopt(_ settings: [(name: String, value: String)]) -> [String] {
        var objections: [String] = []
        for (name, value) in settings {
            do throws(DatabaseError) {
                try configured.set(try RuntimeSettings.setting(named: name), to: value)
            } catch {
                objections.append(
                    "the stored setting \(name) = \(value) is ignored: \(error.message)")
            }
        }
        runtime = configured
        return objections
    }
}
