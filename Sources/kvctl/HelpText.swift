// The text behind `--help`.

enum HelpText {
    static func overview(_ commands: [Command]) -> String {
        """
        kvctl - operate a Rangekeeper cluster

        usage: kvctl COMMAND [ARGUMENTS] [FLAGS]

        \(list(commands))

        Flags that every command takes:
        \(list(Command.globalFlags))

        The cluster is found by --dir, by --controllers, or by KVCTL_CONTROLLERS in the environment.
        Data goes to standard output, messages to standard error.
        Exit codes: 0 ok, 1 failure, 2 usage, 3 unreachable, 4 unauthenticated, 5 unhealthy,
        6 timeout, 7 refused by a precondition.

        Examples:
          kvctl playground up --dir /tmp/rk --detach
          kvctl status --dir /tmp/rk
          kvctl COMMAND --help
        """
    }

    static func noun(_ noun: String, _ commands: [Command]) -> String {
        """
        usage: kvctl \(noun) VERB [ARGUMENTS] [FLAGS]

        \(list(commands))

        see: kvctl \(noun) VERB --help
        """
    }

    static func of(_ command: Command) -> String {
        var sections = ["kvctl \(command.name) - \(command.summary)"]
        sections.append("usage: kvctl \(command.synopsis) [FLAGS]")
        if !command.details.isEmpty { sections.append(command.details) }
        if !command.flags.isEmpty { sections.append("Flags:\n" + list(command.flags)) }
        sections.append("Flags that every command takes:\n" + list(Command.globalFlags))
        let examples = command.examples.map { "  kvctl " + $0 }
        sections.append("Examples:\n" + examples.joined(separator: "\n"))
        return sections.joined(separator: "\n\n")
    }

    private static func list(_ commands: [Command]) -> String {
        pairs(commands.map { ($0.synopsis, $0.summary) })
    }

    private static func list(_ flags: [Flag]) -> String {
        pairs(
            flags.map { flag in
                let short = flag.short.map { "-\($0), " } ?? ""
                let value = flag.value.map { " " + $0 } ?? ""
                return ("\(short)--\(flag.name)\(value)", flag.help)
            })
    }

    private static func pairs(_ pairs: [(String, String)]) -> String {
        let width = pairs.map(\.0.count).max() ?? 0
        return pairs.map { name, text in
            "  \(name)\(String(repeating: " ", count: width - name.count))  \(text)"
        }.joined(separator: "\n")
    }
}
