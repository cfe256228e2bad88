// `restore` and `recover`: the data directory of a controller for a cluster that has lost all of its
// controllers. Nothing is changed on the nodes.

import ControllerCore
import Digest
import EtcdMetadata
import FoundationEssentials
import KVBase
import MetadataBackup
import MetadataCore
import MetadataStore
import OperatorClient
import ReplicationCore

extension Command {
    private static let targetFlags: [Flag] =
        [
            .option(
                "into", "DIR",
                "the controller's data directory: its `data` setting; must hold no metadata"),
            .option("name", "NAME", "the controller's name"),
            .option(
                "peers", "NAME=HOST:PORT,...",
                "all controllers of the cluster, this one included; the others start with empty directories"
            ),
            .option(
                "nodes", "HOST:PORT,...",
                "RPC addresses of nodes to ask, beside those that are known"),
            .option(
                "metadata", "STORE", choices: ["embedded", "etcd"],
                "where it is written: embedded unless told; etcd needs --etcd-endpoints, and neither --into, "
                    + "--name nor --peers"),
        ] + EtcdFlags.all + [
            .toggle("incomplete", "go on although something is missing, as the findings say"),
            .toggle("dry-run", "say what would be restored, and write nothing"),
        ]
    private static let targetDetails = """
        All controllers must be stopped, and the nodes must run. The groups themselves decide what is \
        where: their
        members and shards are asked for and win over anything older. Afterwards start the controller; \
        never start an
        old one with its old data. With --dir the first controller of that playground is meant. With --metadata \
        etcd it is
        written into etcd, below a prefix that holds no metadata.
        """

    static let restoreCommands: [Command] = [
        Command(
            path: ["restore"],
            summary: "new metadata for a cluster without controllers, from a backup",
            details: targetDetails,
            flags: BackupSource.flags + [BackupSource.momentFlag] + targetFlags,
            examples: [
                "restore --from /var/backups/rangekeeper --into /var/lib/rangekeeper/controller "
                    + "--name c1 --peers c1=10.0.0.1:7300 --dry-run",
                "restore --from /backup --at 2026-03-01T12:00:00Z --dir /tmp/rk",
            ], run: { (invocation) throws(Failure) in try restore(invocation) }),
        Command(
            path: ["recover"],
            summary: "as restore, without any backup: from the nodes' records alone",
            details: targetDetails + """

                Lost are: settings changed at run time, weights, maintenance, held nodes, histories, \
                the operation list, and
                names of tables that no node has kept.
                """,
            flags: targetFlags,
            examples: [
                "recover --nodes 10.0.0.11:7100 --into /var/lib/rangekeeper/controller --name c1 "
                    + "--peers c1=10.0.0.1:7300 --dry-run"
            ], run: { (invocation) throws(Failure) in try recover(invocation) }),
    ]

    private static func restore(_ invocation: Invocation) throws(Failure) -> ExitCode {
        guard let source = try BackupSource(invocation) else {
            throw invocation.usage("--from is missing; without any backup: kvctl recover")
        }
        let moment = try invocation.moment()
        let target = try RestoreTarget(invocation)
        RestoreProgress.show("reads \(source.place)")
        let (state, newest) = try failing { () throws(DatabaseError) in
            let state = try source.archive.state(at: moment) {
                RestoreProgress.show("reads \(source.place): \($0) of \($1) objects")
            }
            return (state, try source.archive.catalog().objects.last?.to ?? state.revision)
        }
        let addresses = try failing { () throws(DatabaseError) in
            try MetadataSummary.nodeAddresses(state.records)
        }
        return try rebuild(
            older: state.records, newest: newest, addresses: addresses,
            damaged: state.findings.map(\.text), target, invocation,
            origin: "revision \(state.revision) of \(Clock.text(Int(state.at))) in \(source.place)")
    }

    private static func recover(_ invocation: Invocation) throws(Failure) -> ExitCode {
        let target = try RestoreTarget(invocation)
        // Above what a backup may hold that nobody looked at: the metadata can be backed up there again.
        let newest = Revision(UInt64(Date.now.timeIntervalSince1970))
        return try rebuild(
            older: [], newest: newest, addresses: [], damaged: [], target, invocation,
            origin: "the nodes' records alone")
    }

