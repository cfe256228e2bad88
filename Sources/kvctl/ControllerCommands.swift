// `controller list|add|remove`: who keeps the metadata.

import OperatorClient

extension Command {
    private static let membershipFlags: [Flag] = [
        .toggle("no-wait", "return when the change is stored, not when it is done")
    ]

    static let controllerCommands: [Command] = [
        Command(
            path: ["controller", "list"], summary: "the controllers, who leads and who answers",
            details: """
                Asks every controller that the flags name, so it tells something when no majority answers too.
                Exits 5 when none of them acts.
                """,
            examples: ["controller list --dir /tmp/rk"], run: listControllers),
        Command(
            path: ["controller", "add"], summary: "make a running, empty controller a member",
            details: """
                It must run with an empty data directory and with --peers that name it and the members; \
                it gets the
                metadata first and votes when it has caught up.
                """,
            positionals: [Positional(name: "NAME"), Positional(name: "HOST:PORT")],
            flags: membershipFlags,
            examples: ["controller add controller-4 127.0.0.1:7326 --dir /tmp/rk"],
            run: addController),
        Command(
            path: ["controller", "remove"], summary: "take a controller out, dead or alive",
            details: """
                Refused when the others would have no majority that answers. The removed one may come back \
                with an
                empty data directory only.
                """,
            positionals: [Positional(name: "NAME", kind: .controller)], flags: membershipFlags,
            examples: ["controller remove controller-2 --dir /tmp/rk"], run: removeController),
    ]

    private static func listControllers(_ invocation: Invocation) throws(Failure) -> ExitCode {
        let cluster = try Cluster(invocation)
        let timeout = try invocation.requestTimeout()
        var answers: [JSONValue] = []
        for address in cluster.controllers.addresses {
            let answer: JSONValue
            do throws(ClientError) {
                let deadline = Deadline(seconds: min(timeout, 2))
                answer = try ControllerConnection(address: address, deadline: deadline).call(
                    "controller.list", deadline: deadline)
            } catch {
                answer = ["rpc": .string(address), "error": .string(error.message)]
            }
            answers.append(answer)
        }
        let acting = answers.first { $0["acting"].bool == true }
        // Without an acting one, the view of whoever has heard most.
        let best =
            acting
            ?? answers.max { ($0["applied"].int ?? -1) < ($1["applied"].int ?? -1) } ?? .null
        if invocation.wantsJSON {
            let document: JSONValue = [
                "controllers": .array(best["controllers"].elements), "answers": .array(answers),
            ]
            Terminal.data(document.encoded(pretty: true))
        } else {
            let palette = Palette(invocation)
            for line in StatusReport.controllers(best["controllers"].elements, palette) {
                Terminal.data(line)
            }
            for answer in answers {
                if let error = answer["error"].string {
                    let address = answer["rpc"].text
                    let known = best["controllers"].elements.first { $0["rpc"].string == address }
                    Terminal.data("\(known?["name"].text ?? address) does not answer: \(error)")
                } else if acting == nil {
                    Terminal.data(
                        "\(answer["name"].text): \(answer["role"].text) in term "
                            + "\(answer["term"].text), leader \(answer["leader"].string ?? "unknown")"
                            + (answer["obstacle"].string.map { ": \($0)" } ?? "")
                    )
                }
            }
            if acting == nil {
                let isInEtcd = answers.contains { $0["form"].string == "etcd" }
                Terminal.say(
                    "no controller acts: "
                        + (isInEtcd ? "one of them must reach etcd" : "a majority must answer"))
            }
        }
        return acting == nil ? .unhealthy : .ok
    }

    private static func addController(_ invocation: Invocation) throws(Failure) -> ExitCode {
        let name = invocation.positionals[0]
        let arguments: JSONValue = [
            "name": .string(name), "address": .string(invocation.positionals[1]),
        ]
        return try change("controller.add", of: name, arguments, invocation) { controllers in
            controllers.first { $0["name"].string == name }?["state"].string == "member"
        } wayOut: {
            "when it runs there with an empty data directory it becomes a member yet; to take it out again: "
                + "kvctl controller remove \(name)"
        }
    }

    private static func removeController(_ invocation: Invocation) throws(Failure) -> ExitCode {
        let name = invocation.positionals[0]
        return try change(
            "controller.remove", of: name, ["name": .string(name)], invocation
        ) { controllers in
            !controllers.contains { $0["name"].string == name }
        } wayOut: {
            "it goes on; see: kvctl controller list"
        }
    }

    /// Has the change stored and waits until `isDone` of what the acting controller lists.
    private static func change(
        _ verb: String, of name: String, _ arguments: JSONValue, _ invocation: Invocation,
        until isDone: ([JSONValue]) -> Bool, wayOut: () -> String
    ) throws(Failure) -> ExitCode {
        let cluster = try Cluster(invocation)
        var controllers = try cluster.call(verb, arguments)["controllers"].elements
        let signals = SignalWatch()
        let patience = Deadline(seconds: 30)
        while !isDone(controllers), !invocation.has("no-wait") {
            let isInterrupted = signals.waitForStop(milliseconds: 100)
            if isInterrupted || patience.hasPassed {
                let problem = controllers.first { $0["name"].string == name }?["problem"].string
                throw Failure(
                    isInterrupted ? .interrupted : .timeout,
                    "the change is stored and not done"
                        + (isInterrupted ? " yet" : " after 30 s")
                        + (problem.map { ": \($0)" } ?? "") + "\n" + wayOut())
            }
            // The acting one may be the one that leaves.
            if let answer = try? cluster.call("status") {
                controllers = answer["controllers"].elements
            }
        }
        if invocation.wantsJSON {
            let document: JSONValue = ["controllers": .array(controllers)]
            Terminal.data(document.encoded(pretty: true))
        } else {
            for line in StatusReport.controllers(controllers, Palette(invocation)) {
                Terminal.data(line)
            }
        }
        return .ok
    }
}
