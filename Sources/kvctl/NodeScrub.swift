// `node scrub`: having a node check what is on its disks.

import Glibc
import OperatorClient
import WireProtocol

extension Command {
    static let nodeScrub = Command(
        path: ["node", "scrub"],
        summary: "have a node read and check everything that is on its disks",
        details: """
            Every node does so by itself (scrub.period). Waits for the end and shows how far it is, unless \
            --no-wait. Exits with 1 when something is damaged: that disk has failed then, and its replicas \
            are replaced: of several nodes, check one after the other.
            """,
        positionals: [Positional(name: "NODE", kind: .node)],
        flags: [
            .toggle("no-wait", "return when it is under way"),
            .toggle("status", "start nothing: tell how far it is, or how the newest one ended"),
        ],
        examples: [
            "node scrub node-2 --dir /tmp/rk", "node scrub node-2 --status --dir /tmp/rk -o json",
        ],
        run: scrubNode)

    private static func scrubNode(_ invocation: Invocation) throws(Failure) -> ExitCode {
        let name = invocation.positionals[0]
        if invocation.has("no-wait"), invocation.has("status") {
            throw invocation.usage("--status waits for nothing")
        }
        let cluster = try Cluster(invocation)
        let nodes = try cluster.call("nodes")["nodes"].elements
        guard let node = nodes.first(where: { $0["name"].string == name || $0["id"].text == name })
        else { throw Failure(.refused, "there is no node \(name); see: kvctl nodes") }
        let address = node["rpc"].text
        func ask(starts: Bool) throws(Failure) -> [ScrubStatus] {
            try failing { () throws(ClientError) in
                try NodeConnection.scrub(
                    address: address, starts: starts, deadline: cluster.deadline)
            }
        }
        var disks = try ask(starts: !invocation.has("status"))
        while !invocation.has("status"), !invocation.has("no-wait"),
            disks.contains(where: { $0.state == .running })
        {
            if Terminal.errorIsTTY { Terminal.redrawMessage(ScrubReport.progress(name, disks)) }
            usleep(200_000)
            disks = try ask(starts: false)
        }
        if Terminal.errorIsTTY { Terminal.redrawMessage("") }
        if invocation.wantsJSON {
            Terminal.data(ScrubReport.json(name, disks).encoded(pretty: true))
        } else {
            for line in ScrubReport.lines(disks, Palette(invocation)) { Terminal.data(line) }
        }
        let isWell = disks.allSatisfy { $0.state != .damaged && $0.state != .incomplete }
        return isWell ? .ok : .failure
    }
}

/// Checks of disks as text and as JSON.
enum ScrubReport {
    /// `node-2: scrub 37 %  1.2 GiB of 3.3 GiB`.
    static func progress(_ node: String, _ disks: [ScrubStatus]) -> String {
        let (done, total) = sums(disks)
        let percent = total == 0 ? 100 : done * 100 / total
        return "\(node): scrub \(percent) %  \(Quantity.bytes(done)) of \(Quantity.bytes(total))"
    }

    static func lines(_ disks: [ScrubStatus], _ palette: Palette) -> [String] {
        var table = TextTable([
            .text("DISK"), .text("SCRUB"), .number("READ"), .text("LAST PASSED"), .text("FINDING"),
        ])
        for disk in disks {
            table.add([
                disk.path, word(disk.state, palette), Quantity.bytes(Int(disk.doneBytes)),
                disk.lastSuccess == 0
                    ? "never" : OperationReport.time(Int(disk.lastSuccess) * 1_000),
                disk.finding.isEmpty ? "-" : palette.bad(disk.finding),
            ])
        }
        return table.lines(palette)
    }

    static func json(_ node: String, _ disks: [ScrubStatus]) -> JSONValue {
        [
            "node": .string(node),
            "disks": .array(
                disks.map { disk in
                    [
                        "path": .string(disk.path), "state": .string("\(disk.state)"),
                        "bytesDone": .integer(Int64(disk.doneBytes)),
                        "bytesTotal": .integer(Int64(disk.totalBytes)),
                        "lastSuccess": .integer(Int64(disk.lastSuccess) * 1_000),
                        "finding": .string(disk.finding),
                    ]
                }),
        ]
    }

    private static func sums(_ disks: [ScrubStatus]) -> (done: Int, total: Int) {
        disks.reduce((0, 0)) { ($0.0 + Int($1.doneBytes), $0.1 + Int($1.totalBytes)) }
    }

    private static func word(_ state: ScrubStatus.State, _ palette: Palette) -> String {
        switch state {
        case .passed: palette.good("passed")
        case .damaged: palette.bad("damaged")
        case .incomplete: palette.warning("incomplete")
        case .idle, .running: "\(state)"
        }
    }
}
