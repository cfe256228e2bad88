// `playground`: a whole cluster on this machine, by one command.

import FoundationEssentials
import KVBase
import ObjectStore
import OperatorClient

extension Command {
    private static let directoryFlag = "a directory of the playground's own"

    static let playgroundCommands: [Command] = [
        Command(
            path: ["playground", "up"],
            summary: "start a cluster of separate processes in --dir DIR",
            details: """
                A new directory gets a new cluster; an existing one gets its daemons started again,
                with the data that they had. All daemons listen on 127.0.0.1. Without --detach it
                stays in the foreground and shows the cluster until Ctrl-C stops all.
                """,
            flags: [
                .option("nodes", "N", "nodes, spares included: 4 unless told"),
                .option("spares", "N", "how many of them are spares: 1 unless told"),
                .option("routers", "N", "routers: 1 unless told"),
                .option("controllers", "N", "controllers, 1, 3 or 5: 1 unless told"),
                .option(
                    "metadata", "FORM",
                    "embedded (unless told) or etcd: a local etcd, which must be installed"),
                .option(
                    "backup-to", "PLACE", "back the metadata up to a directory or s3://..."),
                .option("replicas", "N", "replicas of each group, 1, 3 or 5: 3 unless told"),
                .option("groups", "N", "replication groups: 2 unless told"),
                .option("disks", "N", "data directories of each node: 1 unless told"),
                .option("port-base", "PORT", "first port: 7000 unless told; the first router's"),
                .toggle("with-prometheus", "run Prometheus beside the cluster, with alert rules"),
                .option("rules", "DIR", "its rules; those that came with kvctl unless told"),
                .toggle("detach", "return as soon as writes are accepted"),
                .option("timeout", "TIME", "bound of the start: 60s unless told"),
            ],
            examples: [
                "playground up --dir /tmp/rk",
                "playground up --dir /tmp/rk2 --port-base 7200 --nodes 6 --detach",
                "playground up --dir /tmp/rk3 --metadata etcd --controllers 3",
                "playground up --dir /tmp/rk --with-prometheus",
                "playground up --dir /tmp/rk --backup-to /tmp/rk-backup",
            ],
            run: up),
        Command(
            path: ["playground", "down"], summary: "stop all daemons of a playground",
            flags: [
                .toggle("wipe", "remove its data, logs and files as well"),
                .toggle("yes", "do not ask before removing"),
            ],
            examples: [
                "playground down --dir /tmp/rk", "playground down --dir /tmp/rk --wipe --yes",
            ],
            run: down),
        Command(
            path: ["playground", "start"], summary: "start a daemon that died or was stopped",
            details:
                "What only others lack is waited for 15 s and told; the daemon goes on in any case.",
            positionals: [Positional(name: "NAME", kind: .daemon)],
            flags: [.option("timeout", "TIME", "bound of the start: 60s unless told")],
            examples: ["playground start node-2 --dir /tmp/rk"], run: start),
        Command(
            path: ["playground", "stop"], summary: "stop one daemon, as an operator would",
            positionals: [Positional(name: "NAME", kind: .daemon)],
            examples: ["playground stop node-2 --dir /tmp/rk"], run: stop),
        Command(
            path: ["playground", "status"], summary: "which daemons run, and how the cluster is",
            details: "Exits 5 when a daemon does not run or the cluster is not healthy.",
            examples: ["playground status --dir /tmp/rk"], run: playgroundStatus),
    ]

    // MARK: up

