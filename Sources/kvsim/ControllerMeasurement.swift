// kvsim controller: what a large cluster costs the acting controller, step by step.

import ControllerCore
import Glibc
import KVBase
import MetadataCore
import ShardCore

struct ControllerMeasurement {
    let groups: Int
    let nodes: Int
    let spares: Int
    let shards: Int
    let failures: Int

    init(_ words: ArraySlice<String>) {
        let values = numbers(
            words,
            defaults: [
                ("groups", 1_000), ("nodes", 600), ("spares", 150), ("shards", 200_000),
                ("failures", 100),
            ])
        groups = values["groups"]!
        nodes = values["nodes"]!
        spares = values["spares"]!
        shards = values["shards"]!
        failures = min(values["failures"]!, nodes / 2)
    }

    func run() {
        let before = residentBytes()
        var settings = ControllerSettings(name: "controller-1")
        settings.groupsInitial = groups
        var fleet = SimulatedFleet(settings: settings, nodes: nodes, spares: spares)
        let tables = fleet.fill(shards: shards)
        let replicas = fleet.controller.groups.elements.reduce(0) {
            $0 + $1.record.placements.count
        }
        print(
            "\(fleet.controller.groups.count) groups, \(replicas) replicas, "
                + "\(fleet.controller.shards.count) shards of \(tables) tables, \(nodes) nodes and "
                + "\(spares) spares; CPU time of one step of the controller")
        for name in ["table request", "outcomes of commands", "an answer of the store"] {
            row("creating tables: \(name)", fleet.steps[name]?.description ?? "none")
        }

        fleet.steps = [:]
        fleet.pass(milliseconds: 1_000)
        report(&fleet, "at rest")
        measureFullReports(&fleet)
        measureMap(&fleet)
        row("memory with all that", mebibytes(residentBytes() - before))
        measureTakeOver(&fleet)
        measureFailures(&fleet)
        fleet.steps = [:]
        fleet.drop("table-0")
        report(&fleet, "dropping a table")
        row("memory at the end", mebibytes(residentBytes() - before))
    }

    private func report(_ fleet: inout SimulatedFleet, _ title: String) {
        for name in fleet.steps.keys.sorted() {
            row("\(title): \(name)", fleet.steps[name]!.description)
        }
        fleet.steps = [:]
    }

    /// What a node tells of all shards of the groups it leads, as after it has registered.
    private func measureFullReports(_ fleet: inout SimulatedFleet) {
        var reports: [NodeID: [ShardReport]] = [:]
        for shard in fleet.controller.shards.elements {
            guard let leader = fleet.controller.groups[shard.group]?.leader.node else { continue }
            reports[leader, default: []].append(
                ShardReport(
                    shard: shard.id, epoch: shard.epoch, bytes: 1 << 20, records: 1_000))
        }
        fleet.beat("heartbeat with all shards") { reports[$0] ?? [] }
        report(&fleet, "at rest")
    }

    private func measureMap(_ fleet: inout SimulatedFleet) {
        var making = Durations()
        var encoding = Durations()
        let updates = making.measure { fleet.controller.mapUpdates(since: .none) }
        var bytes = 0
        encoding.measure {
            for piece in updates.flatMap({ $0.pieces() }) {
                var writer = ByteWriter()
                piece.encode(into: &writer)
                bytes += writer.count
            }
        }
        row("the whole map: making", making.description)
        row("the whole map: encoding", "\(encoding.description), \(mebibytes(bytes))")
    }

    private func measureTakeOver(_ fleet: inout SimulatedFleet) {
        var reading = Durations()
        // The copy of a controller that stood by, as it is read when that one comes to act.
        var copy = RevisionedState(
            revision: .none, records: fleet.snapshot.records, leases: [], leaseHighest: .none,
            now: fleet.now)
        var ranging = Durations()
        let count = ranging.measure { copy.range(prefix: []).count }
        copy = RevisionedState()
        row("take-over: the copy in memory", "\(ranging.description), \(count) records")
        fleet.takeOver(&reading)
        row("take-over: reading the store", reading.description)
        fleet.register()
        fleet.pass(milliseconds: 3_000)
        report(&fleet, "take-over")
    }

    /// Many nodes die at once; everything they led is led again, then replaced from the spares.
    private func measureFailures(_ fleet: inout SimulatedFleet) {
        // Nodes of different groups, so that majorities survive.
        var dead: Set<NodeID> = []
        for place in fleet.nodes.indices where dead.count < failures && !fleet.nodes[place].isSpare
        {
            let id = fleet.nodes[place].id
            let endangers = fleet.controller.groups.elements.contains { group in
                group.record.placements.contains { $0.node == id }
                    && group.record.placements.contains { dead.contains($0.node) }
            }
            if !endangers { dead.insert(id) }
        }
        let places = fleet.nodes.indices.filter { dead.contains(fleet.nodes[$0].id) }
        for place in places { fleet.kill(place) }
        let before = fleet.now
        func leaderless() -> Int { fleet.controller.groups.elements.count { !$0.hasLeader } }
        let orphaned = leaderless()
        while leaderless() > 0, fleet.now - before < .seconds(60) { fleet.pass(milliseconds: 25) }
        row(
            "failures: leaders replaced",
            "\(orphaned) groups lost theirs with \(places.count) nodes; all led after "
                + "\((fleet.now - before).count / 1_000_000) ms of simulated time")
        report(&fleet, "failures")
        func exposed() -> Int {
            fleet.controller.groups.elements.count { group in
                group.record.placements.contains { dead.contains($0.node) }
            }
        }
        let replaced = exposed()
        while exposed() > 0, fleet.now - before < .seconds(600) { fleet.pass(milliseconds: 150) }
        row(
            "repair: groups whole again",
            "\(replaced - exposed()) of \(replaced) after "
                + "\((fleet.now - before).count / 1_000_000_000) s of simulated time")
        report(&fleet, "repair")
    }
}
