// Operations and decisions as lines of text.

import ControllerCore
import Glibc
import OperatorClient

enum OperationReport {
    static func list(_ operations: [JSONValue], _ palette: Palette) -> [String] {
        guard !operations.isEmpty else { return ["no operations"] }
        var table = TextTable([
            .number("ID"), .text("KIND"), .text("WHAT"), .text("STEP"), .number("DONE"),
            .text("BY"), .text("STARTED"), .text("NOTE"),
        ])
        for entry in operations {
            let note = entry["finished"].bool == true ? entry["outcome"] : entry["note"]
            let isProposed = entry["step"].string == "proposed"
            table.add(
                [
                    entry["id"].text, kind(entry), subject(entry), step(entry, palette),
                    isProposed || isOver(entry) ? "-" : "\(entry["percent"].int ?? 0) %",
                    entry["origin"].text,
                    time(entry["startedAt"].int), isProposed ? entry["reason"].text : note.text,
                ])
        }
        return table.lines(palette)
    }

    /// Without being done: how far it was is not known any more.
    private static func isOver(_ entry: JSONValue) -> Bool {
        entry["finished"].bool == true && entry["step"].string != "done"
    }

    static func details(_ entry: JSONValue, _ palette: Palette) -> [String] {
        guard let id = entry["id"].int else { return [] }
        var lines = [
            "operation \(id): \(kind(entry)) \(subject(entry))",
            "  step     \(step(entry, palette))"
                + (isOver(entry) ? "" : " (\(entry["percent"].int ?? 0) %)"),
            "  reason   \(entry["origin"].text): \(entry["reason"].text)",
            "  started  \(time(entry["startedAt"].int))",
        ]
        if let end = entry["endedAt"].int { lines.append("  ended    \(time(end))") }
        if let total = entry["bytesTotal"].int, total > 0 || (entry["bytesDone"].int ?? 0) > 0 {
            let done = entry["bytesDone"].int
            lines.append(
                "  copied   \(Quantity.bytes(done))"
                    + (total > 0 && done != total ? " of \(Quantity.bytes(total))" : "")
                    + (entry["recordsDone"].int.map { ", \(Quantity.grouped($0)) records" } ?? "")
                    + (entry["lag"].int.map { ", \(Quantity.count($0)) entries behind" } ?? "")
                    + (entry["throttled"].bool == true && entry["paused"].bool != true
                        ? ", rests for the sake of requests" : ""))
        }
        if let pace = pace(entry) { lines.append("  pace     \(pace.rate), \(pace.left)") }
        if let note = entry["note"].string, !note.isEmpty {
            let isOfBackup = ["backup", "verifyBackup"].contains(entry["kind"].string)
            lines.append("  \(isOfBackup ? "now  " : "waits")    \(note)")
        }
        if let outcome = entry["outcome"].string, !outcome.isEmpty {
            lines.append((entry["finished"].bool == true ? "  outcome  " : "  so far   ") + outcome)
        }
        if let group = entry["formerCopy"]["group"].int {
            lines.append("  source   " + formerCopy(entry["formerCopy"], of: group))
        }
        if entry["step"].string == "proposed" {
            lines.append("  to do it kvctl apply \(id); to drop it: kvctl ops cancel \(id)")
        }
        return lines
    }

    /// `80.0 MiB/s` and `14 s left`, while a copy goes on.
    static func pace(_ entry: JSONValue) -> (rate: String, left: String)? {
        guard let rate = entry["bytesPerSecond"].int else { return nil }
        let left = entry["secondsLeft"].int.map {
            "\(Quantity.duration(seconds: Double($0))) left"
        }
        return ("\(Quantity.bytes(rate))/s", left ?? "time left unknown")
    }

    /// `group 1 keeps its copy for 42 s more`.
    private static func formerCopy(_ copy: JSONValue, of group: Int) -> String {
        let note = copy["note"].text
        if !note.isEmpty { return "group \(group) still has its copy: \(note)" }
        let left = (copy["until"].int ?? 0) / 1_000 - Glibc.time(nil)
        return left > 0
            ? "group \(group) keeps its copy for \(Quantity.duration(seconds: Double(left))) more"
            : "group \(group) deletes its copy now"
    }

