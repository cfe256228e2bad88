// `replace`, `replica`, `drain`, `transfer`, `ops`, `why`, `doctor`: changing where replicas live, and the reasons.

import OperatorClient

extension Command {
    static let operationCommands: [Command] = [
        Command(
            path: ["replace"], summary: "move the replicas of a node to a spare",
            details: """
                Each group gets a new replica on the spare, waits until it has caught up, and swaps it \
                with the old
                one. The node may be dead. Without --with the controller chooses; --dry-run shows what.
                """,
            positionals: [Positional(name: "NODE", isRequired: false, kind: .node)],
            flags: [
                .option("with", "SPARE", "the node that takes over"),
                .option("group", "GROUP", "only in this group; then with --replica"),
                .option("replica", "NODE", "the node whose replica of --group is replaced"),
            ] + planFlags,
            examples: [
                "replace node-2 --dir /tmp/rk", "replace node-2 --with node-4 --wait --dir /tmp/rk",
                "replace node-2 --dry-run --dir /tmp/rk",
                "replace --group 1 --replica node-2 --dir /tmp/rk",
            ],
            run: replace),
        Command(
            path: ["replica", "add"],
            summary: "give a group that lacks replicas one more",
            details: """
                Of as many as its tables ask for, see REPLICAS in: kvctl groups. Unasked, the rule \
                repair does it.
                Without --to the controller chooses the node; --dry-run shows which.
                """,
            positionals: [Positional(name: "GROUP", kind: .group)],
            flags: [.option("to", "NODE", "the node that gets it")] + planFlags,
            examples: ["replica add 3 --dir /tmp/rk", "replica add 3 --to node-4 --dir /tmp/rk"],
            run: addReplica),
        Command(
            path: ["drain"], summary: "move every replica off a node and give it none",
            details: "A drained node is given no replica until: kvctl drain NODE --end",
            positionals: [Positional(name: "NODE", kind: .node)],
            flags: [.toggle("end", "the node may hold replicas again")] + planFlags,
            examples: ["drain node-2 --wait --dir /tmp/rk", "drain node-2 --end --dir /tmp/rk"],
            run: drain),
        Command(
            path: ["transfer"], summary: "hand a group's leadership to another of its nodes",
            positionals: [
                Positional(name: "GROUP", kind: .group), Positional(name: "NODE", kind: .node),
            ],
            flags: planFlags, examples: ["transfer 1 node-3 --dir /tmp/rk"], run: transfer),
        Command(
            path: ["rebalance"],
            summary: "even out replicas, load, bytes and leaders, step by step",
            details: """
                Replicas over nodes by their weight, requests and bytes over groups, leaders over \
                nodes: the steps of
                the rule of this name, whatever its mode, without its waiting times. One step after \
                the other until
                none is a gain. Refused when there is nothing to do.
                """,
            flags: planFlags,
            examples: ["rebalance --dry-run --dir /tmp/rk", "rebalance --wait --dir /tmp/rk"],
            run: { invocation throws(Failure) in try start("rebalance", [:], invocation) }),
        Command(
            path: ["ops", "list"], summary: "operations under way and the last that ended",
            flags: [.toggle("open", "only those under way")],
            examples: ["ops list --dir /tmp/rk", "ops list --open --dir /tmp/rk -o json"],
            run: listOperations),
        Command(
            path: ["ops", "show"], summary: "one operation: step, progress, reason, outcome",
            positionals: [Positional(name: "ID", kind: .operation)],
            examples: ["ops show 7 --dir /tmp/rk"],
            run: showOperation),
        Command(
            path: ["ops", "watch"], summary: "wait until an operation has ended",
            positionals: [Positional(name: "ID", kind: .operation)],
            examples: ["ops watch 7 --dir /tmp/rk"],
            run: watchOperation),
        Command(
            path: ["ops", "cancel"], summary: "stop an operation and take back what it did",
            details: "Past the point of no return it ends as done. A proposal is dropped.",
            positionals: [Positional(name: "ID", kind: .operation)], flags: waitFlags,
            examples: ["ops cancel 7 --dir /tmp/rk"], run: cancelOperation),
        Command(
            path: ["ops", "pause"], summary: "hold an operation where it is",
            details: "It stays so over restarts of the controller, until: kvctl ops resume ID",
            positionals: [Positional(name: "ID", kind: .operation)],
            examples: ["ops pause 7 --dir /tmp/rk"], run: pauseOperation),
        Command(
            path: ["ops", "resume"], summary: "let a paused operation go on",
            positionals: [Positional(name: "ID", kind: .operation)], flags: waitFlags,
            examples: ["ops resume 7 --dir /tmp/rk"], run: resumeOperation),
        Command(
            path: ["ops", "reverse"], summary: "take back what an operation did, ended or not",
            details: """
                One under way is cancelled; a move that is done becomes a new operation that moves \
                back.
                """,
            positionals: [Positional(name: "ID", kind: .operation)], flags: waitFlags,
            examples: ["ops reverse 7 --wait --dir /tmp/rk"], run: reverseOperation),
        Command(
            path: ["why"], summary: "what was decided or refused, and on which grounds",
            positionals: [
                Positional(name: "node|group|shard|op", isRequired: false),
                Positional(name: "NAME|ID", isRequired: false),
            ],
            flags: [.option("limit", "N", "decisions shown, the newest; 50 unless told")],
            examples: [
                "why --dir /tmp/rk", "why node node-2 --dir /tmp/rk", "why group 1 --dir /tmp/rk",
                "why shard 3 --dir /tmp/rk", "why op 7 --dir /tmp/rk -o json",
            ],
            run: why),
        Command(
            path: ["doctor"], summary: "one verdict, then everything that wants attention",
            details: "Exits 5 unless the verdict is healthy; notices leave it so.",
            examples: ["doctor --dir /tmp/rk"],
            run: doctor),
    ]

