// The `kvcontrollerd` program: settings in, one controller run until it is told to stop.

import Configuration
import ControllerCore
import Daemon
import EventLoop
import Glibc
import KVBase
import Metrics
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
            "controllers", .addressList,
            help: "Addresses of all controllers of the cluster; so far, at most one."),
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
    ]

    /// Runs the daemon; never returns.
    public static func run() -> Never {
        let daemon = DaemonContext.start(
            name: "kvcontrollerd", summary: "The metadata store and controller of Rangekeeper.",
            settings: settings)
        let log = daemon.log.component("controller")
        let metrics = ControllerMetrics(daemon.metrics)
        do throws(DatabaseError) {
            let own = try ControllerServerSettings(daemon.settings)
            daemon.addReadinessCheck("controller") {
                metrics.isServing.value == 1 ? nil : "does not act"
            }
            try daemon.startAdmin()
            try daemon.serve { (loop) throws(DatabaseError) in
                let server = try ControllerServer(
                    settings: own, loop: loop, log: log, metrics: metrics
                ) { error in
                    daemon.requestStop(reason: error.message, exitCode: 1)
                }
                try server.start()
                return server
            }
        } catch {
            daemon.fail(error)
        }
        daemon.ready(status: "serving")
        daemon.runUntilStopped()
    }
}

/// What one controller process needs to know.
struct ControllerServerSettings: Sendable {
    var core: ControllerSettings
    /// Exists.
    var storeDirectory: String
    var rpcAddress: SocketAddress
    /// Empty when there is no admin HTTP.
    var adminAddress: String
}

extension ControllerServerSettings {
    init(_ settings: Settings) throws(DatabaseError) {
        guard try settings.addresses("controllers").count <= 1 else {
            throw DatabaseError(
                .refused,
                "several controllers are not supported yet: leave controllers out or name one")
        }
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
        guard let address = try settings.address("listen.rpc") else {
            throw DatabaseError(.invalidRequest, "listen.rpc is empty")
        }
        rpcAddress = address
        adminAddress = settings.optionalString("listen.admin") ?? ""
        storeDirectory = settings.string("data") + "/metadata"
        try Self.createDirectory(storeDirectory)
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
