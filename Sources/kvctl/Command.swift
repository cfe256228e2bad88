// What a command is: words, arguments, flags, examples, and what it does.

/// A flag of a command. Without `value` it is a switch.
struct Flag {
    /// Without the dashes.
    var name: String
    /// What its value is called in the help text; nil for a switch.
    var value: String?
    /// One letter, when there is one.
    var short: Character?
    var help: String
    /// The values it takes, when they are few; for errors and completion.
    var choices: [String] = []

    static func option(
        _ name: String, _ value: String, short: Character? = nil, choices: [String] = [],
        _ help: String
    ) -> Flag {
        Flag(name: name, value: value, short: short, help: help, choices: choices)
    }

    static func toggle(_ name: String, short: Character? = nil, _ help: String) -> Flag {
        Flag(name: name, value: nil, short: short, help: help)
    }

    /// `word`: as `--name` or `-n`.
    func isCalled(_ word: String) -> Bool {
        word == "--" + name || short.map { word == "-\($0)" } ?? false
    }
}

/// A word that a command takes beside its flags.
struct Positional {
    /// What live values completion offers for it.
    enum Kind {
        case text
        case table
        /// One of a playground on this machine.
        case daemon
        case controller
        case node
        case group
        case shard
        case operation
        case setting
        case shell
    }

    var name: String
    var isRequired = true
    var kind = Kind.text
}

struct Command: Sendable {
    /// `["table", "create"]`.
    var path: [String]
    var summary: String
    /// More sentences for the help text.
    var details = ""
    var positionals: [Positional] = []
    var flags: [Flag] = []
    /// Complete command lines, without the leading `kvctl `.
    var examples: [String]
    var run: @Sendable (Invocation) throws(Failure) -> ExitCode

    var name: String { path.joined(separator: " ") }

    /// `table create NAME`: the words of the synopsis.
    var synopsis: String {
        let words = positionals.map { $0.isRequired ? $0.name : "[\($0.name)]" }
        return (path + words).joined(separator: " ")
    }

    /// The command that `words` begin with: of `config` and `config get` the longer one.
    static func named(_ words: [String], in commands: [Command]) -> Command? {
        commands.filter { words.starts(with: $0.path) }.max { $0.path.count < $1.path.count }
    }

    /// Flags that every command takes.
    static let globalFlags: [Flag] = [
        .option(
            "output", "FORMAT", short: "o", choices: ["table", "json"], "table (default) or json"),
        .option("dir", "DIR", "the cluster of the playground in DIR"),
        .option("controllers", "HOST:PORT,...", "the cluster of these controllers"),
        .option("request-timeout", "TIME", "bound of one request, 5s unless told; 500ms, 10s, 1m"),
        .toggle("no-color", "no color, as the environment's NO_COLOR"),
        .toggle("help", short: "h", "this text"),
    ]

    /// The flag called `word`, as `--name` or `-n`; nil when there is none.
    func flag(_ word: String) -> Flag? {
        flags.first { $0.isCalled(word) } ?? Self.globalFlag(word)
    }

    /// Of those that every command takes.
    static func globalFlag(_ word: String) -> Flag? { globalFlags.first { $0.isCalled(word) } }
}
