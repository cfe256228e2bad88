// `version` and `completion`, and the list of all commands.

import BuildInfo
import OperatorClient

extension Command {
    /// Every command, in the order of the help text.
    static let all: [Command] =
        statusCommands + controllerCommands + backupCommands + restoreCommands
        + metadataCommands + loadCommands
        + shardCommands + operationCommands + nodeCommands + settingCommands + auditCommands
        + tableCommands + recordCommands + playgroundCommands + toolCommands

    private static let toolCommands: [Command] = [
        Command(
            path: ["version"], summary: "the version of kvctl",
            examples: ["version", "version -o json"],
            run: { (invocation) throws(Failure) in
                let json: JSONValue = [
                    "kvctl": .string(BuildInfo.version), "revision": .string(BuildInfo.revision),
                ]
                Terminal.data(
                    invocation.wantsJSON ? json.encoded(pretty: true) : "kvctl \(BuildInfo.text)")
                return .ok
            }),
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
}
