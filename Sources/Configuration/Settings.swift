// The effective settings of a program.

import KVBase

/// Checked values and where each came from. Asking for a setting that was not declared, or as
/// another kind, or for the value of an unset one by a non-optional accessor, stops the program.
public struct Settings: Sendable {
    /// Where a value came from.
    public enum Origin: Hashable, Sendable, CustomStringConvertible {
        case builtIn
        case file(path: String, line: Int)
        case credential(path: String)
        case environment(variable: String)
        case flag(String)

        public var description: String {
            switch self {
            case .builtIn: "default"
            case .file(let path, let line): "\(path):\(line)"
            case .credential(let path): path
            case .environment(let variable): variable
            case .flag(let flag): flag
            }
        }
    }

    struct Entry {
        let setting: Setting
        var value: SettingValue?
        var origin: Origin
    }

    /// In the order of declaration.
    private let entries: [Entry]
    private let indexes: [String: Int]

    init(entries: [Entry]) {
        self.entries = entries
        var indexes: [String: Int] = [:]
        for (index, entry) in entries.enumerated() { indexes[entry.setting.name] = index }
        self.indexes = indexes
    }

    /// Whether the setting has a value, be it its default.
    public func isSet(_ name: String) -> Bool { entry(name).value != nil }

    public func origin(_ name: String) -> Origin { entry(name).origin }

    /// A string, path, choice or address.
    public func string(_ name: String) -> String {
        guard let value = optionalString(name) else { unset(name) }
        return value
    }

    public func optionalString(_ name: String) -> String? {
        switch entry(name).value {
        case .text(let text): return text
        case nil: return nil
        default: otherKind(name)
        }
    }

    /// An integer or a number of bytes.
    public func integer(_ name: String) -> Int {
        switch entry(name).value {
        case .integer(let value): return value
        case nil: unset(name)
        default: otherKind(name)
        }
    }

    public func duration(_ name: String) -> Nanoseconds {
        switch entry(name).value {
        case .duration(let value): return value
        case nil: unset(name)
        default: otherKind(name)
        }
    }

    public func boolean(_ name: String) -> Bool {
        switch entry(name).value {
        case .boolean(let value): return value
        case nil: unset(name)
        default: otherKind(name)
        }
    }

    /// A list or a list of addresses; empty when unset.
    public func list(_ name: String) -> [String] {
        switch entry(name).value {
        case .list(let parts): return parts
        case nil: return []
        default: otherKind(name)
        }
    }

    /// A setting as people may see it.
    public struct Line: Sendable {
        public let name: String
        /// As a user would write it; nil when unset, and `(secret)` for what nobody may see.
        public let value: String?
        public let origin: Origin
    }

    /// Every setting, in the order of declaration.
    public var lines: [Line] {
        entries.map { entry in
            Line(
                name: entry.setting.name,
                value: entry.value.map {
                    entry.setting.isSecret ? "(secret)" : $0.written(as: entry.setting.kind)
                }, origin: entry.origin)
        }
    }

    /// The names of the settings whose values differ from those of `earlier`, which are of the same
    /// program.
    public func changes(from earlier: Settings) -> [String] {
        zip(entries, earlier.entries).filter { $0.value != $1.value }.map(\.0.setting.name)
    }

    /// The names of the settings whose values differ from those of `start`, with which the same
    /// program was started, and which a running one does not follow.
    public func waiting(since start: Settings) -> [String] {
        zip(entries, start.entries).filter { $0.value != $1.value && !$0.setting.reloads }
            .map(\.0.setting.name)
    }

    /// One line per setting: the name, the value, where it came from.
    public func report() -> String {
        let lines = lines.map { line in
            (line.name + " = " + (line.value ?? "(unset)"), line.origin.description)
        }
        let width = lines.reduce(0) { max($0, $1.0.count) }
        return lines.map { line in
            line.0 + String(repeating: " ", count: width - line.0.count) + "  # \(line.1)\n"
        }.joined()
    }

    private func entry(_ name: String) -> Entry {
        guard let index = indexes[name] else {
            preconditionFailure("setting \(name) was not declared")
        }
        return entries[index]
    }

    private func unset(_ name: String) -> Never {
        preconditionFailure("setting \(name) has neither a value nor a default")
    }

    private func otherKind(_ name: String) -> Never {
        preconditionFailure("setting \(name) is of another kind")
    }
}