    private static func rebuild(
        older: [MetadataRecord], newest: Revision, addresses: [String], damaged: [String],
        _ target: RestoreTarget, _ invocation: Invocation, origin: String
    ) throws(Failure) -> ExitCode {
        let asked = addresses + target.nodes
        guard !asked.isEmpty else {
            throw invocation.usage("no node is known: name some by --nodes")
        }
        let isDry = invocation.has("dry-run")
        let objection = try target.objection()
        if let objection, !isDry { throw objection }
        let census = NodeCensus.settled(asked, timeout: try invocation.requestTimeout())
        let clock = UInt64(Date.now.timeIntervalSince1970 * 1_000)
        RestoreProgress.show("puts the metadata together")
        var recovered = try failing { () throws(DatabaseError) in
            try MetadataRecovery.recover(
                older: older, revision: newest, holdings: census.holdings, clock: clock,
                origin: origin, request: request(invocation, target))
        }
        recovered.note("damaged", damaged.map { $0 + "; other objects lead to this state too" })
        recovered.note("refused", [objection?.message].compactMap { $0 })
        let isRefused = recovered.findings.contains { $0.kind == "refused" }
        let isIncomplete = recovered.findings.contains { $0.kind == "incomplete" }
        let mayWrite = !isRefused && (!isIncomplete || invocation.has("incomplete"))
        let writes = mayWrite && !isDry
        if writes {
            RestoreProgress.show("writes \(recovered.records.count) records to \(target.directory)")
            try target.write(recovered, clock: clock)
        }
        RestoreProgress.end()
        let document: JSONValue = [
            "origin": .string(origin), "nodes": census.json,
            "findings": .array(recovered.findings.map { JSONValue(encoding: $0) }),
            "cluster": .string(hex(recovered.cluster)),
            "revision": .unsigned(recovered.revision.rawValue),
            "controllerTerm": .unsigned(recovered.controllerTerm.rawValue),
            "groups": .integer(Int64(recovered.groups)),
            "unconfirmed": .array(
                recovered.unconfirmed.map { .integer(Int64($0.rawValue)) }),
            "tables": .integer(Int64(recovered.tables)),
            "shards": .integer(Int64(recovered.shards)),
            "moves": .integer(Int64(recovered.moves)), "written": .bool(writes),
            "into": .string(target.directory),
        ]
        print(document, invocation, RestoreReport.lines)
        if mayWrite { return .ok }
        Terminal.say(
            isRefused
                ? "kvctl: nothing is restored: the findings above forbid it"
                : "kvctl: nothing is restored: something is missing; start more nodes and repeat, or "
                    + "say --incomplete")
        return .refused
    }
}

extension Command {
    /// For the audit log of what is restored: the command line as far as it decides about it.
    fileprivate static func request(
        _ invocation: Invocation, _ target: RestoreTarget
    ) -> MetadataRecovery.Request {
        var arguments: [String: JSONValue] = ["into": .string(target.directory)]
        for flag in ["from", "at", "nodes"] {
            if let value = invocation.string(flag) { arguments[flag] = .string(value) }
        }
        if invocation.has("incomplete") { arguments["incomplete"] = .bool(true) }
        return MetadataRecovery.Request(
            caller: ToolGreeting.caller, verb: invocation.command.path.joined(separator: "."),
            arguments: JSONValue.object(arguments).encoded(pretty: false), hash: SHA256.digest)
    }
}

/// Where the metadata is written: the directory of a controller that gets it, or etcd.
struct RestoreTarget {
    /// Nil: into the directory.
    private let etcd: (transfer: EtcdTransfer, prefix: String)?
    private(set) var directory: String
    private(set) var name: String
    private(set) var peers: [(name: String, address: String)]
    /// To be asked.
    private(set) var nodes: [String]
    /// The data directories of the playground's other controllers, which must not act on what they have.
    private var others: [(name: String, data: String)] = []

    init(_ invocation: Invocation) throws(Failure) {
        nodes = (invocation.string("nodes") ?? "").split(separator: ",").map(String.init)
        (directory, name, peers) = ("", "", [])
        if invocation.string("metadata") == "etcd" {
            let settings = try EtcdFlags.settings(invocation)
            let transfer = try failing { () throws(DatabaseError) in try EtcdTransfer(settings) }
            etcd = (transfer, settings.prefix)
        } else {
            etcd = nil
        }
        if let playground = invocation.string("dir") {
            let place = try PlaygroundDirectory(playground)
            guard let state = try place.state() else {
                throw Failure(.refused, "there is no playground in \(playground)")
            }
            let daemons = place.daemons(state)
            peers = daemons.filter { $0.kind == .controller }.map { ($0.name, $0.address) }
            nodes += daemons.filter { $0.kind == .node }.map(\.address)
            guard let first = daemons.first(where: { $0.kind == .controller }) else {
                throw Failure(.refused, "the playground in \(playground) has no controller")
            }
            directory = first.data[0]
            name = first.name
            others = daemons.filter { $0.kind == .controller }.map { ($0.name, $0.data[0]) }
            if let etcd {
                directory = "\(etcd.prefix) in etcd"
            } else {
                others.removeFirst()
            }
            return
        }
        if let etcd {
            directory = "\(etcd.prefix) in etcd"
            return
        }
        guard let directory = invocation.string("into"), let name = invocation.string("name"),
            let list = invocation.string("peers")
        else { throw invocation.usage("--into, --name and --peers are needed, or --dir") }
        self.directory = directory
        self.name = name
        peers = []
        for text in list.split(separator: ",") {
            let parts = text.split(separator: "=", maxSplits: 1).map(String.init)
            guard parts.count == 2, parts[1].contains(":") else {
                throw invocation.usage("--peers is a list of NAME=HOST:PORT, not '\(text)'")
            }
            peers.append((parts[0], parts[1]))
        }
        guard peers.contains(where: { $0.name == name }) else {
            throw invocation.usage("--peers does not name \(name)")
        }
    }

