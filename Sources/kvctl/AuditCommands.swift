// `audit`: who asked for what, and what came of it.

import OperatorClient

extension Command {
    static let auditCommands: [Command] = [
        Command(
            path: ["audit"], summary: "who changed or tried to change what, newest last",
            flags: [.option("limit", "COUNT", "at most so many, 50 unless told")],
            examples: ["audit --dir /tmp/rk", "audit --limit 500 --dir /tmp/rk -o json"],
            run: audit),
        Command(
            path: ["audit", "verify"], summary: "check that no entry was changed or taken out",
            details: """
                Each entry is sealed with the hash of the one before. Note the head that this prints \
                somewhere
                else, and give it to a later check: then not even the whole log can be exchanged \
                unseen.
                """,
            flags: [.option("since", "NUMBER:SEAL", "a head that was noted earlier")],
            examples: ["audit verify --dir /tmp/rk"], run: verifyAudit),
    ]

    private static func audit(_ invocation: Invocation) throws(Failure) -> ExitCode {
        let limit = try invocation.int("limit", in: 1...5_000) ?? 50
        return try show("audit", ["limit": .integer(Int64(limit))], invocation) {
            AuditReport.commands($0["commands"].elements, $1)
        }
    }

    private static func verifyAudit(_ invocation: Invocation) throws(Failure) -> ExitCode {
        var arguments: [String: JSONValue] = [:]
        if let anchor = invocation.string("since") { arguments["value"] = .string(anchor) }
        let result = try Cluster(invocation).call("audit.verify", .object(arguments))
        let isWhole = result["isWhole"].bool == true
        if invocation.wantsJSON {
            Terminal.data(result.encoded(pretty: true))
        } else {
            for line in AuditReport.verdict(result, Palette(invocation)) { Terminal.data(line) }
        }
        return isWhole ? .ok : .unhealthy
    }
}

enum AuditReport {
    static func commands(_ commands: [JSONValue], _ palette: Palette) -> [String] {
        guard !commands.isEmpty else { return ["nothing was asked for yet"] }
        return commands.map { command in
            let outcome = command["outcome"].text
            let text = command["text"].text
            let words = text.isEmpty ? outcome : "\(outcome): \(text)"
            return "\(OperationReport.time(command["at"].int))  #\(command["number"].text)  "
                + "\(command["caller"].text) (\(command["address"].text))  "
                + "\(command["verb"].text) \(command["arguments"].text)  "
                + (outcome == "done" ? palette.good(words) : palette.warning(words))
        }
    }

    static func verdict(_ result: JSONValue, _ palette: Palette) -> [String] {
        if let fault = result["fault"].string {
            return [palette.bad("broken") + ": \(fault)"]
        }
        guard let head = result["head"].string else { return ["whole: there is no entry yet"] }
        return [
            palette.good("whole")
                + ": entries \(result["first"].text) to \(result["last"].text) are as they were written",
            "head \(head)",
        ]
    }
}
