// What the daemons have in common from `main` to exit: settings, log, metrics, health, signals.

import AdminHTTP
import BuildInfo
import Configuration
import EventLoop
import Glibc
import KVBase
import Metrics
import Synchronization
import SystemdSupport
import Threads

/// A running daemon. Made once, by `main`, before any thread exists; safe on every thread after.
///
/// ```
/// let daemon = DaemonContext.start(name: "kvnode", summary: "...", settings: [...])
/// ... start threads, register onStop, watch, addReadinessCheck ...
/// daemon.ready { "serving" }
/// daemon.runUntilStopped()
/// ```
public final class DaemonContext: Sendable {
    public let name: String
    public let log: Log
    public let metrics: MetricsRegistry
    let loader: SettingsLoader
    let health: HealthMonitor
    private let reporter = StatusReporter()
    private let validate: Validation
    private let arguments: [String]
    /// Those of the start. What does not follow a reload has its value from here.
    let initialSettings: Settings

    struct State {
        var settings: Settings
        var reloadHandlers: [@Sendable () -> Void] = []
        var stopHandlers: [@Sendable () -> Void] = []
        var adminServer: AdminServer?
        /// What daemons add to the admin server, by path.
        var debugPages: [(path: String, page: @Sendable (AdminRequest) -> AdminResponse)] = []
        var isStopping = false
        /// The id of the thread that `serve` made.
        var loopThread: Int?
    }

    /// Throws `invalidRequest` for settings that are right one by one and wrong together.
    public typealias Validation = @Sendable (Settings) throws(DatabaseError) -> Void

    let state: Mutex<State>
    private let stopRequest = Latch<StopRequest>()

    private struct StopRequest: Sendable {
        let reason: String
        let exitCode: Int32
        var restarts = false
    }

    /// Reads the settings, opens the log, takes charge of the signals SIGTERM, SIGINT, SIGHUP and
    /// SIGPIPE, and raises the limit of open files. On wrong settings, `--help`, `--version` and
    /// `--check-config` it prints what there is to say and ends the process: 0, 2 (command line) or
    /// 78 (configuration). Beside `settings` every daemon has those of `CommonSettings`. `validate`
    /// looks at the settings as a whole, whenever they are read.
    public static func start(
        name: String, summary: String, settings: [Setting], validate: @escaping Validation,
        arguments: [String] = CommandLine.arguments
    ) -> DaemonContext {
        let loader = SettingsLoader(
            program: name, version: BuildInfo.text, summary: summary,
            settings: settings + CommonSettings.all)
        do throws(ConfigurationError) {
            let environment = SettingsLoader.processEnvironment()
            switch try loader.load(arguments: arguments, environment: environment) {
            case .print(let text):
                writeAll(STDOUT_FILENO, text)
                exit(0)
            case .check(let settings):
                try check(settings, validate)
                // A reload has them checked first: that they are right is no news.
                if !Log.isJournal(STDOUT_FILENO) { writeAll(STDOUT_FILENO, settings.report()) }
                exit(0)
            case .settings(let settings):
                try check(settings, validate)
                return DaemonContext(
                    loader: loader, settings: settings, validate: validate, arguments: arguments)
            }
        } catch {
            for message in error.messages { writeAll(STDERR_FILENO, "\(name): \(message)\n") }
            exit(error.exitCode.rawValue)
        }
    }

    private static func check(
        _ settings: Settings, _ validate: Validation
    ) throws(ConfigurationError) {
        do throws(DatabaseError) {
            try validate(settings)
        } catch {
            throw ConfigurationError([error.message], exitCode: .configuration)
        }
    }

    private init(
        loader: SettingsLoader, settings: Settings, validate: @escaping Validation,
        arguments: [String]
    ) {
        // Before any thread exists.
        ServiceManager.adopt()
        name = loader.program
        self.loader = loader
        self.validate = validate
        self.arguments = arguments
        initialSettings = settings
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
        do throws(DatabaseError) {
            try reporter.start()
        } catch {
            fail(error)
        }
    }

    // MARK: Settings

    /// The settings as they were read last. SIGHUP reads them again; those that are declared to
    /// follow (`Setting.reloads`) take effect then, the others at the next start.
    public var settings: Settings { state.withLock { $0.settings } }

    /// Calls `handler` after each reading of right settings, on the thread of the signals: it must not
    /// wait. At once, too, for they may have been read again since the start.
    func onReload(_ handler: @escaping @Sendable () -> Void) {
        state.withLock { $0.reloadHandlers.append(handler) }
        handler()
    }

    // MARK: Health

    /// Has a thread or stage watched: `progress` answers a counter that rises as long as it is
    /// alive, or nil while it has nothing to do. One that stands still fails `/livez` and, under
    /// systemd, ends in a restart. A slow disk, a lost majority or overload are no reason to be
    /// restarted: such a stage must go on counting.
    public func watch(_ stage: String, progress: @escaping @Sendable () -> UInt64?) {
        health.watch(stage, progress: progress)
    }

    /// The same for what runs on the loop of `serve`.
    public func watchOnLoop(_ stage: String, progress: @escaping @Sendable () -> UInt64?) {
        health.watch(stage, thread: state.withLock(\.loopThread), progress: progress)
    }

