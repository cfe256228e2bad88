// The daemons of a playground and the state of its cluster, at one moment.

import OperatorClient

struct PlaygroundReport {
    struct Daemon {
        var plan: DaemonPlan
        var pid: Int32?
        /// `running`, `died` (it was not stopped by kvctl) or `stopped`.
        var state: String
    }

    let daemons: [Daemon]
    /// The controller's `status`; nil when it does not answer.
    let status: JSONValue?

    init(_ playground: Playground, timeout: Double) {
        daemons = playground.daemons.map { plan in
            let process = playground.state.processes[plan.name]
            let state =
                playground.isRunning(plan) ? "running" : process == nil ? "stopped" : "died"
            return Daemon(plan: plan, pid: state == "running" ? process?.pid : nil, state: state)
        }
        let controllers = playground.daemons.filter { $0.kind == .controller }.map(\.address)
        status = try? ControllerClient(addresses: controllers)
            .call("status", deadline: Deadline(seconds: timeout))
    }

    var isHealthy: Bool {
        daemons.allSatisfy { $0.state == "running" } && status?["verdict"].string == "healthy"
    }

    var isStopped: Bool { daemons.allSatisfy { $0.state == "stopped" } }

    /// One line that says how things stand.
    func verdictLine(_ palette: Palette) -> String {
        if isStopped { return "stopped: no daemon runs" }
        let missing = daemons.filter { $0.state != "running" }.map { "\($0.plan.name) \($0.state)" }
        guard let status else {
            let reasons = missing + ["no controller answers"]
            return palette.state("unavailable") + ": " + reasons.joined(separator: "; ")
        }
        let verdict = StatusReport(status).verdictLine(palette)
        return missing.isEmpty ? verdict : verdict + "; " + missing.joined(separator: "; ")
    }

    func lines(_ palette: Palette) -> [String] {
        var table = TextTable([
            .text("DAEMON"), .number("PID"), .text("STATE"), .text("SERVES"), .text("ADMIN"),
            .text("LOG"),
        ])
        for daemon in daemons {
            table.add(
                [
                    daemon.plan.name, daemon.pid.map(String.init) ?? "-",
                    palette.state(daemon.state), daemon.plan.address, daemon.plan.admin,
                    daemon.plan.log,
                ])
        }
        return [verdictLine(palette), ""] + table.lines(palette)
    }

    var json: JSONValue {
        let list = daemons.map { daemon -> JSONValue in
            [
                "name": .string(daemon.plan.name), "kind": .string(daemon.plan.kind.rawValue),
                "pid": daemon.pid.map { .integer(Int64($0)) } ?? .null,
                "state": .string(daemon.state), "serves": .string(daemon.plan.address),
                "admin": .string(daemon.plan.admin), "log": .string(daemon.plan.log),
            ]
        }
        return ["daemons": .array(list), "healthy": .bool(isHealthy), "cluster": status ?? .null]
    }
}
