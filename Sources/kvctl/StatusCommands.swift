// `status`, `nodes`, `groups`, `shards`: what the cluster is made of and how it is.

import OperatorClient

extension Command {
    static let statusCommands: [Command] = [
        Command(
            path: ["status"], summary: "one verdict on the cluster, and what it is made of",
            details: """
                Exits 5 when the cluster is not healthy; the first line says why. While no controller \
                acts, the nodes
                are asked themselves: those of --nodes, of KVCTL_NODES in the environment or of the \
                playground, and every
                one that these know of.
                """,
            flags: [
                .option(
                    "nodes", "HOST:PORT,...",
                    "RPC addresses of nodes to ask while no controller acts")
            ],
            examples: [
                "status --dir /tmp/rk", "status --controllers 127.0.0.1:7020 -o json",
                "status --controllers 10.0.0.1:7300 --nodes 10.0.0.11:7100",
            ],
            run: status),
        Command(
            path: ["nodes"], summary: "nodes, their state, replicas and disks",
            examples: ["nodes --dir /tmp/rk", "nodes --dir /tmp/rk -o json"], run: nodes),
        Command(
            path: ["groups"], summary: "replication groups, their leaders and replicas",
            examples: ["groups --dir /tmp/rk"], run: groups),
        Command(
            path: ["shards"], summary: "shards: which key range lies in which group",
            positionals: [Positional(name: "TABLE", isRequired: false, kind: .table)],
            examples: ["shards --dir /tmp/rk", "shards stocks --dir /tmp/rk"], run: shards),
    ]

    private static func status(_ invocation: Invocation) throws(Failure) -> ExitCode {
        let status = try askStatus(Cluster(invocation))
        if invocation.wantsJSON {
            Terminal.data(status.encoded(pretty: true))
        } else {
            let palette = Palette(invocation)
            let report = StatusReport(status)
            Terminal.data(report.verdictLine(palette))
            for notice in report.notices { Terminal.data("notice: " + notice) }
            for section in [
                report.controllers(palette), report.routers(palette), report.nodes(palette),
                report.groups(palette),
            ] where section.count > 1 {
                Terminal.data("\n" + section.joined(separator: "\n"))
            }
        }
        return status["verdict"].string == "healthy" ? .ok : .unhealthy
    }

    /// The controller's answer; while none acts, what the nodes say.
    private static func askStatus(_ cluster: Cluster) throws(Failure) -> JSONValue {
        do throws(Failure) {
            return try cluster.call("status")
        } catch {
            guard [.unreachable, .unhealthy, .timeout].contains(error.code),
                let nodes = NodesStatus(
                    cluster.knownNodes, timeout: cluster.timeout, reason: error.message)
            else { throw error }
            return nodes.json
        }
    }

    private static func nodes(_ invocation: Invocation) throws(Failure) -> ExitCode {
        try show("nodes", [:], invocation) { StatusReport($0).nodes($1) }
    }

    private static func groups(_ invocation: Invocation) throws(Failure) -> ExitCode {
        try show("groups", [:], invocation) { StatusReport($0).groups($1) }
    }

    private static func shards(_ invocation: Invocation) throws(Failure) -> ExitCode {
        let arguments: JSONValue =
            invocation.argument(0).map { ["table": .string($0)] } ?? [:]
        return try show("shards", arguments, invocation) {
            StatusReport.shards($0["shards"].elements, $1)
        }
    }

    /// Asks for `verb` and prints the answer as JSON or as the lines that `render` makes of it.
    static func show(
        _ verb: String, _ arguments: JSONValue, _ invocation: Invocation,
        _ render: (JSONValue, Palette) -> [String]
    ) throws(Failure) -> ExitCode {
        let result = try Cluster(invocation).call(verb, arguments)
        if invocation.wantsJSON {
            Terminal.data(result.encoded(pretty: true))
        } else {
            for line in render(result, Palette(invocation)) { Terminal.data(line) }
        }
        return .ok
    }
}
