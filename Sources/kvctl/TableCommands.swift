// `table`: creating, looking at and dropping tables.

import KVBase
import OperatorClient

extension Command {
    static let tableCommands: [Command] = [
        Command(
            path: ["table", "create"], summary: "create a table",
            details: """
                RANGE tables are cut at keys, so that a range of keys lies together; --split pre-cuts \
                them. HASH
                tables spread their keys evenly over the groups. Bytes of a split key that are no \
                printable ASCII, and
                the backslash, are written \\xNN.
                """,
            positionals: [Positional(name: "NAME")],
            flags: [
                .option(
                    "partition", "KIND", choices: ["range", "hash", "RANGE", "HASH"],
                    "range (default) or hash"),
                .option(
                    "engine", "ENGINE", choices: ["lsm", "btree", "LSM", "BTREE"],
                    "lsm (default; write heavy) or btree (read heavy)"),
                .option(
                    "replicas", "N", "replicas of its groups; the cluster's default unless told"),
                .option("vranges", "N", "virtual ranges of a hash table"),
                .option(
                    "split", "KEY", "start of a further shard of a range table; may be repeated"),
                .toggle("if-missing", "a table of this name is fine"),
            ],
            examples: [
                "table create stocks --dir /tmp/rk",
                "table create users --partition hash --vranges 64 --engine btree --dir /tmp/rk",
                "table create logs --split 2026-04 --split 2026-07 --dir /tmp/rk",
            ],
            run: createTable),
        Command(
            path: ["table", "list"], summary: "all tables", examples: ["table list --dir /tmp/rk"],
            run: listTables),
        Command(
            path: ["table", "describe"], summary: "one table and its shards",
            positionals: [Positional(name: "NAME", kind: .table)],
            examples: ["table describe stocks --dir /tmp/rk -o json"], run: describeTable),
        Command(
            path: ["table", "drop"], summary: "drop a table with all its records",
            details: "Asks for the table's name on a terminal; elsewhere --yes is needed.",
            positionals: [Positional(name: "NAME", kind: .table)],
            flags: [.toggle("yes", "do not ask")],
            examples: ["table drop stocks --dir /tmp/rk", "table drop stocks --yes --dir /tmp/rk"],
            run: dropTable),
    ]

    private static func createTable(_ invocation: Invocation) throws(Failure) -> ExitCode {
        let name = invocation.positionals[0]
        let splits = invocation.strings("split")
        let isHash = invocation.string("partition")?.lowercased() == "hash"
        let ranges = try invocation.int("vranges", in: 1...Limits.initialShardsMax)
        if isHash, !splits.isEmpty {
            throw invocation.usage("--split is for range tables; --vranges cuts a hash table")
        }
        if !isHash, ranges != nil {
            throw invocation.usage("--vranges is for --partition hash; --split cuts a range table")
        }
        var arguments: [String: JSONValue] = [
            "name": .string(name), "partitioning": isHash ? "HASH" : "RANGE",
        ]
        if let ranges { arguments["virtualRanges"] = .integer(Int64(ranges)) }
        if let engine = invocation.string("engine") {
            arguments["engine"] = .string(engine.uppercased())
        }
        if let replicas = try invocation.int("replicas", in: 1...5) {
            arguments["replicas"] = .integer(Int64(replicas))
        }
        if !splits.isEmpty { arguments["splits"] = .array(splits.map { .string($0) }) }
        if invocation.has("if-missing") { arguments["ifMissing"] = true }
        let result = try Cluster(invocation).call("table.create", .object(arguments))
        if invocation.wantsJSON {
            Terminal.data(result.encoded(pretty: true))
        } else {
            for line in StatusReport.tables([result["table"]], Palette(invocation)) {
                Terminal.data(line)
            }
        }
        return .ok
    }

    private static func listTables(_ invocation: Invocation) throws(Failure) -> ExitCode {
        try show("tables", [:], invocation) { StatusReport.tables($0["tables"].elements, $1) }
    }

    private static func describeTable(_ invocation: Invocation) throws(Failure) -> ExitCode {
        let arguments: JSONValue = ["name": .string(invocation.positionals[0])]
        return try show("table.describe", arguments, invocation) { result, palette in
            // The shards take the place of their count in this one answer.
            var fields = result
            let shards = result["shards"].elements
            if case .object(var object) = result, !shards.isEmpty {
                object["shards"] = .integer(Int64(shards.count))
                fields = .object(object)
            }
            return StatusReport.tables([fields], palette) + [""]
                + StatusReport.shards(shards, palette)
        }
    }

    private static func dropTable(_ invocation: Invocation) throws(Failure) -> ExitCode {
        let name = invocation.positionals[0]
        let cluster = try Cluster(invocation)
        if !invocation.has("yes") {
            let table = try cluster.call("table.describe", ["name": .string(name)])
            let impact =
                "dropping table '\(name)' deletes about \(Quantity.count(table["records"].int))"
                + " records (\(Quantity.bytes(table["bytes"].int)))"
            try confirm(impact, word: name)
        }
        _ = try cluster.call("table.drop", ["name": .string(name)])
        Terminal.say("dropped table '\(name)'")
        if invocation.wantsJSON { Terminal.data("{}") }
        return .ok
    }

    /// Asks before something is destroyed; refuses where nobody can be asked.
    static func confirm(_ impact: String, word: String) throws(Failure) {
        guard Terminal.inputIsTTY else {
            throw Failure(.refused, "\(impact): this needs --yes where nobody can be asked")
        }
        guard Terminal.confirms(impact, word: word) else {
            throw Failure(.refused, "not confirmed: nothing was done")
        }
    }
}
