// What the daemons have in common from `main` to exit: settings, log, metrics, health, signals.

import AdminHTTP
import Configuration
import EventLoop
import Glibc
import KVBase
import Metrics
import Synchronization
import SystemdSupport

/// A running daemon. Made once, by `main`, before any thread exists; safe on every thread after.
///
/// ```
/// let daemon = DaemonContext.start(name: "kvnode", summary: "...", settings: [...])
/// ... start threads, register onStop, watch, addReadinessCheck ...
/// daemon.ready(status: "serving")
/// daemon.runUntilStopped()
/// ```
public final class DaemonContext: Sendable {
    /// The version of all programs of this repository.
    public static let version = "0.1.0"

    public let name: String
    public let log: Log
    public let metrics: MetricsRegistry
    let loader: SettingsLoader
    let health: HealthMonitor
    private let arguments: [String]

    struct State {
        var settings: Settings
        var stopHandlers: [@Sendable () -> Void] = []
        var adminServer: AdminServer?
        /// What daemons add to the admin server, by path.
        var debugPages: [(path: String, page: @Sendable (AdminRequest) -> AdminResponse)] = []
        var isStopping = false
        /// The status line that `ready` gave; nil while starting.
        var readyStatus: String?
    }

    let state: Mutex<State>
    private let stopRequest = Latch<StopRequest>()

    private struct StopRequest: Sendable {
        let reason: String
        let exitCode: Int32
    }

    /// Reads the settings, opens the log, takes charge of the signals SIGTERM, SIGINT, SIGHUP and
    /// SIGPIPE, and raises the limit of open files. On wrong settings, `--help`, `--version` and
    /// `--check-config` it prints what there is to say and ends the process: 0, 2 (command line) or
    /// 78 (configuration). Beside `settings` every daemon has those of `CommonSettings`.
    public static func start(
        name: String, summary: String, settings: [Setting],
        arguments: [String] = CommandLine.arguments
    ) -> DaemonContext {
        let loader = SettingsLoader(
            program: name, version: version, summary: summary,
            settings: settings + CommonSettings.all)
        do throws(ConfigurationError) {
            let environment = SettingsLoader.processEnvironment()
            switch try loader.load(arguments: arguments, environment: environment) {
            case .print(let text):
                writeAll(STDOUT_FILENO, text)
                exit(0)
            case .settings(let settings):
                return DaemonContext(loader: loader, settings: settings, arguments: arguments)
            }
        } catch {
            for message in error.messages { writeAll(STDERR_FILENO, "\(name): \(message)\n") }
            exit(error.exitCode.rawValue)
        }
    }

    private init(loader: SettingsLoader, settings: Settings, arguments: [String]) {
        name = loader.program
        self.loader = loader
        self.arguments = arguments
        let log = Log(
            program: loader.program, format: CommonSettings.logFormat(settings),
            level: CommonSettings.logLevel(settings), burst: settings.integer("log.burst"))
        self.log = log
        metrics = MetricsRegistry()
        health = HealthMonitor(log: log.component("daemon"))
        state = Mutex(State(settings: settings))
        // Before any thread exists: all of them inherit the mask, and one waits for the signals.
        ProcessSignals.block()
        raiseFileLimit()
        registerMetrics()
        startSignalThread()
    }

    // MARK: Settings

    /// The effective settings. SIGHUP reads them again; of what runs, only the log level follows.
    public var settings: Settings { state.withLock { $0.settings } }

    // MARK: Health

    /// Has a thread or stage watched: `progress` answers a counter that rises as long as it is
    /// alive, or nil while it has nothing to do. One that stands still fails `/livez` and, under
    /// systemd, ends in a restart. A slow disk, a lost majority or overload are no reason to be
    /// restarted: such a stage must go on counting.
    public func watch(_ stage: String, progress: @escaping @Sendable () -> UInt64?) {
        health.watch(stage, progress: progress)
    }

    /// Adds a reason not to be ready: `check` answers nil when all is well, else the reason. It
    /// runs on the admin server's thread.
    public func addReadinessCheck(_ name: String, _ check: @escaping @Sendable () -> String?) {
        health.addReadinessCheck(name, check)
    }

    // MARK: Life

    /// One line for `systemctl status`, while starting or stopping too.
    public func status(_ text: String) {
        state.withLock { state in
            if state.readyStatus != nil { state.readyStatus = text }
        }
        ServiceManager.status(text)
    }

    /// Start-up goes on and made progress: systemd grants 30 more seconds.
    public func startupAdvanced(status: String) {
        ServiceManager.extendTimeout(.seconds(30))
        ServiceManager.status(status)
    }

    /// Start-up is over: listeners accept. Tells systemd, makes `/readyz` look at its checks, and
    /// starts watching the progress of the stages.
    public func ready(status: String) {
        health.begin()
        state.withLock { $0.readyStatus = status }
        ServiceManager.ready(status: status)
        log.component("daemon").notice(
            "ready", [LogField("version", Self.version), LogField("status", status)],
            event: .started)
    }