    private static func up(_ invocation: Invocation) throws(Failure) -> ExitCode {
        let began = Deadline.now()
        let directory = try directory(invocation)
        let asked = try plan(invocation, binaries: directory.binaries)
        let timeout = try invocation.seconds("timeout") ?? 60
        if let state = try directory.state() {
            try refuseContradiction(invocation, state.plan, asked, directory)
        }
        try directory.create(directory.path)
        var playground: Playground
        do {
            let lock = try directory.lock()
            defer { withExtendedLifetime(lock) {} }
            let old = try directory.state()
            playground = Playground(
                directory, old ?? PlaygroundState(plan: asked), SignalWatch())
            if let prometheus = asked.prometheus { playground.use(prometheus) }
            if let backup = asked.backup { try playground.use(backup: backup) }
            let missing = playground.daemons.filter { !playground.isRunning($0) }
            if missing.isEmpty {
                Terminal.say("the playground in \(directory.path) already runs")
                guard invocation.has("detach") else {
                    throw Failure(.refused, "see: kvctl playground status --dir \(directory.path)")
                }
            } else {
                Terminal.say(announcement(playground, missing, isNew: old == nil))
            }
            do throws(Failure) {
                if !missing.isEmpty { try playground.start(missing) }
                try playground.waitUntilReady(playground.daemons, seconds: timeout)
            } catch {
                let wasStarted = !playground.state.processes.isEmpty
                let stopped = try playground.stop(missing)
                if !stopped.isEmpty { Terminal.say("stopped what was started") }
                // Nothing was ever started here: the next attempt may choose other numbers.
                if old == nil, !wasStarted { try directory.wipe(playground.state) }
                throw error
            }
            if !missing.isEmpty {
                let milliseconds = Int((Deadline.now() - began) / 1_000_000)
                Terminal.say("ready after \(Quantity.milliseconds(milliseconds))")
            }
        }
        guard invocation.has("detach") else { return try LiveStatus.run(&playground, invocation) }
        if invocation.wantsJSON {
            Terminal.data(directory.publicFile(playground.state).json.encoded(pretty: true))
        } else {
            for line in PlaygroundHints.lines(playground, isDetached: true) { Terminal.data(line) }
        }
        return .ok
    }

    private static func plan(
        _ invocation: Invocation, binaries: String
    ) throws(Failure) -> PlaygroundPlan {
        var plan = PlaygroundPlan()
        if let nodes = try invocation.int("nodes", in: 1...PlaygroundPlan.nodesMax) {
            plan.nodes = nodes
        }
        if let spares = try invocation.int("spares", in: 0...PlaygroundPlan.nodesMax) {
            plan.spares = spares
        }
        if let routers = try invocation.int("routers", in: 1...PlaygroundPlan.routersMax) {
            plan.routers = routers
        }
        if let controllers = try invocation.int(
            "controllers", in: 1...PlaygroundPlan.controllersMax)
        {
            plan.controllers = controllers
        }
        if let metadata = invocation.string("metadata") {
            guard PlaygroundPlan.metadataForms.contains(metadata) else {
                throw invocation.usage("--metadata is embedded or etcd, not \(metadata)")
            }
            guard metadata != "etcd" || EtcdProgram.isInstalled else {
                throw Failure(
                    .refused,
                    "there is no etcd on this machine: install it (Debian: etcd-server), or leave "
                        + "--metadata out")
            }
            plan.metadata = metadata == "etcd" ? metadata : nil
        }
        if let place = invocation.string("backup-to") {
            // The daemons' working directory is another one.
            let isRelative = !place.isEmpty && !place.hasPrefix("/") && !place.contains("://")
            let whole = isRelative ? FileManager.default.currentDirectoryPath + "/" + place : place
            if !place.hasPrefix("s3://") {
                _ = try failing { () throws(DatabaseError) in try ObjectStoreLocation.open(whole) }
            }
            plan.backup = whole
        }
        if let replicas = try invocation.int("replicas", in: 1...5) { plan.replicas = replicas }
        if let groups = try invocation.int("groups", in: 1...1000) { plan.groups = groups }
        if let disks = try invocation.int("disks", in: 1...PlaygroundPlan.disksMax) {
            plan.disks = disks
        }
        let portMax = 65_535 - PlaygroundPlan.portSpan
        if let base = try invocation.int("port-base", in: 1024...portMax) { plan.portBase = base }
        guard plan.replicas % 2 == 1 else {
            throw invocation.usage("--replicas is 1, 3 or 5, not \(plan.replicas)")
        }
        guard plan.nodes - plan.spares >= plan.replicas else {
            throw invocation.usage(
                "\(plan.replicas) replicas need \(plan.replicas) nodes that are no spares;"
                    + " --nodes \(plan.nodes) --spares \(plan.spares) leaves"
                    + " \(max(0, plan.nodes - plan.spares))")
        }
        guard plan.controllers % 2 == 1 else {
            throw invocation.usage(
                "--controllers is 1, 3 or 5, not \(plan.controllers): an even number survives no more "
                    + "deaths than one less")
        }
        let rules = invocation.string("rules")
        if invocation.has("with-prometheus") {
            plan.prometheus = try .found(rulesIn: rules, binaries: binaries)
        } else if rules != nil {
            throw invocation.usage("--rules goes with --with-prometheus")
        }
        return plan
    }

