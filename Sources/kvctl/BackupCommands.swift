// `backup status|now|list|show|verify`: the backup of the metadata.

import MetadataBackup
import OperatorClient

extension Command {
    static let backupCommands: [Command] = [
        Command(
            path: ["backup", "status"], summary: "how current the backup of the metadata is",
            details: "Exits 5 when the backup is behind for more than 10 s, or fails.",
            examples: ["backup status --dir /tmp/rk"], run: backupStatus),
        Command(
            path: ["backup", "now"], summary: "store everything and a full snapshot now",
            details:
                "Returns when it is stored and was read back. Until then it is in: kvctl ops list",
            flags: [.toggle("no-wait", "return when it is under way")],
            examples: ["backup now --dir /tmp/rk"],
            run: { invocation throws(Failure) in
                try start("backup.now", [:], invocation, waitsUnlessTold: true)
            }),
        Command(
            path: ["backup", "list"], summary: "the snapshots, and what can be restored",
            flags: BackupSource.flags,
            examples: [
                "backup list --dir /tmp/rk", "backup list --from /var/backups/rangekeeper",
                "backup list --from 's3://backups/prod?endpoint=https://s3.example.com' -o json",
            ], run: listBackup),
        Command(
            path: ["backup", "show"], summary: "what a state in the backup is about",
            flags: BackupSource.flags + [BackupSource.momentFlag],
            examples: [
                "backup show --from /var/backups/rangekeeper",
                "backup show --from /var/backups/rangekeeper --at 2026-03-01T12:00:00Z",
                "backup show --dir /tmp/rk --at 4711",
            ], run: showBackup),
        Command(
            path: ["backup", "verify"], summary: "read every object and name what is damaged",
            details: """
                Without --from the acting controller reads it, as an operation (kvctl ops list) that the next one begins \
                anew.
                Exits 5 when something is damaged or missing, and 1 when nothing can be restored.
                """,
            flags: BackupSource.flags + [
                .toggle("no-wait", "without --from: return when it is under way")
            ],
            examples: [
                "backup verify --dir /tmp/rk", "backup verify --from /var/backups/rangekeeper",
            ], run: verifyBackup),
    ]

    private static func backupStatus(_ invocation: Invocation) throws(Failure) -> ExitCode {
        let status = try Cluster(invocation).call("backup.status")
        print(status, invocation, BackupReport.status)
        let isBehind = (status["lagSeconds"].int ?? 0) >= 10
        return isBehind || status["problem"].string?.isEmpty == false ? .unhealthy : .ok
    }

    private static func listBackup(_ invocation: Invocation) throws(Failure) -> ExitCode {
        let list =
            if let source = try BackupSource(invocation) { try source.list() } else {
                try job("backup.list", [:], invocation)
            }
        print(list, invocation, BackupReport.list)
        return .ok
    }

    private static func showBackup(_ invocation: Invocation) throws(Failure) -> ExitCode {
        let moment = try invocation.moment()
        let contents =
            if let source = try BackupSource(invocation) {
                try source.show(moment) { progress($0, $1) }
            } else { try job("backup.show", ["at": .string(moment.text)], invocation) }
        endProgress()
        print(contents, invocation, BackupReport.contents)
        return .ok
    }

    private static func verifyBackup(_ invocation: Invocation) throws(Failure) -> ExitCode {
        let result: JSONValue
        if let source = try BackupSource(invocation) {
            guard !invocation.has("no-wait") else {
                throw invocation.usage("--no-wait is for a backup that a controller reads")
            }
            result = try source.verify { progress($0, $1) }
            endProgress()
        } else {
            let cluster = try Cluster(invocation)
            let operation = try cluster.call("backup.verify")["operation"]
            guard let id = operation["id"].int, !invocation.has("no-wait") else {
                return finish(operation, invocation, succeeds: true)
            }
            let end = try OperationWatch(cluster, id).run()
            do throws(Failure) {
                result = try cluster.call("backup.verified", ["operation": operation["id"]])
            } catch {
                throw end["step"].string == "done"
                    ? error : Failure(.failure, "operation \(id): \(end["outcome"].text)")
            }
        }
        print(result, invocation, BackupReport.verification)
        if result["spans"].elements.isEmpty { return .failure }
        return result["findings"].elements.isEmpty ? .ok : .unhealthy
    }

    // MARK: Helpers

    /// Starts a job at the acting controller and waits for its result.
    private static func job(
        _ verb: String, _ arguments: JSONValue, _ invocation: Invocation
    ) throws(Failure) -> JSONValue {
        let cluster = try Cluster(invocation)
        var job = try cluster.call(verb, arguments)
        let signals = SignalWatch()
        while job["state"].string == "running" {
            guard !signals.waitForStop(milliseconds: 100) else {
                throw Failure(.failure, "stopped waiting; the job goes on at the controller")
            }
            job = try cluster.call("backup.job", ["job": job["job"]])
            progress(job["done"].int ?? 0, job["total"].int ?? 0)
        }
        endProgress()
        guard job["state"].string == "done" else {
            throw Failure(
                .failure, job["message"].string ?? "the job on the backup failed")
        }
        return job["result"]
    }