    // MARK: Starting

    private static func replace(_ invocation: Invocation) throws(Failure) -> ExitCode {
        var arguments: [String: JSONValue] = [:]
        switch (invocation.argument(0), invocation.string("group"), invocation.string("replica")) {
        case (let node?, nil, nil): arguments["node"] = .string(node)
        case (nil, .some, let node?):
            arguments["node"] = .string(node)
            if let group = try invocation.int("group", in: 1...Int(UInt32.max)) {
                arguments["group"] = .integer(Int64(group))
            }
        default:
            throw invocation.usage("say either NODE, or --group GROUP --replica NODE")
        }
        if let spare = invocation.string("with") { arguments["with"] = .string(spare) }
        return try start("replace", arguments, invocation)
    }

    private static func addReplica(_ invocation: Invocation) throws(Failure) -> ExitCode {
        var arguments = ["group": try number(invocation.positionals[0], "GROUP", invocation)]
        if let node = invocation.string("to") { arguments["node"] = .string(node) }
        return try start("replica.add", arguments, invocation)
    }

    private static func drain(_ invocation: Invocation) throws(Failure) -> ExitCode {
        let node = invocation.positionals[0]
        guard invocation.has("end") else {
            return try start("drain", ["node": .string(node)], invocation)
        }
        guard !invocation.has("dry-run") else {
            throw invocation.usage("--end has no plan: it only lets the node hold replicas again")
        }
        let answer = try Cluster(invocation).call("drain.end", ["node": .string(node)])
        Terminal.say("\(node) may hold replicas again")
        if invocation.wantsJSON { Terminal.data(answer.encoded(pretty: true)) }
        return .ok
    }

    private static func transfer(_ invocation: Invocation) throws(Failure) -> ExitCode {
        let group = try number(invocation.positionals[0], "GROUP", invocation)
        return try start(
            "transfer", ["group": group, "node": .string(invocation.positionals[1])], invocation)
    }

    private static func cancelOperation(_ invocation: Invocation) throws(Failure) -> ExitCode {
        let id = try number(invocation.positionals[0], "ID", invocation)
        return try start("ops.cancel", ["operation": id], invocation, wanted: "cancelled")
    }

    private static func pauseOperation(_ invocation: Invocation) throws(Failure) -> ExitCode {
        let id = try number(invocation.positionals[0], "ID", invocation)
        let answer = try Cluster(invocation).call("ops.pause", ["operation": id])
        return finish(answer["operation"], invocation, succeeds: true)
    }

    private static func resumeOperation(_ invocation: Invocation) throws(Failure) -> ExitCode {
        let id = try number(invocation.positionals[0], "ID", invocation)
        return try start("ops.resume", ["operation": id], invocation)
    }

    private static func reverseOperation(_ invocation: Invocation) throws(Failure) -> ExitCode {
        let id = try number(invocation.positionals[0], "ID", invocation)
        return try start("ops.reverse", ["operation": id], invocation, wanted: nil)
    }

    // MARK: Looking

    private static func listOperations(_ invocation: Invocation) throws(Failure) -> ExitCode {
        var operations = try Cluster(invocation).call("ops.list")["operations"].elements
        if invocation.has("open") { operations.removeAll { $0["finished"].bool == true } }
        if invocation.wantsJSON {
            let json: JSONValue = ["operations": .array(operations)]
            Terminal.data(json.encoded(pretty: true))
        } else {
            for line in OperationReport.list(operations, Palette(invocation)) {
                Terminal.data(line)
            }
        }
        return .ok
    }

    private static func showOperation(_ invocation: Invocation) throws(Failure) -> ExitCode {
        let id = try number(invocation.positionals[0], "ID", invocation)
        let operation = try Cluster(invocation).call("ops.show", ["operation": id])["operation"]
        return finish(operation, invocation, succeeds: true)
    }

    private static func watchOperation(_ invocation: Invocation) throws(Failure) -> ExitCode {
        let id = try number(invocation.positionals[0], "ID", invocation).int ?? 0
        let end = try OperationWatch(Cluster(invocation), id).run()
        return finish(end, invocation, succeeds: end["step"].string == "done")
    }

    private static func why(_ invocation: Invocation) throws(Failure) -> ExitCode {
        var arguments: [String: JSONValue] = [:]
        switch (invocation.argument(0), invocation.argument(1)) {
        case (nil, _): break
        case ("node", let name?): arguments["node"] = .string(name)
        case ("group", let id?): arguments["group"] = try number(id, "group", invocation)
        case ("shard", let id?): arguments["shard"] = try number(id, "shard", invocation)
        case ("op", let id?): arguments["operation"] = try number(id, "operation", invocation)
        default:
            throw invocation.usage("say: why node NAME, why group ID, why shard ID or why op ID")
        }
        if let limit = try invocation.int("limit", in: 1...1_000) {
            arguments["limit"] = .integer(Int64(limit))
        }
        return try show("why", .object(arguments), invocation) {
            OperationReport.decisions($0["decisions"].elements, $1)
        }
    }

    private static func doctor(_ invocation: Invocation) throws(Failure) -> ExitCode {
        let result = try Cluster(invocation).call("doctor")
        if invocation.wantsJSON {
            Terminal.data(result.encoded(pretty: true))
        } else {
            for line in OperationReport.findings(result, Palette(invocation)) {
                Terminal.data(line)
            }
        }
        return result["verdict"].string == "healthy" ? .ok : .unhealthy
    }
}
