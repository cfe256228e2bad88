// The `kvcontrollerd` program: settings in, one controller run until it is told to stop.

import Configuration
import ControllerCore
import Daemon
import EventLoop
import Glibc
import KVBase
import MetadataBackup
import MetadataCore
import MetadataStore
import Metrics
import ObjectStore
import SystemdSupport

public enum ControllerMain {
    private static let settings: [Setting] = [
        Setting(
            "name", .string, required: true,
            help: "The controller's name: letters, digits, '-', '_' and '.'."),
        Setting("data", .path, required: true, help: "Directory of the metadata store."),
        Setting(
            "listen.rpc", .address, default: "127.0.0.1:7300",
            help: "Address for nodes, routers and kvctl."),
        Setting(
            "peers", .list,
            help:
                "NAME=HOST:PORT of every controller when the cluster is founded, this one included; "
                + "without it, one alone. Later: kvctl controller."),
        Setting(
            "metadata", .choice(["embedded", "etcd"]), default: "embedded",
            help:
                "Where the metadata is kept: among the controllers themselves, or in etcd. The same for all "
                + "controllers."),
        Setting(
            "etcd.endpoints", .list,
            help: "With metadata = etcd: http://HOST:PORT or https://HOST:PORT of its members."),
        Setting(
            "etcd.prefix", .string, default: "rangekeeper/",
            help: "In front of every key in etcd: one of its own for each Rangekeeper cluster."),
        Setting(
            "etcd.ca", .path, help: "PEM file of the authority of etcd's certificates."),
        Setting(
            "etcd.cert", .path, help: "PEM file of this controller's certificate for etcd."),
        Setting(
            "etcd.key", .path, credential: true, help: "PEM file of the key of etcd.cert."),
        Setting("etcd.user", .string, help: "User of etcd, with etcd.password.file."),
        Setting(
            "etcd.password.file", .path, credential: true,
            help: "File with the password of etcd.user, nothing else in it."),
        Setting(
            "etcd.session", .duration(.seconds(2)...(.seconds(60))), default: "3s",
            help:
                "How long after its death an acting controller keeps others from acting; whole seconds."
        ),
        Setting(
            "groups.initial", .integer(1...1_000), default: "2",
            help: "Groups formed when enough nodes are there, and for each further kind of group."),
        Setting(
            "replicas.default", .choice(["1", "3", "5"]), default: "3",
            help: "Replicas of a group when a table does not say."),
        Setting(
            "node.suspect.after", .duration(.milliseconds(100)...(.seconds(600))),
            default: "600ms", help: "A node not heard for this long loses its leaders."),
        Setting(
            "node.down.after", .duration(.milliseconds(500)...(.seconds(86_400))),
            default: "5s", help: "A node not heard for this long is down."),
        Setting(
            "repair", .choice(["off", "auto"]), default: "auto",
            help: "auto: replicas of nodes that stay down are replaced."),
        Setting(
            "repair.after", .duration(.milliseconds(0)...(.seconds(86_400))), default: "5s",
            help: "How long a node is down before its replicas are replaced."),
        Setting(
            "ill.after", .duration(.seconds(1)...(.seconds(86_400))), default: "30s",
            help: "How long a node or disk answers late before its replicas are replaced."),
        Setting(
            "backup.to", .string,
            help:
                "Where the metadata is backed up to, without pause: a directory, or "
                + "s3://BUCKET/PREFIX?endpoint=URL&region=NAME&ca=FILE. The same for all controllers."
        ),
        Setting(
            "backup.credentials", .path,
            help:
                "File with aws_access_key_id and aws_secret_access_key; without it "
                + "$CREDENTIALS_DIRECTORY/backup, then the environment."),
        Setting(
            "backup.snapshot.every", .duration(.seconds(10)...(.seconds(30 * 86_400))),
            default: "1h", reloads: true, help: "Time between two full snapshots in the backup."),
        Setting(
            "backup.keep", .duration(.seconds(60)...(.seconds(3_650 * 86_400))),
            default: "7d", reloads: true,
            help: "States of this time can be restored; older ones are deleted."),
    ]

    /// Runs the daemon; never returns.
    public static func run() -> Never {
        let daemon = DaemonContext.start(
            name: "kvcontrollerd", summary: "The metadata store and controller of Rangekeeper.",
            settings: settings
        ) { (settings) throws(DatabaseError) in _ = try ControllerServerSettings(settings) }
        let log = daemon.log.component("controller")
        let metrics = ControllerMetrics(daemon.metrics)
        let quorumMetrics = QuorumMetrics(daemon.metrics)
        let pages = ControllerPages()
        pages.add(to: daemon)
        let backupMetrics = BackupMetrics(daemon.metrics)
        do throws(DatabaseError) {
            let own = try ControllerServerSettings(daemon.settings)
            try createDirectory(daemon.settings.string("data"))
            try own.files.settle(own.place)
            if let staleness = own.staleness { log.warning(staleness) }
            daemon.addReadinessCheck("controller") {
                // A standby is ready to take over: it knows who leads.
                metrics.isServing.value == 1 || metrics.hasLeader.value == 1
                    ? nil : pages.obstacle ?? "knows no acting controller"
            }
            try daemon.startAdmin()
            try daemon.serve { (loop) throws(DatabaseError) in
                let server = try ControllerServer(
                    settings: own, loop: loop, log: log, metrics: metrics,
                    quorumMetrics: quorumMetrics, backupMetrics: backupMetrics, pages: pages,
                    registry: daemon.metrics,
                    onMove: { daemon.requestRestart(reason: $0) }
                ) { error in
                    daemon.requestStop(reason: error.message, exitCode: 1)
                }
                try server.start()
                return server
            }
            daemon.watchOnLoop("reconcile") { UInt64(metrics.lastTick.value) }
        } catch {
            daemon.fail(error)
        }
        daemon.ready { metrics.sentence(quorumMetrics, obstacle: pages.obstacle) }
        daemon.runUntilStopped()
    }

