// Waiting for an operation's end, with a progress bar.

import Glibc
import OperatorClient

/// Polls an operation until it has ended. Polling changes nothing, so the watcher may go at any time.
struct OperationWatch {
    private static let intervalMilliseconds = 200
    /// A controller that restarts is waited for this long.
    private static let absenceSecondsMax = 60.0
    private static let barWidth = 20
    /// A shorter bar tells less than what stands beside it.
    private static let barWidthMin = 3

    let cluster: Cluster
    let id: Int

    init(_ cluster: Cluster, _ id: Int) {
        self.cluster = cluster
        self.id = id
    }

    /// The operation as it ended. Ctrl-C ends the watching, not the operation.
    func run() throws(Failure) -> JSONValue {
        let signals = SignalWatch()
        var lastWords = ""
        var absentSince: UInt64?
        while true {
            let now = Deadline.now()
            do throws(Failure) {
                let answer = try cluster.call("ops.show", ["operation": .integer(Int64(id))])
                let operation = answer["operation"]
                absentSince = nil
                let words = OperationReport.words(operation)
                if operation["finished"].bool == true {
                    if Terminal.errorIsTTY { Terminal.redrawMessage("") }
                    return operation
                }
                if Terminal.errorIsTTY {
                    Terminal.redrawMessage(line(operation))
                } else if words != lastWords {
                    Terminal.say(line(operation))
                }
                lastWords = words
            } catch {
                guard
                    error.code == .unreachable || error.code == .unhealthy
                        || error.code == .timeout
                else { throw error }
                let since = absentSince ?? now
                absentSince = since
                guard Double(now - since) / 1e9 < Self.absenceSecondsMax else { throw error }
                if Terminal.errorIsTTY {
                    Terminal.redrawMessage("operation \(id): waits for a controller")
                }
            }
            if signals.waitForStop(milliseconds: Self.intervalMilliseconds) {
                if Terminal.errorIsTTY { Terminal.redrawMessage("") }
                throw Failure(
                    .interrupted, "operation \(id) goes on; to see its end: kvctl ops watch \(id)")
            }
        }
    }

    /// `operation 7: copying [##########..........] 52 %  1.2 GiB of 2.3 GiB, 80.0 MiB/s, 14 s left`.
    /// Where that is too long for the terminal the bar gives way, and then the note at the end is cut.
    private func line(_ operation: JSONValue) -> String {
        let percent = operation["percent"].int ?? 0
        let head = "operation \(id): \(OperationReport.words(operation)) "
        var line = "\(percent) %"
        if let done = operation["bytesDone"].int, let total = operation["bytesTotal"].int,
            total > 0
        {
            line += "  \(Quantity.bytes(done)) of \(Quantity.bytes(total))"
            if Terminal.errorIsTTY, let text = pace(operation, left: total - done) {
                line += ", " + text
            }
        }
        if let note = operation["note"].string, !note.isEmpty { line += "  (\(note))" }
        var room = Self.barWidth
        if Terminal.errorIsTTY {
            let taken = TextTable.width(head + line) + "[] ".count
            room = min(room, Terminal.messageColumns - taken)
        }
        return head + (room < Self.barWidthMin ? "" : bar(percent, width: room)) + line
    }

    private func bar(_ percent: Int, width: Int) -> String {
        let filled = max(0, min(width, percent * width / 100))
        return "[" + String(repeating: "#", count: filled)
            + String(repeating: ".", count: width - filled) + "] "
    }

    /// Rate and time left, or why there is none. Without a rate there is nothing honest to say about
    /// the end, and in steps that copy nothing there is nothing to say.
    private func pace(_ operation: JSONValue, left: Int) -> String? {
        if operation["paused"].bool == true { return "paused" }
        let copies = ["copying", "catchingUp", "moving"].contains(operation["step"].text)
        guard copies, left > 0 else { return nil }
        let isThrottled = operation["throttled"].bool == true
        guard let pace = OperationReport.pace(operation) else {
            return isThrottled ? "throttled" : "time left unknown"
        }
        return isThrottled ? "\(pace.rate), throttled" : "\(pace.rate), \(pace.left)"
    }
}