    /// A playground keeps its numbers: flags that say otherwise are refused, not ignored.
    private static func refuseContradiction(
        _ invocation: Invocation, _ old: PlaygroundPlan, _ asked: PlaygroundPlan,
        _ directory: PlaygroundDirectory
    ) throws(Failure) {
        let numbers: [(String, Int, Int)] = [
            ("nodes", old.nodes, asked.nodes), ("spares", old.spares, asked.spares),
            ("routers", old.routers, asked.routers),
            ("controllers", old.controllers, asked.controllers),
            ("replicas", old.replicas, asked.replicas), ("groups", old.groups, asked.groups),
            ("disks", old.disks, asked.disks),
            ("port-base", old.portBase, asked.portBase),
        ]
        if invocation.has("metadata"), old.metadata != asked.metadata {
            throw Failure(
                .refused,
                "the playground in \(directory.path) was made with --metadata "
                    + "\(old.metadata ?? "embedded"); leave the flag out, or use another --dir")
        }
        for (flag, old, asked) in numbers where invocation.has(flag) && old != asked {
            throw Failure(
                .refused,
                "the playground in \(directory.path) was made with --\(flag) \(old);"
                    + " --\(flag) \(asked) contradicts that. Leave the flag out, or use another --dir"
            )
        }
    }

    private static func announcement(
        _ playground: Playground, _ daemons: [DaemonPlan], isNew: Bool
    ) -> String {
        var counts = DaemonPlan.Kind.allCases.compactMap { kind -> String? in
            let count = daemons.count { $0.kind == kind }
            guard kind != .prometheus, count > 0 else { return nil }
            return Quantity.of(count, kind.rawValue)
        }
        if daemons.contains(where: { $0.kind == .prometheus }) { counts.append("Prometheus") }
        return "\(isNew ? "new cluster" : "cluster") in \(playground.directory.path): starting "
            + counts.joined(separator: ", ")
    }

    // MARK: down, start, stop

    private static func down(_ invocation: Invocation) throws(Failure) -> ExitCode {
        let directory = try directory(invocation)
        let wipe = invocation.has("wipe")
        guard let state = try directory.state() else {
            guard !wipe || !directory.exists else {
                throw Failure(
                    .refused, "\(directory.path) holds no playground: nothing there is removed")
            }
            Terminal.say("there is no playground in \(directory.path): nothing to stop")
            return .ok
        }
        if wipe, !invocation.has("yes") {
            try confirm(
                "this removes the cluster in \(directory.path) with all its data",
                word: String(directory.path.split(separator: "/").last ?? ""))
        }
        let lock = try directory.lock()
        defer { withExtendedLifetime(lock) {} }
        var playground = Playground(directory, state, SignalWatch())
        let stopped = try playground.stop(playground.daemons)
        Terminal.say(
            stopped.isEmpty
                ? "nothing runs in \(directory.path)"
                : "stopped \(stopped.joined(separator: ", "))")
        if wipe {
            try directory.wipe(playground.state)
            Terminal.say("removed the playground in \(directory.path)")
        }
        return .ok
    }

