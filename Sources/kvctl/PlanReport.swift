// Plans as lines of text.

import OperatorClient

enum PlanReport {
    /// Lines about a plan document.
    static func lines(_ plan: JSONValue, _ palette: Palette) -> [String] {
        var lines = [palette.strong("plan") + ": " + plan["summary"].text]
        if let grounds = plan["grounds"].string, !grounds.isEmpty {
            lines.append("  because  \(grounds)")
        }
        lines += copies(plan)
        if let pause = plan["pause"].string { lines.append("  pause    \(pause)") }
        for (number, step) in plan["steps"].elements.enumerated() {
            lines.append("  \(number == 0 ? "steps  " : "       ")  \(number + 1). \(step.text)")
        }
        for section in [
            replacements(plan["replacements"].elements, palette),
            forecasts("GROUP", plan["groups"].elements, palette),
            forecasts("NODE", plan["nodes"].elements, palette),
        ] where section.count > 1 {
            lines.append("")
            lines += section
        }
        let skipped = plan["skipped"].elements
        if !skipped.isEmpty { lines += ["", palette.strong("NOT TAKEN")] }
        for entry in skipped {
            let what = entry["group"].int.map { "group \($0)" } ?? entry["node"].text
            lines.append("\(what): \(entry["reason"].text)")
        }
        return lines
    }

    /// What is copied, and about how long that takes.
    private static func copies(_ plan: JSONValue) -> [String] {
        guard let bytes = plan["bytes"].int else {
            return ["  copies   how much is not known: it was not counted yet"]
        }
        guard bytes > 0 else { return ["  copies   nothing"] }
        let records = plan["records"].int.map { ", \(Quantity.grouped($0)) records" } ?? ""
        let time = plan["seconds"].int.map {
            "about \(Quantity.duration(seconds: Double($0))), at the pace of the last copy"
        }
        return [
            "  copies   \(Quantity.bytes(bytes))\(records)",
            "  takes    " + (time ?? "not known: no copy was timed yet"),
        ]
    }

    private static func replacements(_ entries: [JSONValue], _ palette: Palette) -> [String] {
        var table = TextTable([
            .number("GROUP"), .text("FROM"), .text("TO"), .number("DISK"), .number("TO COPY"),
            .number("FREE THERE"), .text("NOT TAKEN"),
        ])
        for entry in entries {
            let skipped = entry["skipped"].elements.map {
                "\($0["node"].text): \($0["reason"].text)"
            }
            table.add(
                [
                    entry["group"].text, entry["from"].text, entry["to"].text, entry["disk"].text,
                    Quantity.bytes(entry["bytes"].int), Quantity.bytes(entry["freeBytes"].int),
                    skipped.isEmpty ? "-" : skipped.joined(separator: "; "),
                ])
        }
        return table.lines(palette)
    }

    /// What each group or node has before and after.
    private static func forecasts(
        _ title: String, _ entries: [JSONValue], _ palette: Palette
    ) -> [String] {
        let hasShards = entries.contains { $0["after"]["shards"].int != nil }
        let hasReplicas = entries.contains { $0["after"]["replicas"].int != nil }
        var columns: [TextTable.Column] = [.text(title), .number("OPS/S"), .number("SIZE")]
        if hasShards { columns.append(.number("SHARDS")) }
        if hasReplicas { columns += [.number("REPLICAS"), .number("LEADERS")] }
        var table = TextTable(columns)
        for entry in entries {
            func change(_ field: String, _ words: (Int?) -> String) -> String {
                let before = words(entry["before"][field].int)
                let after = words(entry["after"][field].int)
                return before == after ? after : "\(before) -> \(after)"
            }
            let name = title == "GROUP" ? entry["group"].int.map(String.init) : entry["node"].string
            var cells = [
                name ?? "new", change("operations", Quantity.count),
                change("bytes", Quantity.bytes),
            ]
            if hasShards { cells.append(change("shards", Quantity.count)) }
            if hasReplicas {
                cells += [change("replicas", Quantity.count), change("leaders", Quantity.count)]
            }
            table.add(cells)
        }
        return table.lines(palette)
    }
}
