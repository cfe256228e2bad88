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
        var rate = CopyRate()
        var lastWords = ""
        var absentSince: UInt64?
        while true {
            let now = Deadline.now()
            do throws(Failure) {
                let answer = try cluster.call("ops.show", ["operation": .integer(Int64(id))])
                let operation = answer["operation"]
                absentSince = nil
                let words = OperationReport.words(operation)
                if words != lastWords { rate = CopyRate() }
                if let bytes = operation["bytesDone"].int { rate.add(bytes: bytes, at: now) }
                if operation["finished"].bool == true {
                    if Terminal.errorIsTTY { Terminal.redrawMessage("") }
                    return operation
                }
                if Terminal.errorIsTTY {
                    Terminal.redrawMessage(line(operation, rate.bytesPerSecond))
                } else if words != lastWords {
                    Terminal.say(line(operation, nil))
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
    private func line(_ operation: JSONValue, _ rate: Double?) -> String {
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
            if Terminal.errorIsTTY, let text = pace(operation, rate, left: total - done) {
                line += ", " + text
            }
        }
        if let note = operation["note"].string, !note.isEmpty { line += "  (\(note))" }
        return line
    }

    /// Rate and time left, or why there is none. Without a rate there is nothing honest to say about
    /// the end, and in steps that copy nothing there is nothing to say.
    private func pace(_ operation: JSONValue, _ rate: Double?, left: Int) -> String? {
        if operation["paused"].bool == true { return "paused" }
        let copies = ["copying", "catchingUp", "moving"].contains(operation["step"].text)
        guard copies, left > 0 else { return nil }
        let isThrottled = operation["throttled"].bool == true
        guard let rate else { return isThrottled ? "throttled" : "time left unknown" }
        let pace = "\(Quantity.bytes(Int(rate)))/s"
        let seconds = (Double(left) / rate).rounded(.up)
        return isThrottled
            ? "\(pace), throttled" : "\(pace), \(Quantity.duration(seconds: seconds)) left"
    }
}

/// The pace of a copy over the last ten seconds.
struct CopyRate {
    private static let window: UInt64 = 10_000_000_000
    /// A shorter look tells nothing.
    private static let spanMin: UInt64 = 900_000_000

    private var samples: [(at: UInt64, bytes: Int)] = []

    /// `at`: nanoseconds on a clock that never goes back.
    mutating func add(bytes: Int, at: UInt64) {
        // A copy that begins anew has no pace yet.
        if let last = samples.last, bytes < last.bytes { samples = [] }
        samples.append((at, bytes))
        while let first = samples.first, at - first.at > Self.window { samples.removeFirst() }
    }

    /// Nil while nothing was copied, or it was not watched long enough.
    var bytesPerSecond: Double? {
        guard let first = samples.first, let last = samples.last, last.bytes > first.bytes,
            last.at - first.at >= Self.spanMin
        else { return nil }
        return Double(last.bytes - first.bytes) / (Double(last.at - first.at) / 1e9)
    }
}