    private static func createDirectory(_ path: String) throws(DatabaseError) {
        var built = path.hasPrefix("/") ? "/" : ""
        for part in path.split(separator: "/") {
            built += part
            guard mkdir(built, 0o750) == 0 || errno == EEXIST else {
                throw DatabaseError(
                    .storageFailed, "create directory \(built): \(String(cString: strerror(errno)))"
                )
            }
            built += "/"
        }
    }
}

extension BackupSettings {
    init(_ settings: Settings) {
        self.init()
        snapshotEvery = settings.duration("backup.snapshot.every").count / 1_000_000
        keep = settings.duration("backup.keep").count / 1_000_000
    }
}

/// What one controller process needs to know.
struct ControllerServerSettings: Sendable {
    var core: ControllerSettings
    var quorum: QuorumNode.Settings
    /// Nil when the metadata is not in etcd.
    var etcd: EtcdNode.Settings?
    /// As the settings say, not as the last move does.
    var configured: MetadataForm
    var configuredEtcd: (endpoints: [String], prefix: String)
    /// What this controller keeps about moves, and where the metadata is by it.
    var files: MoveFiles
    var place: MetadataPlace
    /// What this controller would use of etcd at other endpoints, below another prefix.
    var etcdAt: @Sendable ([String], String) throws(DatabaseError) -> EtcdNode.Settings
    var rpcAddress: SocketAddress
    /// Empty when there is no admin HTTP.
    var adminAddress: String
    /// Nil when no backup is asked for.
    var backup: Backup?

    struct Backup: Sendable {
        var destination: any ObjectStore
        var settings: BackupSettings
    }
}

extension ControllerServerSettings {
    init(_ settings: Settings) throws(DatabaseError) {
        core = ControllerSettings(name: settings.string("name"))
        core.groupsInitial = settings.integer("groups.initial")
        core.replicasDefault = Int(settings.string("replicas.default")) ?? 3
        core.nodeSuspectAfter = settings.duration("node.suspect.after")
        core.nodeDownAfter = settings.duration("node.down.after")
        core.repairs = settings.string("repair") == "auto"
        core.repairAfter = settings.duration("repair.after")
        core.illAfter = settings.duration("ill.after")
        guard core.nodeSuspectAfter < core.nodeDownAfter else {
            throw DatabaseError(
                .invalidRequest, "node.suspect.after must be shorter than node.down.after")
        }
        guard let listening = try settings.address("listen.rpc") else {
            throw DatabaseError(.invalidRequest, "listen.rpc is empty")
        }
        rpcAddress = listening
        adminAddress = settings.optionalString("listen.admin") ?? ""
        if let place = settings.optionalString("backup.to") {
            backup = Backup(
                destination: try ObjectStoreLocation.open(
                    place, credentials: settings.optionalString("backup.credentials"),
                    creates: true),
                settings: BackupSettings(settings))
        }
        let data = settings.string("data")
        let peers = try Self.peers(settings.list("peers"))
        let name = core.name
        let own = peers.first { $0.name == name }
        guard peers.isEmpty || own != nil else {
            throw DatabaseError(
                .invalidRequest, "peers does not name this controller, \(name)")
        }
        quorum = QuorumNode.Settings(
            name: name, address: own?.address ?? listening.description, peers: peers,
            directory: data + "/quorum", olderDirectory: data + "/metadata")
        let (address, admin) = (quorum.address, adminAddress)
        configured = settings.string("metadata") == "etcd" ? .etcd : .embedded
        configuredEtcd = (settings.list("etcd.endpoints"), settings.string("etcd.prefix"))
        files = MoveFiles(data: data)
        place = try files.place(
            configured: configured, prefix: configuredEtcd.prefix, name: name)
        etcd = try Self.etcd(settings, place, data, address, admin)
        etcdAt = { (endpoints, prefix) throws(DatabaseError) in
            try Self.etcd(settings, endpoints, prefix, data, address, admin)
        }
        if case .embedded = place { quorum.mayFound = false }
    }

    /// The last move of the metadata that this controller knows of.
    var move: MetadataMove? {
        switch place {
        case .configured: nil
        case .etcd(let move), .embedded(let move, _): move
        }
    }

    var form: MetadataForm { etcd == nil ? .embedded : .etcd }

    /// What to change in the settings, which name a place that the metadata has left; nil when they do not.
    var staleness: String? { MetadataPlace.objection(to: configured, after: move) }

    /// Where others reach this controller.
    var ownAddress: String { quorum.address }

    private static func peers(_ list: [String]) throws(DatabaseError) -> [QuorumNode.Peer] {
        var peers: [QuorumNode.Peer] = []
        for text in list {
            let parts = text.split(separator: "=", maxSplits: 1).map(String.init)
            guard parts.count == 2 else {
                throw DatabaseError(
                    .invalidRequest, "peers is a list of NAME=HOST:PORT, not '\(text)'")
            }
            let peer = QuorumNode.Peer(
                name: parts[0], address: try SocketAddress.parse(parts[1]).description)
            guard !peers.contains(where: { $0.name == peer.name || $0.address == peer.address })
            else {
                throw DatabaseError(.invalidRequest, "peers names \(text) twice")
            }
            peers.append(peer)
        }
        guard peers.count <= ControllerRoster.membersMax, peers.isEmpty || peers.count % 2 == 1
        else {
            throw DatabaseError(
                .invalidRequest, "peers names 1, 3 or 5 controllers, not \(peers.count)")
        }
        return peers
    }
}
