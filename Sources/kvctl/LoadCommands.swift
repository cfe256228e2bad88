// `top`: where the load is.

import Glibc
import OperatorClient

extension Command {
    static let loadCommands: [Command] = [
        Command(
            path: ["top"], summary: "the busiest groups and shards",
            details: """
                Requests per second as the groups' leaders counted them over the last seconds. On a \
                terminal it is
                redrawn until Ctrl-C; elsewhere, with --once and with -o json it is shown once.
                """,
            flags: [
                .toggle("once", "show it once"),
                .option("limit", "N", "groups and shards shown, 10 of each unless told"),
                .option("interval", "TIME", "between two looks, 1s unless told"),
            ],
            examples: ["top --dir /tmp/rk", "top --once --limit 3 --dir /tmp/rk -o json"],
            run: top)
    ]

    private static func top(_ invocation: Invocation) throws(Failure) -> ExitCode {
        let limit = try invocation.int("limit", in: 1...1_000) ?? 10
        let interval = try invocation.seconds("interval") ?? 1
        let arguments: JSONValue = ["limit": .integer(Int64(limit))]
        guard Terminal.outputIsTTY, !invocation.has("once"), !invocation.wantsJSON else {
            return try show("top", arguments, invocation) { LoadReport.lines($0, $1) }
        }
        let cluster = try Cluster(invocation)
        let palette = Palette(invocation)
        var answer = try cluster.call("top", arguments)
        var trouble = ""
        let signals = SignalWatch()
        // Another screen without a cursor, so that what was there before comes back.
        Terminal.data("\u{1B}[?1049h\u{1B}[?25l", end: "")
        defer { Terminal.data("\u{1B}[?25h\u{1B}[?1049l", end: "") }
        repeat {
            let lines = LoadReport.lines(answer, palette) + [""]
            Terminal.redraw(lines + [palette.strong("Ctrl-C ends") + trouble])
            if signals.waitForStop(milliseconds: Int(interval * 1000)) { return .ok }
            do throws(Failure) {
                answer = try cluster.call("top", arguments)
                trouble = ""
            } catch {
                trouble = "  " + palette.bad("not new: \(error.message)")
            }
        } while true
    }
}

/// The load of groups and shards as lines of text.
enum LoadReport {
    static func lines(_ top: JSONValue, _ palette: Palette) -> [String] {
        groups(top["groups"].elements, palette) + [""] + shards(top["shards"].elements, palette)
    }

    private static func groups(_ groups: [JSONValue], _ palette: Palette) -> [String] {
        var table = TextTable([
            .number("GROUP"), .text("LEADER"), .number("OPS/S"), .number("READS/S"),
            .number("WRITES/S"), .number("SHARDS"), .number("RECORDS"), .number("SIZE"),
        ])
        for group in groups {
            table.add(
                [
                    group["id"].text, group["leader"].string ?? palette.bad("none"),
                    operations(group), Quantity.count(group["reads"].int),
                    Quantity.count(group["writes"].int), group["shards"].text,
                    Quantity.count(group["records"].int), Quantity.bytes(group["bytes"].int),
                ])
        }
        return table.lines(palette)
    }

    private static func shards(_ shards: [JSONValue], _ palette: Palette) -> [String] {
        guard !shards.isEmpty else { return ["no shard gets requests"] }
        var table = TextTable([
            .number("SHARD"), .text("TABLE"), .text("FROM"), .text("TO"), .number("GROUP"),
            .number("OPS/S"), .number("READS/S"), .number("WRITES/S"), .number("RECORDS"),
            .number("SIZE"), .text("HOTTEST KEY"),
        ])
        for shard in shards {
            let hottest = shard["hottest"].string.map {
                "\($0) (\(shard["hottestPercent"].int ?? 0) %)"
            }
            let start = shard["start"].text
            table.add(
                [
                    shard["id"].text, shard["table"].text, start.isEmpty ? "(first)" : start,
                    shard["end"].string ?? "(last)", shard["group"].text, operations(shard),
                    Quantity.count(shard["reads"].int), Quantity.count(shard["writes"].int),
                    Quantity.count(shard["records"].int), Quantity.bytes(shard["bytes"].int),
                    hottest ?? "-",
                ])
        }
        return table.lines(palette)
    }

    /// Reads and writes per second; `-` where nobody reported them.
    static func operations(_ entry: JSONValue) -> String {
        guard let reads = entry["reads"].int, let writes = entry["writes"].int else { return "-" }
        return Quantity.count(reads + writes)
    }
}
