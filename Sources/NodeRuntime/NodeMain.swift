// The `kvnode` program: settings in, one node served until it is told to stop.

import Configuration
import Daemon
import EventLoop
import KVBase
import Metrics
import ReplicatedLog
import SystemdSupport

public enum NodeMain {
    private static let settings: [Setting] = [
        Setting(
            "name", .string, required: true,
            help: "The node's name in the cluster: letters, digits, '-', '_' and '.'."),
        Setting(
            "data", .list, required: true,
            help: "Data directories, one per disk; each gets a log and engines of its own."),
        Setting(
            "listen.rpc", .address, default: "127.0.0.1:7400",
            help: "Address for routers, other nodes and controllers; it is also what they dial."),
        Setting(
            "controllers", .addressList, required: true, help: "Addresses of the controllers."),
        Setting(
            "zone", .string, default: "",
            help: "Failure domain: a group's replicas are spread over zones."),
        Setting(
            "spare", .boolean, default: "false",
            help: "Join the spare pool: hold no replica until one must be replaced."),
        Setting(
            "log.checkpoint", .bytes(64 << 10...16 << 30), default: "32MiB", reloads: true,
            help: "Log bytes of a disk after which its engines are made durable: what a restart"
                + " replays at most."),
        Setting(
            "log.retain", .bytes(0...4 << 30), default: "16MiB",
            help: "Log bytes per group kept in memory for followers that lag; one that lags further"
                + " gets a snapshot."),
        Setting(
            "copy.rate", .bytes(4 << 10...16 << 30), default: "64MiB", reloads: true,
            help: "Most bytes per second that a group copies of a shard that moves to it, or sends"
                + " of itself to a new replica (there never less than 8 MiB/s while it lasts); requests"
                + " that get slow slow it down."),
        Setting(
            "cache", .bytes(1 << 20...1 << 40), default: "128MiB",
            help: "Memory for blocks of LSM engines, all disks together."),
        Setting(
            "slow.request", .duration(.zero...(.seconds(3_600))), default: "500ms", reloads: true,
            help: "A request that takes longer is told in the log with where its time went; 0 tells"
                + " none."),
        Setting(
            "scrub.period", .duration(.zero...(.seconds(365 * 86_400))), default: "7d",
            help: "Time between two checks of everything that is on disk; 0 checks only when asked"
                + " to (kvctl node scrub)."),
        Setting(
            "scrub.rate", .bytes(64 << 10...16 << 30), default: "32MiB",
            help: "Most bytes per second that such a check reads of a disk; a quarter of it while"
                + " requests take too long."),
    ]

    /// Runs the daemon; never returns.
    public static func run() -> Never {
        let daemon = DaemonContext.start(
            name: "kvnode", summary: "The data-plane node of Rangekeeper.", settings: settings
        ) { (settings) throws(DatabaseError) in _ = try NodeSettings(settings) }
        let log = daemon.log.component("node")
        let status = NodeStatus()
        do throws(DatabaseError) {
            let nodeSettings = try NodeSettings(daemon.settings)
            for directory in nodeSettings.dataDirectories {
                try DurableFile.createDirectory(directory)
            }
            let metrics = NodeMetrics(daemon.metrics)
            status.register(in: daemon.metrics)
            status.registerScrubs(in: daemon.metrics, period: nodeSettings.scrubPeriod)
            daemon.addReadinessCheck("node") { status.problem() }
            status.addPages(to: daemon)
            try daemon.startAdmin()
            try daemon.serve { (loop) throws(DatabaseError) in
                let server = try NodeServer(
                    settings: nodeSettings, loop: loop, log: log, metrics: metrics,
                    status: status
                ) { daemon.startupAdvanced($0) }
                try server.start()
                return server
            }
            daemon.watchOnLoop("tick") { status.ticks }
            for index in nodeSettings.dataDirectories.indices {
                daemon.watch("log-\(index)") { status.logProgress(index) }
                daemon.watch("scrub-\(index)") { status.scrubProgress(index) }
            }
        } catch {
            daemon.fail(error)
        }
        daemon.ready { status.sentence() }
        daemon.runUntilStopped()
    }
}

extension NodeSettings {
    init(_ settings: Settings) throws(DatabaseError) {
        name = settings.string("name")
        dataDirectories = settings.list("data")
        guard let address = try settings.address("listen.rpc") else {
            throw DatabaseError(.invalidRequest, "listen.rpc is empty")
        }
        rpcAddress = address
        adminAddress = settings.optionalString("listen.admin") ?? ""
        controllers = try settings.addresses("controllers")
        zone = settings.string("zone")
        isSpare = settings.boolean("spare")
        (checkpointBytes, copyBytesPerSecond, slowRequest) = (0, 0, .zero)
        retainedBytes = settings.integer("log.retain")
        cacheBytes = settings.integer("cache")
        scrubPeriod = settings.duration("scrub.period")
        scrubBytesPerSecond = UInt64(settings.integer("scrub.rate"))
        follow(settings)
        guard !dataDirectories.isEmpty, !controllers.isEmpty else {
            throw DatabaseError(.invalidRequest, "data and controllers must not be empty")
        }
    }

    /// Takes over what a running node follows.
    mutating func follow(_ settings: Settings) {
        checkpointBytes = settings.integer("log.checkpoint")
        copyBytesPerSecond = UInt64(settings.integer("copy.rate"))
        slowRequest = settings.duration("slow.request")
    }
}
