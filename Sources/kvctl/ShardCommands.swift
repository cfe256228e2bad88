// `split`, `move`, `merge`, `rebalance`: where shards begin and end, and which group has them.

import KVBase
import OperatorClient

extension Command {
    static let shardCommands: [Command] = [
        Command(
            path: ["split"], summary: "cut a shard in two and move one half",
            details: """
                Without --at the key halves the load, or the bytes where there is little load. \
                Without --shard it is
                the shard that holds the key of --at, or else the busiest, or else the largest. \
                Without --to the
                controller chooses the group of the half that moves. Reads and writes go on all the \
                while.
                Bytes of a key that are no printable ASCII, and the backslash, are written \\xNN. A hash \
                table is cut
                between virtual ranges: --at hash:N
                """,
            positionals: [Positional(name: "TABLE", kind: .table)],
            flags: [
                .option("at", "KEY", "key at which the upper half begins"),
                .option("shard", "ID", "the shard to cut"),
                .option(
                    "to", "GROUP|new|none",
                    "the group that takes one half; new: one formed for it; none: both stay"),
            ] + planFlags,
            examples: [
                "split stocks --dir /tmp/rk", "split stocks --at M --to new --dir /tmp/rk",
                "split stocks --at 'user\\x00\\xFF' --to none --dir /tmp/rk",
                "split users --at hash:128 --dir /tmp/rk",
                "split stocks --dry-run -o json --dir /tmp/rk > plan.json",
            ],
            run: split),
        Command(
            path: ["move"], summary: "move a shard to another group",
            details: "Without --to the controller chooses. Reads and writes go on all the while.",
            positionals: [Positional(name: "SHARD", kind: .shard)],
            flags: [
                .option("to", "GROUP|new", "the group that takes it; new: one formed for it")
            ] + planFlags,
            examples: [
                "move 3 --dir /tmp/rk", "move 3 --to 2 --wait --dir /tmp/rk",
                "move 3 --to new --dry-run --dir /tmp/rk",
            ],
            run: move),
        Command(
            path: ["merge"], summary: "join a shard with its right neighbour",
            details: "A neighbour in another group moves to the shard's group first.",
            positionals: [Positional(name: "SHARD", kind: .shard)], flags: planFlags,
            examples: ["merge 3 --dir /tmp/rk", "merge 3 --dry-run --dir /tmp/rk"], run: merge),
        Command(
            path: ["apply"], summary: "do what a plan says, unless the cluster is not as it was",
            details: """
                A plan is what --dry-run -o json printed: a file, or - for standard input. A number is \
                the operation
                that a rule proposed, as: kvctl ops list; --dry-run shows what that would do now.
                """,
            positionals: [Positional(name: "PLAN|-|ID")],
            flags: [.toggle("dry-run", "show what a proposal would do, and do nothing")]
                + waitFlags,
            examples: [
                "apply plan.json --dir /tmp/rk",
                "split stocks --dry-run -o json --dir /tmp/rk | kvctl apply - --dir /tmp/rk",
                "apply 12 --dry-run --dir /tmp/rk", "apply 12 --wait --dir /tmp/rk",
            ],
            run: apply),
    ]

    private static func split(_ invocation: Invocation) throws(Failure) -> ExitCode {
        var arguments: [String: JSONValue] = ["table": .string(invocation.positionals[0])]
        if let key = invocation.string("at") {
            try checkKey(key, invocation)
            arguments["at"] = .string(key)
        }
        if let shard = invocation.string("shard") {
            arguments["shard"] = try number(shard, "--shard", invocation)
        }
        arguments["to"] = try target(invocation, words: ["new", "none"])
        return try start("split", arguments, invocation)
    }

    private static func move(_ invocation: Invocation) throws(Failure) -> ExitCode {
        var arguments = [
            "shard": try number(invocation.positionals[0], "SHARD", invocation)
        ]
        arguments["to"] = try target(invocation, words: ["new"])
        return try start("move", arguments, invocation)
    }

    private static func merge(_ invocation: Invocation) throws(Failure) -> ExitCode {
        let shard = try number(invocation.positionals[0], "SHARD", invocation)
        return try start("merge", ["shard": shard], invocation)
    }

    private static func apply(_ invocation: Invocation) throws(Failure) -> ExitCode {
        let source = invocation.positionals[0]
        guard UInt32(source) == nil else {
            let id = try number(source, "ID", invocation)
            return try start("ops.apply", ["operation": id], invocation)
        }
        guard !invocation.has("dry-run") else {
            throw invocation.usage(
                "--dry-run is for the number of a proposal: this is a plan already")
        }
        let plan = try PlanFile.read(source)
        return try start("apply", ["plan": plan], invocation)
    }

    /// The value of `--to`; nil when it was not given.
    private static func target(
        _ invocation: Invocation, words: [String]
    ) throws(Failure) -> JSONValue? {
        guard let text = invocation.string("to") else { return nil }
        guard words.contains(text) || UInt32(text).map({ $0 > 0 }) == true else {
            throw invocation.usage(
                "--to is the number of a group or \(words.joined(separator: " or ")), not '\(text)'"
            )
        }
        return .string(text)
    }

    private static func checkKey(_ text: String, _ invocation: Invocation) throws(Failure) {
        var rest = Array(text.utf8)[...]
        while let byte = rest.popFirst() {
            guard byte == UInt8(ascii: "\\") else { continue }
            let isHexadecimal = rest.dropFirst().prefix(2).allSatisfy {
                Character(Unicode.Scalar($0)).isHexDigit
            }
            guard rest.count >= 3, rest.first == UInt8(ascii: "x"), isHexadecimal else {
                throw invocation.usage(
                    "--at '\(text)': after a backslash comes xNN; the backslash itself is \\x5C")
            }
            rest = rest.dropFirst(3)
        }
    }
}
