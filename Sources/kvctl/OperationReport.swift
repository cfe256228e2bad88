// Operations, plans and decisions as lines of text, and the wait for an operation's end.

import Glibc
import OperatorClient

enum OperationReport {
    static func list(_ operations: [JSONValue], _ palette: Palette) -> [String] {
        guard !operations.isEmpty else { return ["no operations"] }
        var table = TextTable([
            .number("ID"), .text("KIND"), .text("STEP"), .number("GROUP"), .text("FROM"),
            .text("TO"), .number("DONE"), .text("BY"), .text("STARTED"), .text("NOTE"),
        ])
        for entry in operations {
            let note = entry["finished"].bool == true ? entry["outcome"] : entry["note"]
            table.add(
                [
                    entry["id"].text, entry["kind"].text, step(entry, palette),
                    entry["group"].text, entry["from"].text, entry["to"].text,
                    "\(entry["percent"].int ?? 0) %", entry["origin"].text,
                    time(entry["startedAt"].int), note.text,
                ])
        }
        return table.lines(palette)
    }

    static func details(_ entry: JSONValue, _ palette: Palette) -> [String] {
        guard let id = entry["id"].int else { return [] }
        let group = entry["group"].int.map { " in group \($0)" } ?? ""
        let target = entry["to"].string.map { " to \($0)" } ?? ""
        var lines = [
            "operation \(id): \(entry["kind"].text) \(entry["from"].text)\(target)\(group)",
            "  step     \(step(entry, palette)) (\(entry["percent"].int ?? 0) %)",
            "  reason   \(entry["origin"].text): \(entry["reason"].text)",
            "  started  \(time(entry["startedAt"].int))",
        ]
        if let end = entry["endedAt"].int { lines.append("  ended    \(time(end))") }
        if let total = entry["bytesTotal"].int {
            lines.append(
                "  copied   \(Quantity.bytes(entry["bytesDone"].int)) of \(Quantity.bytes(total))"
                    + (entry["lag"].int.map { ", \(Quantity.count($0)) entries behind" } ?? ""))
        }
        if let note = entry["note"].string, !note.isEmpty { lines.append("  waits    \(note)") }
        if let outcome = entry["outcome"].string, !outcome.isEmpty {
            lines.append("  outcome  \(outcome)")
        }
        return lines
    }

    static func plan(_ entries: [JSONValue], _ palette: Palette) -> [String] {
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

    static func decisions(_ entries: [JSONValue], _ palette: Palette) -> [String] {
        guard !entries.isEmpty else { return ["no decisions"] }
        return entries.map { "\(time($0["at"].int))  \($0["text"].text)" }
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

    private static func step(_ entry: JSONValue, _ palette: Palette) -> String {
        switch entry["step"].text {
        case "done": palette.good("done")
        case "failed": palette.bad("failed")
        case let step: palette.warning(step)
        }
    }
}

/// Polls an operation until it has ended. Polling changes nothing, so the watcher may go at any time.
struct OperationWatch {
    private static let interval: UInt32 = 200_000
    /// Samples over which the rate is measured: five seconds.
    private static let samplesMax = 25
    /// A controller that restarts is waited for this long.
    private static let absenceSecondsMax = 60.0

    let cluster: Cluster
    let id: Int

    init(_ cluster: Cluster, _ id: Int) {
        self.cluster = cluster
        self.id = id
    }

    func run() throws(Failure) -> JSONValue {
        var samples: [(at: UInt64, bytes: Int)] = []
        var lastLine = ""
        var absentSince: UInt64?
        while true {
            let now = Deadline.now()
            do throws(Failure) {
                let answer = try cluster.call("ops.show", ["operation": .integer(Int64(id))])
                let operation = answer["operation"]
                absentSince = nil
                if let bytes = operation["bytesDone"].int {
                    samples.append((now, bytes))
                    if samples.count > Self.samplesMax { samples.removeFirst() }
                }
                let line = progress(operation, samples)
                if operation["finished"].bool == true {
                    if Terminal.errorIsTTY { Terminal.write(Array("\r\u{1B}[K".utf8), to: 2) }
                    return operation
                }
                if Terminal.errorIsTTY {
                    Terminal.write(Array("\r\u{1B}[K\(line)".utf8), to: 2)
                } else if operation["step"].text != lastLine {
                    lastLine = operation["step"].text
                    Terminal.say(line)
                }
            } catch {
                guard
                    error.code == .unreachable || error.code == .unhealthy
                        || error.code == .timeout
                else { throw error }
                let since = absentSince ?? now
                absentSince = since
                guard Double(now - since) / 1e9 < Self.absenceSecondsMax else { throw error }
            }
            usleep(Self.interval)
        }
    }

    /// `operation 7 catchingUp [#####.....] 52 %  1.2 GiB of 2.3 GiB, 80.0 MiB/s, 14 s left`.
    private func progress(_ operation: JSONValue, _ samples: [(at: UInt64, bytes: Int)]) -> String {
        let percent = operation["percent"].int ?? 0
        let filled = max(0, min(20, percent / 5))
        var line =
            "operation \(id) \(operation["step"].text) ["
            + String(repeating: "#", count: filled) + String(repeating: ".", count: 20 - filled)
            + "] \(percent) %"
        if let done = operation["bytesDone"].int, let total = operation["bytesTotal"].int,
            total > 0
        {
            line += "  \(Quantity.bytes(done)) of \(Quantity.bytes(total))"
            // Without a rate there is nothing honest to say about the end.
            if let first = samples.first, let last = samples.last, last.bytes > first.bytes {
                let rate = Double(last.bytes - first.bytes) / (Double(last.at - first.at) / 1e9)
                line += ", \(Quantity.bytes(Int(rate)))/s"
                line += ", \(Int((Double(max(0, total - done)) / rate).rounded(.up))) s left"
            }
        }
        if let note = operation["note"].string, !note.isEmpty { line += "  (\(note))" }
        return line
    }
}
