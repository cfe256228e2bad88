// `version` and `completion`, and the list of all commands.

import BuildInfo
import OperatorClient

extension Command {
    /// Every command, in the order of the help text.
    static let all: [Command] =
        statusCommands + waitCommands + controllerCommands + backupCommands + restoreCommands
        + metadataCommands + loadCommands
        + shardCommands + operationCommands + nodeCommands + settingCommands + auditCommands
        + tableCommands + recordCommands + playgroundCommands + debugCommands + toolCommands

    private static let toolCommands: [Command] = [
        Command(
            path: ["version"], summary: "the version of kvctl, and of the daemons",
            flags: [.toggle("all", "also ask every daemon of the cluster for its version")],
            examples: ["version", "version -o json", "version --all --dir /tmp/rk"],
            run: version),
        Command(
            path: ["completion"], summary: "a script that completes kvctl's words in a shell",
            positionals: [Positional(name: "bash|zsh|fish", kind: .shell)],
            examples: [
                "completion bash > ~/.local/share/bash-completion/completions/kvctl",
                "completion zsh > \"${fpath[1]}/_kvctl\"",
                "completion fish > ~/.config/fish/completions/kvctl.fish",
            ],
            run: { (invocation) throws(Failure) in
                let shell = invocation.positionals[0]
                guard let script = Completion.script(for: shell) else {
                    throw invocation.usage("completion is for bash, zsh or fish, not '\(shell)'")
                }
                Terminal.data(script)
                return .ok
            }),
    ]

    private static func version(_ invocation: Invocation) throws(Failure) -> ExitCode {
        var json: [String: JSONValue] = [
            "kvctl": .string(BuildInfo.version), "revision": .string(BuildInfo.revision),
        ]
        let daemons = invocation.has("all") ? try daemonVersions(invocation) : []
        if invocation.has("all") {
            json["daemons"] = .array(
                daemons.map {
                    ["name": .string($0.name), "version": $0.version.map { .string($0) } ?? .null]
                })
        }
        if invocation.wantsJSON {
            Terminal.data(JSONValue.object(json).encoded(pretty: true))
            return .ok
        }
        Terminal.data("kvctl \(BuildInfo.text)")
        guard !daemons.isEmpty else { return .ok }
        var table = TextTable([.text("DAEMON"), .text("VERSION")])
        for daemon in daemons { table.add([daemon.name, daemon.version ?? "no answer"]) }
        Terminal.data("\n" + table.lines(Palette(invocation)).joined(separator: "\n"))
        return .ok
    }

    /// What each daemon of the cluster says of itself; nil for one that does not answer.
    private static func daemonVersions(
        _ invocation: Invocation
    ) throws(Failure) -> [(name: String, version: String?)] {
        let status = try Cluster(invocation).call("status")
        let timeout = try invocation.requestTimeout()
        return inParallel(Cluster.daemons(in: status), atOnce: 16) { place in
            let page = try? AdminPage.get(
                "/", from: place.admin, deadline: Deadline(seconds: min(timeout, 2)))
            // `kvnode 0.1.0 (revision)`
            guard let page, page.status == 200,
                let line = page.body.split(separator: "\n").first,
                let space = line.firstIndex(of: " ")
            else { return (place.name, nil) }
            return (place.name, String(line[line.index(after: space)...]))
        }
    }
}