    private var quorum: String { directory + "/quorum" }

    /// Why nothing may be written there: it holds metadata, or the directory of another controller does,
    /// which would act on its own.
    func objection() throws(Failure) -> Failure? {
        let beside = others.filter { Self.metadata(in: $0.data) != nil }
        guard beside.isEmpty else {
            let names = beside.map(\.name).joined(separator: ", ")
            let places = beside.map(\.data).joined(separator: ", ")
            return Failure(
                .refused,
                "\(names): metadata in \(places), with which they would act beside the restored "
                    + "controller; stop all controllers, move these directories away and keep them")
        }
        if let etcd {
            return try failing { () throws(DatabaseError) in
                switch try etcd.transfer.look() {
                // The latter of an attempt that was interrupted; looked at again before it is replaced.
                case .nothing, .incoming: return nil
                case .metadata, .moved:
                    return Failure(
                        .refused,
                        "there is metadata below \(etcd.prefix) in etcd already: name another "
                            + "--etcd-prefix, or delete it (etcdctl del --prefix \(etcd.prefix))")
                }
            }
        }
        if let old = Self.metadata(in: directory) {
            return Failure(
                .refused,
                "\(old) exists: \(directory) holds metadata already; move it away first and keep it"
            )
        }
        return nil
    }

    /// The file or directory that makes a data directory one with metadata; nil when there is none.
    private static func metadata(in directory: String) -> String? {
        [directory + "/quorum/identity", directory + "/metadata"].first {
            FileManager.default.fileExists(atPath: $0)
        }
    }

    /// Makes the directory that of the first controller of a new group with these records. The identity
    /// comes last: a crash before leaves a directory that does not count.
    func write(_ recovered: RecoveredMetadata, clock: UInt64) throws(Failure) {
        if let objection = try objection() { throw objection }
        if let etcd {
            return try failing { () throws(DatabaseError) in
                let state = RevisionedState(
                    revision: recovered.revision, records: recovered.records, leases: [],
                    leaseHighest: .none, now: .origin)
                try etcd.transfer.bring(state, id: clock, cluster: recovered.cluster) {
                    RestoreProgress.show(
                        "writes to \(directory): \($0) of \(state.records.count) records")
                }
                try etcd.transfer.complete(id: clock)
            }
        }
        do {
            try FileManager.default.createDirectory(
                atPath: directory, withIntermediateDirectories: true)
        } catch {
            throw Failure(.failure, "cannot make \(directory): \(error)")
        }
        // Ids of their own: what is left of the lost group is never taken for a member of this one.
        let replica = ReplicaID(UInt32(truncatingIfNeeded: clock / 1_000))
        try failing { () throws(DatabaseError) in
            let state = RevisionedState(
                revision: recovered.revision, records: recovered.records, leases: [],
                leaseHighest: .none, now: .origin)
            guard let own = peers.first(where: { $0.name == name }) else { return }
            var image = MetadataImage(
                founder: name, address: own.address, state: state, replica: replica)
            for peer in peers where peer.name != name {
                _ = try image.admit(name: peer.name, address: peer.address)
            }
            // What it says of a move is of metadata that is lost.
            try MoveFiles(data: directory).forget()
            let files = try QuorumFiles(directory: quorum)
            guard try files.identity() == nil else {
                throw DatabaseError(.refused, "\(quorum) belongs to a controller already")
            }
            try files.create(
                QuorumIdentity(cluster: recovered.cluster, replica: replica, name: name),
                image: image)
        }
    }
}

enum RestoreReport {
    static func lines(_ document: JSONValue, _ palette: Palette) -> [String] {
        let nodes = document["nodes"].elements
        let silent = nodes.filter { $0["error"].string != nil }
        var lines = [
            "from \(document["origin"].text)",
            Quantity.of(nodes.count - silent.count, "node")
                + (nodes.count - silent.count == 1 ? " answers" : " answer")
                + (silent.isEmpty
                    ? "" : ", \(silent.count) \(silent.count == 1 ? "does" : "do") not:"),
        ]
        lines += silent.map { "  \($0["address"].text): \($0["error"].text)" }
        for finding in document["findings"].elements {
            let kind = finding["kind"].text
            let word =
                switch kind {
                case "refused": palette.bad(kind)
                case "incomplete", "damaged": palette.warning(kind)
                default: kind
                }
            lines.append("\(word): \(finding["text"].text)")
        }
        lines.append(
            "cluster \(document["cluster"].text): "
                + ["group", "table", "shard", "move"].map {
                    Quantity.of(document[$0 + "s"].int ?? 0, $0)
                }.joined(separator: ", ")
                + " under way; controller term " + document["controllerTerm"].text)
        lines.append(
            document["written"].bool == true
                ? palette.good("written to \(document["into"].text): start the controller there")
                : "nothing was written to \(document["into"].text)")
        return lines
    }
}
