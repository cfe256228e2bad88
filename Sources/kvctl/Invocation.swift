// One command line, taken apart and checked against its command.

import Glibc

/// The words a command was called with.
struct Invocation {
    let command: Command
    private(set) var positionals: [String] = []
    private var flags: [String: [String]] = [:]

    /// Checks `words` (those behind the command's own) against the command.
    init(_ command: Command, _ words: [String]) throws(Failure) {
        self.command = command
        var rest = words[...]
        var flagsEnded = false
        while let word = rest.popFirst() {
            if flagsEnded || word == "-" || !word.hasPrefix("-") || Self.isNumber(word) {
                positionals.append(word)
            } else if word == "--" {
                flagsEnded = true
            } else {
                try take(word, &rest)
            }
        }
        guard !has("help") else { return }
        let required = command.positionals.count { $0.isRequired }
        if positionals.count < required {
            let missing = command.positionals[positionals.count].name
            throw usage("\(missing) is missing")
        }
        if positionals.count > command.positionals.count {
            throw usage("'\(positionals[command.positionals.count])' is one argument too many")
        }
    }

    /// `-1` is a value, good or bad: no flag begins with a digit.
    private static func isNumber(_ word: String) -> Bool {
        word.dropFirst().first?.isNumber == true
    }

    /// The positional argument at `index`; nil when it was left out.
    func argument(_ index: Int) -> String? {
        index < positionals.count ? positionals[index] : nil
    }

    func has(_ flag: String) -> Bool { flags[flag] != nil }

    /// The last value given for `flag`.
    func string(_ flag: String) -> String? { flags[flag]?.last }

    /// All values given for `flag`, in order.
    func strings(_ flag: String) -> [String] { flags[flag] ?? [] }

    /// The value of `flag` as an integer; nil when it was not given.
    func int(_ flag: String, in range: ClosedRange<Int>) throws(Failure) -> Int? {
        guard let text = string(flag) else { return nil }
        guard let value = Int(text), range.contains(value) else {
            throw usage(
                "--\(flag) takes a number from \(range.lowerBound) to \(range.upperBound),"
                    + " not '\(text)'")
        }
        return value
    }

    /// The value of `flag` in seconds; `500ms`, `10s`, `1h30m`, `7d`, or a bare number of seconds.
    func seconds(_ flag: String) throws(Failure) -> Double? {
        guard let text = string(flag) else { return nil }
        if let seconds = Quantity.seconds(text) { return seconds }
        throw usage("--\(flag) takes a time such as 500ms, 10s or 1m, not '\(text)'")
    }

    var wantsJSON: Bool { string("output") == "json" }

    /// Bound of one request to a daemon, in seconds.
    func requestTimeout() throws(Failure) -> Double { try seconds("request-timeout") ?? 5 }

    func usage(_ message: String) -> Failure {
        Failure(.usage, "\(message)\nsee: kvctl \(command.name) --help")
    }

    private mutating func take(_ word: String, _ rest: inout ArraySlice<String>) throws(Failure) {
        let parts = word.split(separator: "=", maxSplits: 1, omittingEmptySubsequences: false)
        guard let flag = command.flag(String(parts[0])) else {
            let names = (command.flags + Command.globalFlags).map { "--" + $0.name }
            throw usage(
                "unknown flag \(parts[0])" + Suggestion.text(for: String(parts[0]), in: names))
        }
        guard flag.value != nil else {
            guard parts.count == 1 else { throw usage("--\(flag.name) takes no value") }
            flags[flag.name, default: []].append("")
            return
        }
        guard let value = parts.count == 2 ? String(parts[1]) : rest.popFirst() else {
            throw usage("--\(flag.name) needs a value")
        }
        guard flag.choices.isEmpty || flag.choices.contains(value) else {
            throw usage(
                "--\(flag.name) is one of \(flag.choices.joined(separator: ", ")), not '\(value)'")
        }
        flags[flag.name, default: []].append(value)
    }
}
