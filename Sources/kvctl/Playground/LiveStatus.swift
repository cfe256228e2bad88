// The foreground of a playground: the cluster on one screen, redrawn until it is told to stop.

import Glibc
import OperatorClient

/// Watches a playground; on a terminal by redrawing a screen, elsewhere by a line for each change.
struct LiveStatus {
    private let palette: Palette
    private var lastLine = ""
    private var operations: [String: (count: Double, at: UInt64)] = [:]

    /// Shows `playground` until a signal asks to stop, then stops it; or until it was stopped by
    /// someone else.
    static func run(
        _ playground: inout Playground, _ invocation: Invocation
    ) throws(Failure) -> ExitCode {
        var live = LiveStatus(palette: Palette(invocation))
        for line in PlaygroundHints.lines(playground, isDetached: false) { Terminal.data(line) }
        Terminal.data("Ctrl-C stops the cluster")
        let isScreen = Terminal.outputIsTTY
        // Another screen without a cursor, so that what was there before comes back.
        if isScreen { Terminal.data("\u{1B}[?1049h\u{1B}[?25l", end: "") }
        let stoppedElsewhere = try live.watch(&playground, isScreen: isScreen)
        if isScreen { Terminal.data("\u{1B}[?25h\u{1B}[?1049l", end: "") }
        if stoppedElsewhere {
            Terminal.say("the playground was stopped by another kvctl")
            return .ok
        }
        Terminal.say("stopping")
        let lock = try playground.directory.lock()
        defer { withExtendedLifetime(lock) {} }
        if try playground.reload() {
            let stopped = try playground.stop(playground.daemons)
            Terminal.say(
                "stopped \(stopped.joined(separator: ", ")); the data stays in"
                    + " \(playground.directory.path)")
        }
        return .ok
    }

    private init(palette: Palette) { self.palette = palette }

    /// True when the daemons were stopped by someone else, false when a signal asks to stop.
    private mutating func watch(
        _ playground: inout Playground, isScreen: Bool
    ) throws(Failure) -> Bool {
        while true {
            guard try playground.reload() else { return true }
            let report = PlaygroundReport(playground, timeout: 0.8)
            if report.isStopped { return true }
            if isScreen {
                draw(report, playground)
            } else {
                let line = report.verdictLine(palette)
                if line != lastLine { Terminal.data(line) }
                lastLine = line
            }
            if playground.signals.waitForStop(milliseconds: 1000) { return false }
        }
    }

    private mutating func draw(_ report: PlaygroundReport, _ playground: Playground) {
        var lines = [
            palette.strong("Rangekeeper playground") + "  " + playground.directory.path,
            report.verdictLine(palette), operationsLine(playground), "",
        ]
        if let status = report.status {
            let parts = StatusReport(status)
            lines += parts.nodes(palette) + [""] + parts.groups(palette) + [""]
            lines += tables(playground) + [""]
        } else {
            lines += report.lines(palette).dropFirst(2) + [""]
        }
        lines += PlaygroundHints.lines(playground, isDetached: false)
        lines.append(palette.strong("Ctrl-C stops the cluster"))
        Terminal.redraw(lines)
    }

    private func tables(_ playground: Playground) -> [String] {
        let controllers = playground.daemons.filter { $0.kind == .controller }.map(\.address)
        let answer = try? ControllerClient(addresses: controllers)
            .call("tables", deadline: Deadline(seconds: 0.8))
        guard let tables = answer?["tables"].elements, !tables.isEmpty else {
            return ["no table yet"]
        }
        let shown = StatusReport.tables(Array(tables.prefix(8)), palette)
        return tables.count > 8 ? shown + ["and \(tables.count - 8) more"] : shown
    }

    /// Requests per second through the routers since the last call.
    private mutating func operationsLine(_ playground: Playground) -> String {
        var rate: Double?
        for router in playground.daemons where router.kind == .router {
            let page = try? AdminPage.get(
                "/metrics", from: router.admin, deadline: Deadline(seconds: 0.5))
            guard let count = page?.sum(ofMetric: "kvrouter_requests_total") else { continue }
            let now = Deadline.now()
            if let before = operations[router.name], count >= before.count {
                let seconds = Double(now - before.at) / 1e9
                rate = (rate ?? 0) + (count - before.count) / max(seconds, 0.001)
            }
            operations[router.name] = (count, now)
        }
        return rate.map { "\(Quantity.count(Int($0.rounded()))) requests/s" } ?? ""
    }
}
