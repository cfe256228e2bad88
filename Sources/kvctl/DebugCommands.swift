// `debug bundle`: one file for whoever is to find out what is wrong, or was.

import BuildInfo
import FoundationEssentials
import Glibc
import OperatorClient

extension Command {
    static let debugCommands: [Command] = [
        Command(
            path: ["debug", "bundle"], summary: "collect what explains the cluster in one archive",
            details: """
                What the acting controller answers, and of each daemon metrics, health and the pages \
                of /debug; of a
                playground the ends of the logs too. Of daemons under systemd add the journal: \
                journalctl -u 'kv*'.
                No values and no secrets are in it; names, addresses, hot keys and the keys at which \
                shards begin are.
                Whatever does not answer is named, and the rest is collected all the same.
                """,
            flags: [
                .option("to", "FILE", "the archive; rangekeeper-debug-TIME.tar.gz unless told")
            ],
            examples: [
                "debug bundle --dir /tmp/rk", "debug bundle --dir /tmp/rk --to case-17.tar.gz",
            ],
            run: debugBundle)
    ]

    private static func debugBundle(_ invocation: Invocation) throws(Failure) -> ExitCode {
        let time = Date().formatted(.iso8601)
        let name = "rangekeeper-debug-" + time.filter { $0 != "-" && $0 != ":" }
        let path = invocation.string("to") ?? "\(name).tar.gz"
        guard access(path, F_OK) != 0 else {
            throw Failure(.refused, "\(path) exists; choose another name with --to")
        }
        let folder = path.lastIndex(of: "/").map { String(path[...$0]) } ?? "."
        guard access(folder, W_OK) == 0 else {
            throw Failure(
                .refused, "cannot write to \(folder): \(String(cString: strerror(errno)))")
        }
        let progress = { @Sendable (words: String) in
            if Terminal.errorIsTTY { Terminal.redrawMessage(words) }
        }
        var bundle = try DebugBundle(invocation, progress: progress)
        guard !bundle.files.isEmpty else {
            progress("")
            throw Failure(
                .unreachable,
                "nothing answers: \(bundle.gaps.first?.reason ?? "no daemon is known")")
        }
        progress("packs \(Quantity.of(bundle.files.count, "file"))")
        let summary = bundle.summary(madeAt: time, by: "kvctl \(BuildInfo.text)")
        bundle.add("summary.json", summary.encoded(pretty: true) + "\n")
        try bundle.pack(into: path, name: name)
        progress("")
        if invocation.wantsJSON {
            Terminal.data(
                JSONValue.object(["archive": .string(path), "summary": summary])
                    .encoded(pretty: true))
        } else {
            for gap in bundle.gaps { Terminal.say("missing: \(gap.name): \(gap.reason)") }
            Terminal.data("\(path): \(Quantity.of(bundle.files.count, "file"))")
        }
        return .ok
    }
}
