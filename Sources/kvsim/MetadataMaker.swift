// kvsim metadata: the metadata of a large cluster on disk, for measuring what real processes do with it.

import ControllerCore
import Glibc
import KVBase
import MetadataBackup
import MetadataCore
import MetadataStore
import ObjectStore
import ReplicatedLog
import ReplicationCore
import ShardCore
import WireProtocol

/// Lets the real controller make a cluster of simulated nodes, then writes what it stored: as the data
/// directory of a first controller, as a backup, and what each node would answer who asks for its holdings.
struct MetadataMaker {
    private let groups: Int
    private let nodes: Int
    private let spares: Int
    private let shards: Int
    /// The port of the first node on 127.0.0.1; the others follow.
    private let nodePort: Int
    private var into: String?
    private var peers: [(name: String, address: String)] = []
    private var backup: String?
    private var holdings: String?

    init(_ words: ArraySlice<String>) {
        var rest = words
        var left: [String] = []
        while let word = rest.popFirst() {
            func value() -> String {
                guard let next = rest.popFirst() else { refuse("\(word) needs a value") }
                return next
            }
            switch word {
            case "--into": into = value()
            case "--backup": backup = value()
            case "--holdings": holdings = value()
            case "--peers":
                for text in value().split(separator: ",") {
                    let parts = text.split(separator: "=", maxSplits: 1).map(String.init)
                    guard parts.count == 2, parts[1].contains(":") else {
                        refuse("--peers is a list of NAME=HOST:PORT, not '\(text)'")
                    }
                    peers.append((parts[0], parts[1]))
                }
            default: left.append(word)
            }
        }
        let values = numbers(
            left[...],
            defaults: [
                ("groups", 1_000), ("nodes", 600), ("spares", 150), ("shards", 1_000_000),
                ("node-port", 20_000),
            ])
        groups = values["groups"]!
        nodes = values["nodes"]!
        spares = values["spares"]!
        shards = values["shards"]!
        nodePort = values["node-port"]!
        if into == nil, backup == nil, holdings == nil {
            refuse("metadata needs --into, --backup or --holdings")
        }
        if into != nil, peers.isEmpty { refuse("--into needs --peers") }
    }

    func run() {
        var settings = ControllerSettings(name: "controller-1")
        settings.groupsInitial = groups
        let firstPort = nodePort
        var fleet = SimulatedFleet(
            settings: settings, nodes: nodes, spares: spares,
            address: { "127.0.0.1:\(firstPort + $0)" })
        _ = fleet.fill(shards: shards)
        // Without the lease of the controller that made them: it has ended.
        let records = fleet.snapshot.records.filter { $0.lease == .none }
        row("records", "\(records.count), \(fleet.controller.shards.count) shards")
        do throws(DatabaseError) {
            if let into { try found(into, records, fleet) }
            if let backup { try write(backup, records, fleet) }
            if let holdings { try tell(holdings, fleet) }
        } catch {
            fail(error.description)
        }
    }

    private func found(
        _ directory: String, _ records: [MetadataRecord], _ fleet: SimulatedFleet
    ) throws(DatabaseError) {
        let state = RevisionedState(
            revision: fleet.snapshot.revision, records: records, leases: [], leaseHighest: .none,
            now: .origin)
        var image = MetadataImage(
            founder: peers[0].name, address: peers[0].address, state: state)
        for peer in peers.dropFirst() {
            _ = try image.admit(name: peer.name, address: peer.address)
        }
        if mkdir(directory, 0o755) != 0, errno != EEXIST { fail("cannot make \(directory)") }
        let files = try QuorumFiles(directory: directory + "/quorum")
        guard try files.identity() == nil else { fail("\(directory) holds metadata already") }
        try files.create(
            QuorumIdentity(
                cluster: fleet.controller.cluster, replica: ReplicaID(1), name: peers[0].name),
            image: image)
        row("a controller's data", directory)
    }

    private func write(
        _ directory: String, _ records: [MetadataRecord], _ fleet: SimulatedFleet
    ) throws(DatabaseError) {
        let archive = BackupArchive(DirectoryStore(path: directory))
        let bytes = try archive.store(
            BackupObject(
                name: BackupName(
                    snapshotAt: fleet.snapshot.revision, at: UInt64(time(nil)) * 1_000),
                cluster: fleet.controller.cluster, contents: .snapshot(records)))
        row("a backup", "\(directory), \(mebibytes(bytes))")
    }

    /// One file per node with its replicas: `PORT`, the frames that answer a tool's hello and its
    /// request for the holdings.
    private func tell(_ directory: String, _ fleet: SimulatedFleet) throws(DatabaseError) {
        if mkdir(directory, 0o755) != 0, errno != EEXIST { fail("cannot make \(directory)") }
        let controller = fleet.controller
        var shardsOf: [GroupID: [ShardHolding]] = [:]
        for shard in controller.shards.elements {
            guard let table = controller.tables[shard.table] else { continue }
            shardsOf[shard.group, default: []].append(
                ShardHolding(shard: shard, partitioning: table.partitioning, standing: .owned))
        }
        let records = controller.nodes.elements.map(\.record)
        var bytes = 0
        for node in fleet.nodes {
            guard let record = controller.nodes[node.id]?.record else { continue }
            var writer = ByteWriter()
            Frame.append(.hello, to: &writer) {
                Hello(role: .node, cluster: controller.cluster, node: node.id, name: node.name)
                    .encode(into: &$0)
            }
            let head = NodeHoldings(
                cluster: controller.cluster, node: record, controllerTerm: controller.term,
                isControlled: false, mapRevision: controller.mapRevision, nodes: records,
                tables: controller.tables.elements.map { $0 },
                groups: controller.groups.elements.map(\.record))
            Frame.append(.holdings, to: &writer) { head.encodeHead(into: &$0) }
            for report in node.replicas.elements {
                guard let group = controller.groups[report.group]?.record,
                    let own = group.placements.first(where: { $0.replica == report.replica })
                else { continue }
                let holding = ReplicaHolding(
                    group: group.id, replica: report.replica, engine: group.engine, disk: own.disk,
                    isServing: report.role == .leader, term: report.term, applied: report.applied,
                    voters: group.placements, learners: [], shards: shardsOf[group.id] ?? [])
                Frame.append(.holdings, to: &writer) { holding.encode(into: &$0) }
            }
            Frame.append(.holdings, to: &writer) { _ in }
            let port = String(record.rpcAddress.split(separator: ":").last ?? "")
            bytes += writer.count
            try DurableFile.replace(directory + "/" + port, with: writer.take())
        }
        row("what nodes hold", "\(directory), \(mebibytes(bytes))")
    }
}