    /// Runs `handler` when the daemon stops, on the main thread; the last one registered first.
    /// It may block for as long as a graceful stop takes.
    public func onStop(_ handler: @escaping @Sendable () -> Void) {
        state.withLock { $0.stopHandlers.append(handler) }
    }

    /// Asks for the stop; from any thread, the first request counts. `exitCode` is 0 for a wish and
    /// 1 for a failure.
    public func requestStop(reason: String, exitCode: Int32 = 0) {
        stopRequest.open(StopRequest(reason: reason, exitCode: exitCode))
    }

    /// Waits for SIGTERM, SIGINT or `requestStop`, runs the stop handlers and ends the process. On
    /// the main thread.
    public func runUntilStopped() -> Never {
        let request = stopRequest.wait()
        let daemonLog = log.component("daemon")
        daemonLog.notice("stopping", [LogField("reason", request.reason)], event: .stopping)
        ServiceManager.stopping(status: "stopping: \(request.reason)")
        health.end()
        let (handlers, server) = state.withLock { state in
            state.isStopping = true
            return (state.stopHandlers, state.adminServer)
        }
        for handler in handlers.reversed() { handler() }
        server?.stop()
        daemonLog.notice("stopped", [LogField("exit_code", request.exitCode)], event: .stopped)
        exit(request.exitCode)
    }

    /// Ends the process at once with a message, code 1: for a start-up that cannot go on.
    public func fail(_ message: String) -> Never { fail(message, exitCode: 1) }

    /// As above for an error: code 65 (`StartupExitCode.storage`) when a disk is the reason, so that
    /// a service manager does not start the daemon again and again.
    public func fail(_ error: DatabaseError) -> Never {
        fail(
            error.message,
            exitCode: error.code == .storageFailed ? StartupExitCode.storage.rawValue : 1)
    }

    private func fail(_ message: String, exitCode: Int32) -> Never {
        log.component("daemon").error(message, event: .startFailed)
        ServiceManager.status("failed: \(message)")
        exit(exitCode)
    }

    // MARK: Internals

    private func startSignalThread() {
        let thread = Result { () throws(DatabaseError) in
            try NamedThread(name: "signals") { [self] in
                while true { handle(ProcessSignals.wait()) }
            }
        }
        if case .failure(let error) = thread { fail(error.message) }
    }

    private func handle(_ signal: Int32) {
        if signal == SIGHUP { return reload() }
        let isRepeated = state.withLock { $0.isStopping }
        if isRepeated {
            log.component("daemon").error("second signal: ends without waiting")
            _exit(1)
        }
        requestStop(reason: signal == SIGTERM ? "SIGTERM" : "SIGINT")
    }

    /// Reads all layers again. Wrong settings change nothing.
    private func reload() {
        // Before the end of the start systemd must not be told that it is over.
        let readyStatus = state.withLock(\.readyStatus)
        if readyStatus != nil { ServiceManager.reloading() }
        var failure = ""
        do throws(ConfigurationError) {
            let environment = SettingsLoader.processEnvironment()
            let outcome = try loader.load(arguments: arguments, environment: environment)
            guard case .settings(let settings) = outcome else {
                preconditionFailure("the daemon was not started to print and exit")
            }
            apply(settings)
        } catch {
            failure = " (reload failed, the old settings hold: \(error))"
            health.recordFailedReload()
            log.component("daemon").error(
                "settings not read again: \(error)", event: .settingsRejected)
        }
        if let readyStatus { ServiceManager.ready(status: readyStatus + failure) }
    }

    private func apply(_ settings: Settings) {
        state.withLock { $0.settings = settings }
        log.level = CommonSettings.logLevel(settings)
        log.burst = settings.integer("log.burst")
        health.recordReload()
        log.component("daemon").notice("settings read again", event: .settingsRead)
    }

    private func raiseFileLimit() {
        var limit = rlimit()
        let resource = __rlimit_resource_t(RLIMIT_NOFILE.rawValue)
        guard getrlimit(resource, &limit) == 0 else { return }
        limit.rlim_cur = limit.rlim_max
        setrlimit(resource, &limit)
        let wanted = settings.integer("limits.open-files")
        if limit.rlim_cur < wanted {
            log.component("daemon").warning(
                "fewer open files allowed than wanted",
                [LogField("allowed", limit.rlim_cur), LogField("wanted", wanted)])
        }
    }

    private static func writeAll(_ descriptor: Int32, _ text: String) {
        var rest = Array(text.utf8)[...]
        while !rest.isEmpty {
            let written = rest.withUnsafeBytes { write(descriptor, $0.baseAddress, $0.count) }
            guard written > 0 else { return }
            rest = rest.dropFirst(written)
        }
    }
}
