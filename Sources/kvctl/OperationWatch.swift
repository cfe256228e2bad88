// Waiting for an operation's end, with a progress bar.

import Glibc
import OperatorClient

/// Polls an operation until it has ended. Polling changes nothing, so the watcher may go at any time.
struct OperationWatch {
    private static let interval: UInt32 = 200_000
    /// A controller that restarts is waited for this long.
    private static let absenceSecondsMax = 60.0
    private static let barWidth = 20

    let cluster: Cluster
    let id: Int

    init(_ cluster: Cluster, _ id: Int) {
        self.cluster = cluster
        self.id = id
    }

    /// The operation as it ended.
    func run() throws(Failure) -> JSONValue {
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
            usleep(Self.interval)
        }
    }

    /// `operation 7: copying [##########..........] 52 %  1.2 GiB of 2.3 GiB, 80.0 MiB/s, 14 s left`.
    private func line(_ operation: JSONValue) -> String {
        let percent = operation["percent"].int ?? 0
        let filled = max(0, min(Self.barWidth, percent * Self.barWidth / 100))
        var line =
            "operation \(id): \(OperationReport.words(operation)) ["
            + String(repeating: "#", count: filled)
            + String(repeating: ".", count: Self.barWidth - filled) + "] \(percent) %"
        if let done = operation["bytesDone"].int, let total = operation["bytesTotal"].int,
            total > 0
        {
            line += "  \(Quantity.bytes(done)) of \(Quantity.bytes(total))"
            if Terminal.errorIsTTY, let text = pace(operation, left: total - done) {
                line += ", " + text
            }
        }
        if let note = operation["note"].string, !note.isEmpty { line += "  (\(note))" }
        return line
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