    private static func progress(_ done: Int, _ total: Int) {
        guard Terminal.errorIsTTY, total > 0 else { return }
        Terminal.redrawMessage("\(done) of \(total) objects")
    }

    private static func endProgress() {
        if Terminal.errorIsTTY { Terminal.redrawMessage("") }
    }

    static func print(
        _ document: JSONValue, _ invocation: Invocation,
        _ render: (JSONValue, Palette) -> [String]
    ) {
        if invocation.wantsJSON {
            Terminal.data(document.encoded(pretty: true))
        } else {
            for line in render(document, Palette(invocation)) { Terminal.data(line) }
        }
    }
}

enum BackupReport {
    static func status(_ status: JSONValue, _ palette: Palette) -> [String] {
        let lag = status["lagSeconds"].int ?? 0
        let problem = status["problem"].string ?? ""
        var lines = [
            "destination  \(status["destination"].text)",
            "holds        revision \(status["revision"].text), "
                + (lag > 0
                    ? palette.warning("\(lag) s behind")
                    : problem.isEmpty
                        ? palette.good("everything") : palette.warning("perhaps not everything")),
            "snapshot     revision \(status["snapshot"].text) of "
                + Clock.text(status["snapshotAt"].int),
            "written      \(count(status, "objects", "object")), "
                + "\(Quantity.bytes(status["bytes"].int)), \(count(status, "failures", "failure"))",
        ]
        if !problem.isEmpty { lines.append("problem      " + palette.bad(problem)) }
        return lines
    }

    static func list(_ list: JSONValue, _ palette: Palette) -> [String] {
        var table = TextTable([
            .number("REVISION"), .text("SNAPSHOT OF"), .number("LOGS"), .number("THROUGH"),
            .text("OF"),
        ])
        for snapshot in list["snapshots"].elements {
            table.add([
                snapshot["revision"].text, Clock.text(snapshot["at"].int), snapshot["logs"].text,
                snapshot["through"].text, Clock.text(snapshot["throughAt"].int),
            ])
        }
        var lines = table.lines(palette) + [spans(list)]
        for name in list["strangers"].elements {
            lines.append(palette.warning("\(name.text) is not a backup object"))
        }
        return lines
    }

    static func contents(_ contents: JSONValue, _ palette: Palette) -> [String] {
        let summary = contents["summary"]
        let nodes = summary["nodes"].elements.map(\.text).joined(separator: ", ")
        var lines = [
            "revision \(contents["revision"].text) of \(Clock.text(contents["at"].int)) in "
                + contents["destination"].text,
            "cluster \(summary["cluster"].text), controller term \(summary["controllerTerm"].text), "
                + "\(count(summary, "records", "record")), \(count(summary, "groups", "group")), "
                + "\(count(summary, "openOperations", "operation")) under way",
            "nodes: \(nodes)",
        ]
        for damaged in contents["damaged"].elements {
            lines.append(palette.warning("\(damaged.text); other objects lead to this state too"))
        }
        var table = TextTable([
            .text("TABLE"), .number("ID"), .text("STATE"), .number("SHARDS"),
        ])
        for entry in summary["tables"].elements {
            table.add([
                entry["name"].text, entry["id"].text, entry["state"].text, entry["shards"].text,
            ])
        }
        lines += table.lines(palette)
        return lines
    }

    static func verification(_ result: JSONValue, _ palette: Palette) -> [String] {
        let findings = result["findings"].elements
        var lines = findings.map {
            palette.bad("\($0["name"].text) \($0["problem"].text)")
        }
        let isEmpty = result["spans"].elements.isEmpty
        lines.append(
            "\(count(result, "objects", "object")), \(Quantity.bytes(result["bytes"].int)) read"
                + (!findings.isEmpty
                    ? ": " + palette.bad(Quantity.of(findings.count, "finding"))
                    : isEmpty ? "" : ": " + palette.good("all sound")))
        let gaps = result["gaps"].elements
        if !gaps.isEmpty {
            lines.append(
                palette.warning("revisions that were never stored: \(ranges(gaps))"))
        }
        lines.append(isEmpty ? palette.bad(spans(result)) : spans(result))
        return lines
    }

    /// `3 objects`.
    private static func count(_ document: JSONValue, _ key: String, _ noun: String) -> String {
        Quantity.of(document[key].int ?? 0, noun)
    }

    /// `1 to 5, 8`.
    private static func ranges(_ spans: [JSONValue]) -> String {
        spans.map {
            let (from, to) = ($0["from"].text, $0["to"].text)
            return from == to ? from : "\(from) to \(to)"
        }.joined(separator: ", ")
    }

    private static func spans(_ document: JSONValue) -> String {
        let spans = document["spans"].elements
        return spans.isEmpty
            ? "nothing can be restored" : "revisions that can be restored: " + ranges(spans)
    }
}