    private static func start(_ invocation: Invocation) throws(Failure) -> ExitCode {
        let timeout = try invocation.seconds("timeout") ?? 60
        return try withDaemon(invocation) { (playground, daemon) throws(Failure) in
            guard !playground.isRunning(daemon) else {
                Terminal.say("\(daemon.name) already runs")
                return
            }
            try playground.start([daemon])
            let lack = try playground.waitUntilStarted(daemon, seconds: timeout)
            Terminal.say(
                "\(daemon.name) runs"
                    + (lack.map { "; the cluster does not serve yet: \($0)" } ?? ""))
        }
    }

    private static func stop(_ invocation: Invocation) throws(Failure) -> ExitCode {
        try withDaemon(invocation) { (playground, daemon) throws(Failure) in
            let stopped = try playground.stop([daemon])
            Terminal.say("\(daemon.name) \(stopped.isEmpty ? "did not run" : "stopped")")
        }
    }

    private static func withDaemon(
        _ invocation: Invocation,
        _ body: (inout Playground, DaemonPlan) throws(Failure) -> Void
    ) throws(Failure) -> ExitCode {
        let directory = try directory(invocation)
        let name = invocation.positionals[0]
        guard try directory.state() != nil else { throw missing(directory) }
        let lock = try directory.lock()
        defer { withExtendedLifetime(lock) {} }
        guard let state = try directory.state() else { throw missing(directory) }
        var playground = Playground(directory, state, SignalWatch())
        let names = playground.daemons.map(\.name)
        guard let daemon = playground.daemons.first(where: { $0.name == name }) else {
            throw Failure(
                .usage,
                "the playground in \(directory.path) has no '\(name)'"
                    + Suggestion.text(for: name, in: names)
                    + "\nit has " + names.joined(separator: ", "))
        }
        try body(&playground, daemon)
        return .ok
    }

    // MARK: status

    private static func playgroundStatus(_ invocation: Invocation) throws(Failure) -> ExitCode {
        let directory = try directory(invocation)
        guard let state = try directory.state() else { throw missing(directory) }
        let playground = Playground(directory, state, SignalWatch())
        let report = PlaygroundReport(playground, timeout: try invocation.requestTimeout())
        if invocation.wantsJSON {
            Terminal.data(report.json.encoded(pretty: true))
        } else {
            for line in report.lines(Palette(invocation)) { Terminal.data(line) }
        }
        return report.isHealthy ? .ok : .unhealthy
    }

    private static func directory(_ invocation: Invocation) throws(Failure) -> PlaygroundDirectory {
        guard let path = invocation.string("dir"), !path.isEmpty else {
            throw invocation.usage("--dir DIR is missing: the directory of the playground")
        }
        return try PlaygroundDirectory(path)
    }

    private static func missing(_ directory: PlaygroundDirectory) -> Failure {
        Failure(
            .refused,
            "there is no playground in \(directory.path)"
                + "\nto make one: kvctl playground up --dir \(directory.path)")
    }
}

/// What to do with a cluster that runs.
enum PlaygroundHints {
    static func lines(_ playground: Playground, isDetached: Bool) -> [String] {
        guard let router = playground.daemons.first(where: { $0.kind == .router }) else {
            return []
        }
        let directory = playground.directory.path
        var lines = [
            "connect:  redis-cli -p \(router.port)",
            "try:      redis-cli -p \(router.port) HSET stocks A 120 B 75",
            "          redis-cli -p \(router.port) HGETALL stocks",
            "          kvctl shards --dir \(directory)",
            "          kill -9 a node's pid, watch, then: kvctl playground start node-1 --dir \(directory)",
        ]
        if let prometheus = playground.daemons.first(where: { $0.kind == .prometheus }) {
            lines.append("metrics:  \(prometheus.url)")
        }
        if isDetached { lines.append("stop:     kvctl playground down --dir \(directory)") }
        return lines
    }
}
