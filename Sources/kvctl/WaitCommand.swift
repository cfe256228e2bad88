// `wait`: for scripts that go on when the cluster is as they need it.

import Glibc
import OperatorClient

extension Command {
    static let waitCommands: [Command] = [
        Command(
            path: ["wait"], summary: "return when the cluster is healthy, or nothing is under way",
            details: """
                healthy: as the first line of status says. idle: no operation is under way; what is \
                only proposed does
                not count. A cluster that does not answer is waited for. Exits 6 when the time is over.
                """,
            flags: [
                .option(
                    "for", "CONDITION", choices: WaitCondition.allCases.map(\.rawValue),
                    "healthy (unless told) or idle"),
                .option("timeout", "TIME", "how long at most: 5m unless told"),
            ],
            examples: ["wait --dir /tmp/rk", "wait --for idle --timeout 1h --dir /tmp/rk"],
            run: wait)
    ]

    private static let intervalMilliseconds = 500

    private static func wait(_ invocation: Invocation) throws(Failure) -> ExitCode {
        let cluster = try Cluster(invocation)
        let condition = invocation.string("for").flatMap(WaitCondition.init) ?? .healthy
        let limit = try invocation.seconds("timeout") ?? 300
        let deadline = Deadline(seconds: limit)
        let signals = SignalWatch()
        defer { if Terminal.errorIsTTY { Terminal.redrawMessage("") } }
        while true {
            let obstacle = try obstacle(to: condition, cluster)
            guard let obstacle else { break }
            if Terminal.errorIsTTY { Terminal.redrawMessage("waits: \(obstacle)") }
            guard !deadline.hasPassed else {
                throw Failure(
                    .timeout, "not \(condition.rawValue) after \(Int(limit)) s: \(obstacle)")
            }
            guard !signals.waitForStop(milliseconds: intervalMilliseconds) else {
                throw Failure(.interrupted, "stopped waiting: \(obstacle)")
            }
        }
        Terminal.data(
            invocation.wantsJSON
                ? JSONValue.object([condition.rawValue: true]).encoded(pretty: true)
                : condition.rawValue)
        return .ok
    }

    /// Why it is not so yet; nil when it is. Only what waiting cannot mend is an error.
    private static func obstacle(
        to condition: WaitCondition, _ cluster: Cluster
    ) throws(Failure) -> String? {
        do throws(Failure) {
            switch condition {
            case .healthy:
                let status = try cluster.call("status")
                return status["verdict"].string == "healthy" ? nil : StatusReport(status).facts
            case .idle:
                let open = try cluster.call("ops.list")["operations"].elements.filter {
                    $0["finished"].bool == false && $0["step"].string != "proposed"
                }
                return open.isEmpty
                    ? nil : Quantity.of(open.count, "operation") + " under way"
            }
        } catch {
            guard [.unreachable, .unhealthy, .timeout].contains(error.code) else { throw error }
            return error.message
        }
    }
}

private enum WaitCondition: String, CaseIterable {
    case healthy, idle
}
