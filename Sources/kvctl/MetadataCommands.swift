// `metadata show|migrate`: where a cluster's metadata is kept, and moving it while the cluster runs.

import Glibc
import OperatorClient

extension Command {
    static let metadataCommands: [Command] = [
        Command(
            path: ["metadata", "show"], summary: "where each controller keeps the metadata",
            details: """
                Asks every controller that the flags name, and tells which settings still name a store that the \
                metadata has left.
                Exits 5 when none of them acts.
                """,
            examples: ["metadata show --dir /tmp/rk"],
            run: { (invocation) throws(Failure) in try showHomes(invocation) }),
        Command(
            path: ["metadata", "migrate"],
            summary: "move the metadata of a running cluster into etcd, or out of it",
            details: """
                The acting controller moves it; nodes and routers go on, and every controller follows in its own \
                process. First
                every controller that answers must be able to use the new store, with the certificates and the user \
                of its own
                etcd.* settings. A controller that is killed meanwhile leaves one valid store: look with kvctl \
                metadata show, and
                repeat if it is the old one. Afterwards change the settings of the controllers: until then they follow, \
                and say so.
                """,
            flags: [
                .option("to", "STORE", choices: ["etcd", "embedded"], "where to"),
                .option(
                    "etcd-endpoints", "URL,...", "with --to etcd: http://HOST:PORT of its members"),
                .option("etcd-prefix", "PREFIX", "with --to etcd: rangekeeper/ unless told"),
                .toggle("dry-run", "check everything and say what would be moved"),
            ],
            examples: [
                "metadata migrate --to etcd --etcd-endpoints http://10.0.0.21:2379 --dry-run",
                "metadata migrate --to embedded --dir /tmp/rk",
            ], run: { (invocation) throws(Failure) in try migrate(invocation) }),
    ]

    private static func homes(of addresses: [String], seconds: Double) -> [JSONValue] {
        addresses.map { address in
            do throws(ClientError) {
                let deadline = Deadline(seconds: seconds)
                let connection = try ControllerConnection(address: address, deadline: deadline)
                return try connection.call("metadata.home", deadline: deadline)
            } catch {
                return ["rpc": .string(address), "error": .string(error.message)]
            }
        }
    }

    private static func showHomes(_ invocation: Invocation) throws(Failure) -> ExitCode {
        let cluster = try Cluster(invocation)
        let answers = homes(
            of: cluster.controllers.addresses, seconds: min(2, try invocation.requestTimeout()))
        if invocation.wantsJSON {
            let document: JSONValue = ["controllers": .array(answers)]
            Terminal.data(document.encoded(pretty: true))
        } else {
            let palette = Palette(invocation)
            var table = TextTable([
                .text("CONTROLLER"), .text("KEEPS IT IN"), .text("SETTINGS SAY"), .text("ACTING"),
                .number("REVISION"),
            ])
            for answer in answers where answer["error"].string == nil {
                table.add([
                    answer["name"].text, answer["form"].text, answer["configured"].text,
                    answer["acting"].text, answer["revision"].text,
                ])
            }
            for line in table.lines(palette) { Terminal.data(line) }
            for answer in answers {
                if let error = answer["error"].string {
                    Terminal.data("\(answer["rpc"].text): \(error)")
                }
                if let obstacle = answer["obstacle"].string {
                    Terminal.data(
                        "\(palette.warning(answer["name"].text)): does not act: \(obstacle)")
                }
                if let staleness = answer["staleness"].string {
                    Terminal.data("\(palette.warning(answer["name"].text)): \(staleness)")
                }
            }
        }
        return answers.contains { $0["acting"].bool == true } ? .ok : .unhealthy
    }

    private static func migrate(_ invocation: Invocation) throws(Failure) -> ExitCode {
        guard let to = invocation.string("to") else {
            throw invocation.usage("--to is etcd or embedded")
        }
        let endpoints = (invocation.string("etcd-endpoints") ?? "").split(separator: ",").map(
            String.init)
        guard
            to == "etcd" ? !endpoints.isEmpty : endpoints.isEmpty && !invocation.has("etcd-prefix")
        else {
            throw invocation.usage("--etcd-endpoints is needed with --to etcd, and only there")
        }
        let cluster = try Cluster(invocation)
        var addresses = cluster.controllers.addresses
        for controller in try cluster.call("status")["controllers"].elements {
            if let rpc = controller["rpc"].string, !addresses.contains(rpc) {
                addresses.append(rpc)
            }
        }
        var arguments: [String: JSONValue] = [
            "to": .string(to), "dryRun": .bool(invocation.has("dry-run")),
        ]
        if to == "etcd" {
            arguments["endpoints"] = .array(endpoints.map { .string($0) })
            arguments["prefix"] = .string(invocation.string("etcd-prefix") ?? "rangekeeper/")
        }
        // Every controller has its time to try the new store.
        let deadline = Deadline(seconds: max(30, try invocation.requestTimeout()))
        let plan = try failing { () throws(ClientError) in
            try cluster.controllers.call(
                "metadata.migrate", .object(arguments), deadline: deadline)
        }
        let absent = plan["absent"].elements.map(\.text)
        if !absent.isEmpty {
            Terminal.say(
                "not running, and to follow when they start: " + absent.joined(separator: ", "))
        }
        if invocation.has("dry-run") {
            if invocation.wantsJSON {
                Terminal.data(plan.encoded(pretty: true))
            } else {
                Terminal.data(
                    "would move \(plan["records"].text) records at revision \(plan["revision"].text) from "
                        + "\(plan["from"].text) to \(to); these controllers can use it and would follow: "
                        + plan["controllers"].elements.map(\.text).joined(separator: ", "))
            }
            return .ok
        }
        let home = try wait(for: plan, to, addresses)
        if invocation.wantsJSON {
            Terminal.data(home.encoded(pretty: true))
        } else {
            Terminal.data(
                "moved to \(to) by revision \(home["move"]["revision"].text); \(home["name"].text) acts"
            )
            if let staleness = home["staleness"].string {
                Terminal.data("on every controller: " + staleness)
            }
        }
        return .ok
    }

    /// How long nothing may be heard of a move.
    private static let patienceSeconds = 120.0

    /// Waits until a controller acts on the new store, or on the old one; what the former says of itself.
    private static func wait(
        for plan: JSONValue, _ to: String, _ addresses: [String]
    ) throws(Failure) -> JSONValue {
        let id = plan["id"].text
        var told = ""
        var patience = Deadline(seconds: patienceSeconds)
        while !patience.hasPassed {
            usleep(200_000)
            for home in homes(of: addresses, seconds: 2) where home["error"].string == nil {
                let migration = home["migration"]
                if home["acting"].bool == true {
                    if home["form"].text == to, home["move"]["id"].string == id { return home }
                    let isSame = migration["id"].string == id
                    let failure = migration["failure"].string
                    guard home["form"].text == to || isSame && failure == nil else {
                        throw Failure(
                            .refused,
                            "nothing was moved: "
                                + (isSame
                                    ? failure ?? "" : "\(home["name"].text) acts now; begin anew"))
                    }
                } else if migration["id"].string == id, migration["failure"].string == nil {
                    let line =
                        "\(migration["phase"].text): \(migration["copied"].text) of "
                        + "\(migration["records"].text) records"
                    guard line != told else { continue }
                    told = line
                    Terminal.say(line)
                    patience = Deadline(seconds: patienceSeconds)
                }
            }
        }
        throw Failure(
            .timeout,
            "no controller acts, \(Int(patienceSeconds)) s after the last word of the move; see: kvctl "
                + "metadata show")
    }
}
