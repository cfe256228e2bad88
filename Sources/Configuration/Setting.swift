// The declaration of one setting of a program.

import KVBase

/// A setting: its name in every source, its kind, its default. `name` is `section.key`, in lower
/// case with hyphens; it is `key` under `[section]` in the file, `PROGRAM_SECTION_KEY` in the
/// environment and `--section-key` on the command line.
public struct Setting: Sendable {
    public enum Kind: Sendable {
        case string
        case integer(ClosedRange<Int>)
        /// A number of bytes: `4096`, `64KiB`, `1GB`.
        case bytes(ClosedRange<Int>)
        /// A length of time: `250ms`, `10s`, `1m`, `2h`.
        case duration(ClosedRange<Nanoseconds>)
        /// `host:port`, `[v6]:port`.
        case address
        case boolean
        /// A path of the file system; relative ones are relative to the working directory.
        case path
        /// One of these words.
        case choice([String])
        /// Values apart by commas; in the file the key may also stand several times.
        case list
        /// A list of addresses.
        case addressList
    }

    public let name: String
    public let kind: Kind
    /// In the form a user would write; nil when the setting has no value unless given.
    public let defaultValue: String?
    public let isRequired: Bool
    /// The value is never shown, and may also be a credential.
    public let isSecret: Bool
    /// May also be a credential: the file that is named like the setting in the directory
    /// `CREDENTIALS_DIRECTORY`. A path is that of the file, another value its content.
    public let isCredential: Bool
    /// A running program follows when it reads its settings again; otherwise they take effect at its
    /// next start.
    public let reloads: Bool
    /// One sentence.
    public let help: String

    public init(
        _ name: String, _ kind: Kind, default defaultValue: String? = nil, required: Bool = false,
        secret isSecret: Bool = false, credential isCredential: Bool = false, reloads: Bool = false,
        help: String
    ) {
        self.name = name
        self.kind = kind
        self.defaultValue = defaultValue
        isRequired = required
        self.isSecret = isSecret
        self.isCredential = isSecret || isCredential
        self.reloads = reloads
        self.help = help
    }

    /// `listen.rpc` is `--listen-rpc`.
    public var flag: String { "--" + name.replacing(".", with: "-") }

    /// `listen.rpc` of `kvnode` is `KVNODE_LISTEN_RPC`.
    public func variable(program: String) -> String {
        "\(program)_\(name)".uppercased().replacing(".", with: "_").replacing("-", with: "_")
    }

    var section: String {
        guard let dot = name.firstIndex(of: ".") else { return "" }
        return String(name[..<dot])
    }

    var key: String {
        guard let dot = name.firstIndex(of: ".") else { return name }
        return String(name[name.index(after: dot)...])
    }

    var isList: Bool {
        switch kind {
        case .list, .addressList: true
        default: false
        }
    }

    var isPath: Bool {
        if case .path = kind { true } else { false }
    }

    var isBoolean: Bool {
        if case .boolean = kind { true } else { false }
    }

    /// What to write for the value, in `--help`.
    var placeholder: String {
        switch kind {
        case .string: "TEXT"
        case .integer: "N"
        case .bytes: "BYTES"
        case .duration: "DURATION"
        case .address: "HOST:PORT"
        case .boolean: "true|false"
        case .path: "PATH"
        case .choice(let words): words.joined(separator: "|")
        case .list: "A,B,..."
        case .addressList: "HOST:PORT,..."
        }
    }
}

extension String {
    /// Every occurrence of one character replaced by another.
    func replacing(_ old: Character, with new: Character) -> String {
        String(map { $0 == old ? new : $0 })
    }
}
