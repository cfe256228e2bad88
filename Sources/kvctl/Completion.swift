// Completion: the shells ask `kvctl __complete WORD...` for what may stand in place of the last word.

import OperatorClient

enum Completion {
    /// Words that may replace the last of `words`.
    static func candidates(for words: [String], _ commands: [Command]) -> [String] {
        guard let last = words.last else { return [] }
        let before = Array(words.dropLast())
        return all(before, last, commands).filter { $0.hasPrefix(last) }
    }

    private static func all(
        _ before: [String], _ last: String, _ commands: [Command]
    ) -> [String] {
        let next = commands.filter {
            $0.path.count > before.count && $0.path.starts(with: before)
        }
        .map { $0.path[before.count] }
        var unique: [String] = []
        for word in next where !unique.contains(word) { unique.append(word) }
        guard let command = Command.named(before, in: commands) else { return unique }
        if !unique.isEmpty, !last.hasPrefix("-") { return unique }
        if let previous = before.last, let flag = command.flag(previous), flag.value != nil {
            return flag.choices
        }
        if last.hasPrefix("-") {
            return (command.flags + Command.globalFlags).map { "--" + $0.name }
        }
        let rest = Array(before.dropFirst(command.path.count))
        let given = positionals(in: rest, of: command)
        guard given < command.positionals.count else { return [] }
        switch command.positionals[given].kind {
        case .text: return []
        case .shell: return ["bash", "zsh", "fish"]
        case .table: return names("name", in: live("tables", rest, command)["tables"])
        case .controller:
            return names("name", in: live("controller.list", rest, command)["controllers"])
        case .node: return names("name", in: live("nodes", rest, command)["nodes"])
        case .group: return names("id", in: live("groups", rest, command)["groups"])
        case .shard: return names("id", in: live("shards", rest, command)["shards"])
        case .operation: return names("id", in: live("ops.list", rest, command)["operations"])
        case .setting: return names("name", in: live("config.list", rest, command)["settings"])
        case .daemon: return daemons(rest)
        }
    }

    private static func names(_ field: String, in list: JSONValue) -> [String] {
        list.elements.map { $0[field].text }
    }

    private static func positionals(in words: [String], of command: Command) -> Int {
        var count = 0
        var rest = words[...]
        while let word = rest.popFirst() {
            if !word.hasPrefix("-") {
                count += 1
            } else if let flag = command.flag(word), flag.value != nil {
                _ = rest.popFirst()
            }
        }
        return count
    }

    /// An answer of the cluster that `words` name; empty when it does not answer at once.
    private static func live(_ verb: String, _ words: [String], _ command: Command) -> JSONValue {
        let open = Command(path: command.path, summary: "", flags: command.flags, examples: []) {
            (_) throws(Failure) in .ok
        }
        let flags = words.enumerated().filter { index, word in
            word.hasPrefix("-") || (index > 0 && command.flag(words[index - 1])?.value != nil)
        }.map(\.element)
        let invocation = try? Invocation(open, flags + ["--request-timeout", "500ms"])
        guard let invocation, let cluster = try? Cluster(invocation) else { return .null }
        return (try? cluster.call(verb)) ?? .null
    }

    private static func daemons(_ words: [String]) -> [String] {
        guard let flag = words.firstIndex(of: "--dir"), flag + 1 < words.count,
            let file = try? PlaygroundFile(directory: words[flag + 1])
        else { return [] }
        return file.controllers.map(\.name) + file.nodes.map(\.name) + file.routers.map(\.name)
    }

    static func script(for shell: String) -> String? {
        switch shell {
        case "bash":
            """
            # bash completion of kvctl
            _kvctl() {
                local IFS=$'\\n'
                COMPREPLY=($(kvctl __complete "${COMP_WORDS[@]:1:COMP_CWORD}" 2>/dev/null))
            }
            complete -o default -F _kvctl kvctl
            """
        case "zsh":
            """
            #compdef kvctl
            _kvctl() {
                local -a candidates
                candidates=(${(f)"$(kvctl __complete "${(@)words[2,CURRENT]}" 2>/dev/null)"})
                if (( ${#candidates} )); then compadd -a candidates; else _files; fi
            }
            if [ "$funcstack[1]" = "_kvctl" ]; then _kvctl; else compdef _kvctl kvctl; fi
            """
        case "fish":
            """
            # fish completion of kvctl
            function __kvctl_complete
                set -l words (commandline -opc)
                set -l last (commandline -ct)
                set -l found (kvctl __complete $words[2..-1] "$last" 2>/dev/null)
                if test (count $found) -gt 0
                    printf '%s\\n' $found
                else
                    __fish_complete_path "$last"
                end
            end
            complete -c kvctl -f -a '(__kvctl_complete)'
            """
        default: nil
        }
    }
}