    /// What an operation works on: `group 1: node-2 to node-4`, `shard 3 of stocks: from group 1 to 2`.
    static func subject(_ entry: JSONValue) -> String {
        if entry["kind"].string == "rebalance" { return "the cluster" }
        if ["backup", "restore"].contains(entry["kind"].string) { return "the metadata" }
        if entry["kind"].string == "verifyBackup" { return "the backup" }
        let work = entry["work"]
        guard let shard = work["shard"].int else {
            let places = [entry["from"].string, entry["to"].string].compactMap { $0 }
                .joined(separator: " to ")
            return (entry["group"].int.map { "group \($0): " } ?? "") + places
        }
        var text = "shard \(shard) of \(work["table"].text)"
        if let cut = work["cut"].string { text += " at \(cut)" }
        if let neighbour = work["neighbour"].int { text += " with \(neighbour)" }
        if var target = work["target"].int, var source = work["source"].int {
            // On its way back it goes from its target to its source; it is told as it was asked for.
            if work["turned"].bool == true { swap(&source, &target) }
            let moving = work["moving"].int
            let what =
                entry["kind"].string == "move"
                ? "" : moving.map { "shard \($0) " } ?? "upper half "
            text += ": \(what)from group \(source) to \(target)"
        }
        return text
    }

    private static func kind(_ entry: JSONValue) -> String {
        OperationRecord.Kind.words(for: entry["kind"].text)
    }

    /// The step in words, with color.
    private static func step(_ entry: JSONValue, _ palette: Palette) -> String {
        switch entry["step"].text {
        case "done": palette.good("done")
        case "failed": palette.bad("failed")
        default: palette.warning(words(entry))
        }
    }

    /// The step in words, and whether the operation is held or on its way back.
    static func words(_ entry: JSONValue) -> String {
        let step = OperationRecord.Step.words(for: entry["step"].text)
        if entry["finished"].bool == true { return step }
        if entry["paused"].bool == true { return "paused, \(step)" }
        let isBack = entry["cancelled"].bool == true || entry["work"]["turned"].bool == true
        return isBack ? "taking back, \(step)" : step
    }

    static func decisions(_ entries: [JSONValue], _ palette: Palette) -> [String] {
        guard !entries.isEmpty else { return ["no decisions"] }
        return entries.map { "\(time($0["at"].int))  \($0["text"].text)" }
    }

    /// The verdict, then each finding and what to do about it.
    static func findings(_ examination: JSONValue, _ palette: Palette) -> [String] {
        let findings = examination["findings"].elements
        let notices = findings.count { $0["severity"].string == "notice" }
        let counts = [(findings.count - notices, "finding"), (notices, "notice")]
            .filter { $0.0 > 0 }.map { Quantity.of($0.0, $0.1) }
        var lines = [
            palette.state(examination["verdict"].text) + ": "
                + (counts.isEmpty ? "nothing to do" : counts.joined(separator: ", "))
        ]
        for finding in findings {
            let severity = finding["severity"].text
            let colored =
                severity == "critical"
                ? palette.bad(severity)
                : severity == "warning" ? palette.warning(severity) : severity
            lines.append("\(finding["code"].text) \(colored): \(finding["text"].text)")
            lines.append("      \(finding["advice"].text)")
            if let runbook = finding["runbook"].string { lines.append("      see \(runbook)") }
        }
        return lines
    }

    /// Local time of day, with the date when it is another day's.
    static func time(_ milliseconds: Int?) -> String {
        guard let milliseconds, milliseconds > 0 else { return "-" }
        var seconds = time_t(milliseconds / 1000)
        var fields = tm()
        localtime_r(&seconds, &fields)
        var text = [CChar](repeating: 0, count: 32)
        let count = strftime(&text, text.count, "%Y-%m-%d %H:%M:%S", &fields)
        return String(decoding: text[..<count].map { UInt8(bitPattern: $0) }, as: UTF8.self)
    }
}
