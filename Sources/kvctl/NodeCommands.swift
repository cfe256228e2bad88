// `node`: what operators change about nodes.

import OperatorClient

extension Command {
    private static let node = Positional(name: "NODE", kind: .node)

    static let nodeCommands: [Command] = [
        Command(
            path: ["node", "list"], summary: "same as: nodes",
            examples: ["node list --dir /tmp/rk"],
            run: { (invocation) throws(Failure) in
                try show("nodes", [:], invocation) { StatusReport($0).nodes($1) }
            }),
        Command(
            path: ["node", "weight"],
            summary: "how much of load and replicas a node takes beside others",
            details: "10 is the default; 20 takes twice as much, 0 nothing new.",
            positionals: [node, Positional(name: "WEIGHT")],
            examples: ["node weight node-2 20 --dir /tmp/rk"], run: weightNode),
        Command(
            path: ["node", "spare"], summary: "put a node that holds nothing into the spare pool",
            positionals: [node], flags: [.toggle("end", "take it out: it may hold replicas")],
            examples: ["node spare node-5 --dir /tmp/rk", "node spare node-5 --end --dir /tmp/rk"],
            run: spareNode),
        Command(
            path: ["node", "maintenance"],
            summary: "leaders leave a node and repair leaves it alone, for a while",
            details: "It ends by itself after the time of --for, at the latest.",
            positionals: [node],
            flags: [
                .option("for", "TIME", "such as 30m or 1d; at most 7d"),
                .toggle("end", "the maintenance is over"),
            ],
            examples: [
                "node maintenance node-2 --for 30m --dir /tmp/rk",
                "node maintenance node-2 --end --dir /tmp/rk",
            ],
            run: maintainNode),
        nodeScrub,
        Command(
            path: ["node", "remove"], summary: "forget a node that holds nothing and does not run",
            details: "Asks for the node's name on a terminal; elsewhere --yes is needed.",
            positionals: [node], flags: [.toggle("yes", "do not ask")],
            examples: [
                "node remove node-2 --dir /tmp/rk", "node remove node-2 --yes --dir /tmp/rk",
            ],
            run: removeNode),
    ]

    private static func weightNode(_ invocation: Invocation) throws(Failure) -> ExitCode {
        let (name, text) = (invocation.positionals[0], invocation.positionals[1])
        guard let weight = UInt8(text) else {
            throw invocation.usage("WEIGHT is a number from 0 to 100, not '\(text)'")
        }
        return try change(
            "node.weight", ["node": .string(name), "weight": .integer(Int64(weight))],
            "the weight of \(name) is \(weight)", invocation)
    }

    private static func spareNode(_ invocation: Invocation) throws(Failure) -> ExitCode {
        let name = invocation.positionals[0]
        let ends = invocation.has("end")
        return try change(
            ends ? "node.spare.end" : "node.spare", ["node": .string(name)],
            ends ? "\(name) may hold replicas" : "\(name) is a spare", invocation)
    }

    private static func maintainNode(_ invocation: Invocation) throws(Failure) -> ExitCode {
        let name = invocation.positionals[0]
        guard invocation.has("for") != invocation.has("end") else {
            throw invocation.usage("say either --for TIME or --end")
        }
        guard let seconds = try invocation.seconds("for") else {
            return try change(
                "node.maintenance.end", ["node": .string(name)],
                "the maintenance of \(name) is over", invocation)
        }
        return try change(
            "node.maintenance", ["node": .string(name), "seconds": .number(seconds)],
            "\(name) is in maintenance for \(Quantity.duration(seconds: seconds)) at most",
            invocation)
    }

    private static func removeNode(_ invocation: Invocation) throws(Failure) -> ExitCode {
        let name = invocation.positionals[0]
        if !invocation.has("yes") {
            try confirm("removing '\(name)' makes the cluster forget it", word: name)
        }
        return try change(
            "node.remove", ["node": .string(name)], "\(name) is forgotten", invocation)
    }

    private static func change(
        _ verb: String, _ arguments: JSONValue, _ done: String, _ invocation: Invocation
    ) throws(Failure) -> ExitCode {
        _ = try Cluster(invocation).call(verb, arguments)
        Terminal.say(done)
        if invocation.wantsJSON { Terminal.data("{}") }
        return .ok
    }
}
