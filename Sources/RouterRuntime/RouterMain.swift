// The `kvrouter` program: settings in, clients served until it is told to stop.

import Configuration
import Daemon
import EventLoop
import KVBase
import Metrics
import RouterCore
import SystemdSupport

public enum RouterMain {
    private static let settings: [Setting] = [
        Setting(
            "name", .string, default: "router-1",
            help: "The router's name in logs and in `kvctl status`."),
        Setting(
            "listen.resp", .address, default: "127.0.0.1:6379",
            help: "Address for clients (Redis protocol), unless systemd passes a socket."),
        Setting(
            "controllers", .addressList, required: true, help: "Addresses of the controllers."),
        Setting(
            "request.deadline", .duration(.milliseconds(100)...(.seconds(600))), default: "5s",
            reloads: true, help: "How long a request is tried before its client gets an error."),
        Setting(
            "clients.max", .integer(1...1_000_000), default: "10000", reloads: true,
            help: "Most client connections; one more is answered with an error and closed."),
        Setting(
            "auth.password", .string, secret: true, reloads: true,
            help: "Password of the user `default`; without it clients need none. Who said the one"
                + " before stays connected."),
        Setting(
            "slow.request", .duration(.zero...(.seconds(3_600))), default: "500ms", reloads: true,
            help: "A command that takes longer is told in the log with where its time went; 0 tells"
                + " none."),
    ]

    /// Runs the daemon; never returns.
    public static func run() -> Never {
        let daemon = DaemonContext.start(
            name: "kvrouter", summary: "The request manager of Rangekeeper.", settings: settings
        ) { (settings) throws(DatabaseError) in _ = try RouterOptions(settings, adminPort: nil) }
        let log = daemon.log.component("router")
        let status = RouterStatus()
        do throws(DatabaseError) {
            RouterMetrics.register(in: daemon.metrics, status)
            daemon.addReadinessCheck("map") { status.current.problems.first }
            status.addPages(to: daemon)
            let adminPort = try daemon.startAdmin()
            var options = try RouterOptions(daemon.settings, adminPort: adminPort)
            let inherited = ServiceManager.listeningSockets
            guard inherited.count <= 1 else {
                throw DatabaseError(
                    .invalidRequest, "systemd handed over \(inherited.count) sockets, not one")
            }
            options.inheritedSocket = inherited.first?.descriptor
            options.upstreamDurations = RouterMetrics.upstreamDurations(in: daemon.metrics)
            options.requestDurations = RouterMetrics.requestDurations(in: daemon.metrics)
            let routerOptions = options
            try daemon.serve { (loop) throws(DatabaseError) in
                let router = try RouterLoop(
                    loop: loop, options: routerOptions, status: status, log: log)
                log.info("clients are served", [LogField("address", router.localAddress)])
                return router
            }
        } catch {
            daemon.fail(error)
        }
        daemon.ready { status.current.sentence }
        daemon.runUntilStopped()
    }
}

extension RouterOptions {
    init(_ settings: Settings, adminPort: UInt16?) throws(DatabaseError) {
        name = settings.string("name")
        guard let address = try settings.address("listen.resp") else {
            throw DatabaseError(.invalidRequest, "listen.resp is empty")
        }
        listen = address
        controllers = try settings.addresses("controllers")
        guard !controllers.isEmpty else {
            throw DatabaseError(.invalidRequest, "controllers must not be empty")
        }
        clientsMax = 0
        advertisedAdmin = ""
        follow(settings)
        if let admin = try settings.address("listen.admin") {
            advertisedAdmin =
                SocketAddress(
                    host: admin.host, port: adminPort ?? admin.port
                ).description
        }
    }

    /// Takes over what a running router follows.
    mutating func follow(_ settings: Settings) {
        clientsMax = settings.integer("clients.max")
        password = settings.optionalString("auth.password").map { Bytes($0.utf8) }
        tuning.requestDeadline = settings.duration("request.deadline")
        slowRequest = settings.duration("slow.request")
    }
}
