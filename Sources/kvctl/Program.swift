// From the words of the command line to a command that runs, and to help when they make none.

import Glibc

struct Program {
    let arguments: [String]
    private let commands = Command.all

    init(arguments: [String]) { self.arguments = arguments }

    func run() -> ExitCode {
        signal(SIGPIPE, SIG_IGN)
        do throws(Failure) {
            return try dispatch()
        } catch {
            Terminal.say("kvctl: " + error.message)
            return error.code
        }
    }

    private func dispatch() throws(Failure) -> ExitCode {
        guard let first = arguments.first else {
            Terminal.say(HelpText.overview(commands))
            return .usage
        }
        switch first {
        case "help": return try help(about: Array(arguments.dropFirst()))
        case "--help", "-h": return try help(about: [])
        case "--version": return try run(["version"] + arguments.dropFirst())
        case "__complete":
            for word in Completion.candidates(for: Array(arguments.dropFirst()), commands) {
                Terminal.data(word)
            }
            return .ok
        default: return try run(commandFirst(arguments))
        }
    }

    /// The words with the flags of every command that stand before or between the command's own
    /// words behind those, where its other flags are.
    private func commandFirst(_ words: [String]) -> [String] {
        var path: [String] = []
        var flags: [String] = []
        var rest = words[...]
        while let word = rest.first {
            let parts = word.split(separator: "=", maxSplits: 1, omittingEmptySubsequences: false)
            if let flag = Command.globalFlag(String(parts[0])) {
                let takesNext = flag.value != nil && parts.count == 1
                flags += rest.prefix(takesNext ? 2 : 1)
                rest = rest.dropFirst(takesNext ? 2 : 1)
            } else if commands.contains(where: { $0.path.starts(with: path + [word]) }) {
                path.append(word)
                rest = rest.dropFirst()
            } else {
                break
            }
        }
        return path + flags + rest
    }

    private func run(_ words: [String]) throws(Failure) -> ExitCode {
        if let command = command(words), !isUnknownVerb(words, of: command) {
            let invocation = try Invocation(command, Array(words.dropFirst(command.path.count)))
            if invocation.has("help") {
                Terminal.data(HelpText.of(command))
                return .ok
            }
            return try command.run(invocation)
        }
        let verbs = commands.filter { $0.path.first == words[0] }
        guard !verbs.isEmpty else {
            guard Command.globalFlag(words[0]) == nil else {
                throw Failure(.usage, "which command? see: kvctl --help")
            }
            let names = commands.map(\.path[0])
            throw Failure(
                .usage,
                "unknown command '\(words[0])'" + Suggestion.text(for: words[0], in: names)
                    + "\nsee: kvctl --help")
        }
        if words.count == 1 || Command.globalFlag(words[1]) != nil {
            if words.contains("--help") || words.contains("-h") {
                return try help(about: [words[0]])
            }
            Terminal.say(HelpText.noun(words[0], verbs))
            return .usage
        }
        throw Failure(
            .usage,
            "unknown command '\(words[0]) \(words[1])'"
                + Suggestion.text(for: words[1], in: verbs.compactMap { $0.path.dropFirst().first })
                + "\nsee: kvctl \(words[0]) --help")
    }

    private func help(about words: [String]) throws(Failure) -> ExitCode {
        guard let noun = words.first else {
            Terminal.data(HelpText.overview(commands))
            return .ok
        }
        if let command = command(words) {
            Terminal.data(HelpText.of(command))
            return .ok
        }
        let verbs = commands.filter { $0.path.first == noun }
        guard !verbs.isEmpty else {
            throw Failure(.usage, "no command '\(words.joined(separator: " "))'\nsee: kvctl --help")
        }
        Terminal.data(HelpText.noun(noun, verbs))
        return .ok
    }

    private func command(_ words: [String]) -> Command? { Command.named(words, in: commands) }

    /// Whether `command` is a noun that has verbs too, and a word other than those follows.
    private func isUnknownVerb(_ words: [String], of command: Command) -> Bool {
        guard command.positionals.isEmpty, words.count > command.path.count,
            !words[command.path.count].hasPrefix("-")
        else { return false }
        return commands.contains {
            $0.path.count > command.path.count && $0.path.starts(with: command.path)
        }
    }
}
