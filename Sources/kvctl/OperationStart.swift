// Starting an operation, or showing its plan instead, and waiting for its end.

import OperatorClient

extension Command {
    static let waitFlags: [Flag] = [
        .toggle("wait", "return when it has ended (the default on a terminal)"),
        .toggle("no-wait", "return when it is stored and under way (the default elsewhere)"),
    ]
    /// Of commands that have a plan.
    static let planFlags: [Flag] =
        [.toggle("dry-run", "show the plan and do nothing; -o json makes a file for: kvctl apply")]
        + waitFlags

    /// Sends a request that starts an operation, and waits for its end where that is wanted; with
    /// `--dry-run`, asks for its plan and shows that.
    ///
    /// - Parameter wanted: the step in which an operation that went well ends; nil: `done` for one
    ///   that is asked for by this request, `cancelled` for one that is under way.
    /// - Parameter waitsUnlessTold: waits without `--wait` although nobody looks at a terminal.
    static func start(
        _ verb: String, _ arguments: [String: JSONValue], _ invocation: Invocation,
        wanted: String? = "done", waitsUnlessTold: Bool = Terminal.outputIsTTY
    ) throws(Failure) -> ExitCode {
        if invocation.has("wait"), invocation.has("no-wait") {
            throw invocation.usage("--wait and --no-wait exclude each other")
        }
        guard !invocation.has("dry-run") else {
            return try plan(verb, arguments, invocation)
        }
        let cluster = try Cluster(invocation)
        let operation = try cluster.call(verb, .object(arguments))["operation"]
        let waits =
            invocation.has("wait") || (waitsUnlessTold && !invocation.has("no-wait"))
        guard waits, let id = operation["id"].int, operation["step"].string != "proposed" else {
            return finish(operation, invocation, succeeds: true)
        }
        let end = try OperationWatch(cluster, id).run()
        let isCancelled = operation["cancelled"].bool == true
        let goal = wanted ?? (isCancelled ? "cancelled" : "done")
        return finish(end, invocation, succeeds: end["step"].string == goal)
    }

    private static func plan(
        _ verb: String, _ arguments: [String: JSONValue], _ invocation: Invocation
    ) throws(Failure) -> ExitCode {
        guard !invocation.has("wait") else {
            throw invocation.usage("--dry-run starts nothing that could be waited for")
        }
        var arguments = arguments
        arguments["dryRun"] = true
        return try show(verb, .object(arguments), invocation) { PlanReport.lines($0, $1) }
    }

    /// Prints an operation.
    static func finish(
        _ operation: JSONValue, _ invocation: Invocation, succeeds: Bool
    ) -> ExitCode {
        if invocation.wantsJSON {
            Terminal.data(operation.encoded(pretty: true))
        } else {
            for line in OperationReport.details(operation, Palette(invocation)) {
                Terminal.data(line)
            }
        }
        return succeeds ? .ok : .failure
    }

    /// A positive number as an argument of a request.
    static func number(
        _ text: String, _ what: String, _ invocation: Invocation
    ) throws(Failure) -> JSONValue {
        guard let number = UInt32(text), number > 0 else {
            throw invocation.usage("\(what) is a number, not '\(text)'")
        }
        return .integer(Int64(number))
    }
}