    func setLoopThread(_ thread: Int?) { state.withLock { $0.loopThread = thread } }

    /// Adds a reason not to be ready: `check` answers nil when all is well, else the reason. It
    /// runs on the admin server's thread.
    public func addReadinessCheck(_ name: String, _ check: @escaping @Sendable () -> String?) {
        health.addReadinessCheck(name, check)
    }

    // MARK: Life

    /// Start-up goes on: `systemctl status` shows the sentence, and the log has one a second. The
    /// time-out of the start is extended by what is read, whoever reads it.
    public func startupAdvanced(_ sentence: String) {
        guard reporter.startupAdvanced(sentence) else { return }
        log.component("daemon").info(sentence)
    }

    /// Start-up is over: listeners accept. Tells systemd, makes `/readyz` look at its checks, and
    /// starts watching the progress of the stages. `status` gives the line that `systemctl status`
    /// shows; it is called every second, on a thread of its own, until the process ends.
    public func ready(status: @escaping @Sendable () -> String) {
        // In this order: nothing is to be heard of the watchdog before.
        reporter.ready(status)
        health.begin()
        log.component("daemon").notice(
            "ready", [LogField("version", BuildInfo.version), LogField("status", status())],
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

    /// As `requestStop`, but the same program then begins anew in this process, with the same arguments: to
    /// the service manager it goes on.
    public func requestRestart(reason: String) {
        stopRequest.open(StopRequest(reason: reason, exitCode: 1, restarts: true))
    }

    /// Waits for SIGTERM, SIGINT or `requestStop`, runs the stop handlers and ends the process. On
    /// the main thread.
    public func runUntilStopped() -> Never {
        let request = stopRequest.wait()
        let daemonLog = log.component("daemon")
        daemonLog.notice("stopping", [LogField("reason", request.reason)], event: .stopping)
        if request.restarts {
            ServiceManager.reloading()
        } else {
            reporter.stopping(reason: request.reason)
        }
        health.end()
        let (handlers, server) = state.withLock { state in
            state.isStopping = true
            return (state.stopHandlers, state.adminServer)
        }
        for handler in handlers.reversed() { handler() }
        server?.stop()
        if request.restarts { beginAnew(daemonLog) }
        daemonLog.notice("stopped", [LogField("exit_code", request.exitCode)], event: .stopped)
        exit(request.exitCode)
    }

    /// Returns only when it cannot be done.
    private func beginAnew(_ log: ComponentLog) {
        log.notice("begins anew")
        ServiceManager.handBack()
        // Listeners, locks and connections end here, whoever opened them.
        for descriptor in ProcessFiles.openDescriptors() where descriptor > STDERR_FILENO {
            _ = fcntl(descriptor, F_SETFD, FD_CLOEXEC)
        }
        var words = CommandLine.arguments.map { strdup($0) }
        words.append(nil)
        execv("/proc/self/exe", &words)
        log.error(
            "cannot begin anew", [LogField("reason", String(cString: strerror(errno)))])
    }

    /// Ends the process at once with a message, code 1: for a start-up that cannot go on.
    public func fail(_ message: String) -> Never { fail(message, exitCode: 1) }

    /// As above for an error: code 65 (`StartupExitCode.storage`) when a disk is the reason and 78 when
    /// it is a setting, so that a service manager does not start the daemon again and again.
    public func fail(_ error: DatabaseError) -> Never {
        let exitCode: Int32 =
            switch error.code {
            case .storageFailed: StartupExitCode.storage.rawValue
            case .invalidRequest: StartupExitCode.configuration.rawValue
            default: 1
            }
        fail(error.message, exitCode: exitCode)
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
        reporter.reload {
            do throws(ConfigurationError) {
                let environment = SettingsLoader.processEnvironment()
                let outcome = try loader.load(arguments: arguments, environment: environment)
                guard case .settings(let settings) = outcome else {
                    preconditionFailure("the daemon was not started to print and exit")
                }
                try Self.check(settings, validate)
                let waiting = apply(settings)
                return waiting.isEmpty
                    ? nil : "needs a restart for: \(waiting.joined(separator: ", "))"
            } catch {
                health.recordReload(isGood: false)
                log.component("daemon").error(
                    "settings not read again: \(error)", event: .settingsRejected)
                return "reload failed, the old settings hold: \(error)"
            }
        }
    }

    /// Answers the settings that differ from those that this process runs with and do not follow.
    private func apply(_ settings: Settings) -> [String] {
        let (changed, handlers) = state.withLock { state in
            defer { state.settings = settings }
            return (settings.changes(from: state.settings), state.reloadHandlers)
        }
        log.level = CommonSettings.logLevel(settings)
        log.burst = settings.integer("log.burst")
        for handler in handlers { handler() }
        health.recordReload(isGood: true)
        let waiting = settings.waiting(since: initialSettings)
        log.component("daemon").notice(
            "settings read again",
            [LogField("changed", changed.isEmpty ? "none" : changed.joined(separator: ","))],
            event: .settingsRead)
        if !waiting.isEmpty {
            let names = waiting.joined(separator: ", ")
            log.component("daemon").warning("settings that need a restart: \(names)")
        }
        return waiting
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
