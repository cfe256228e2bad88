// Liveness by progress, readiness by checks, and systemd's watchdog fed from both.

import AdminHTTP
import EventLoop
import Glibc
import KVBase
import Metrics
import Synchronization
import SystemdSupport
import Threads

/// Looks at the progress of the watched stages from a thread of its own, which does nothing else.
final class HealthMonitor: Sendable {
    private struct Stage {
        let name: String
        let thread: Int?
        let progress: @Sendable () -> UInt64?
        var lastValue: UInt64?
        /// When it last advanced or was idle.
        var lastAdvance: Instant
    }

    private struct State {
        var stages: [Stage] = []
        var checks: [(name: String, check: @Sendable () -> String?)] = []
        var isReady = false
        var isEnding = false
        var hasThread = false
        var stalled: [String] = []
        var hasTriggered = false
        var reloadTime: Double = 0
        var isReloadGood = true
    }

    /// How the service manager hears of a look.
    struct Watchdog: Sendable {
        /// The time within which it wants a ping.
        var interval: Nanoseconds
        var ping: @Sendable () -> Void
        var trigger: @Sendable () -> Void

        /// systemd's, if it wants to be pinged.
        static func ofServiceManager() -> Watchdog? {
            ServiceManager.watchdogInterval.map {
                Watchdog(
                    interval: $0, ping: ServiceManager.watchdogPing,
                    trigger: ServiceManager.watchdogTrigger)
            }
        }
    }

    private let state = Mutex(State())
    private let log: ComponentLog
    private let watchdog: Watchdog?

    init(log: ComponentLog, watchdog: Watchdog? = .ofServiceManager()) {
        self.log = log
        self.watchdog = watchdog
        recordReload(isGood: true)
    }

    /// Between two looks: a quarter of systemd's interval, at most a second.
    private var period: Nanoseconds {
        let second = Nanoseconds.seconds(1)
        guard let watchdog else { return second }
        return min(second, Nanoseconds(max(1_000_000, watchdog.interval.count / 4)))
    }

    /// A stage that did not advance for this long is stalled: longer than a loop's heartbeat, and
    /// long enough for a machine short of processors.
    private var patience: Nanoseconds {
        max(.seconds(5), Nanoseconds((watchdog?.interval ?? .zero).count / 4))
    }

    // MARK: Registration

    /// `thread` is the id of the thread that runs the stage, if it is one.
    func watch(
        _ name: String, thread: Int? = nil, progress: @escaping @Sendable () -> UInt64?
    ) {
        let now = Self.now()
        state.withLock {
            $0.stages.append(
                Stage(name: name, thread: thread, progress: progress, lastAdvance: now))
        }
    }

    func addReadinessCheck(_ name: String, _ check: @escaping @Sendable () -> String?) {
        state.withLock { $0.checks.append((name, check)) }
    }

    func register(in metrics: MetricsRegistry) {
        metrics.collector(
            "kv_stage_last_progress_timestamp_seconds", .gauge,
            "When a watched stage last advanced or was idle, in seconds since 1970."
        ) { [self] in
            let now = Self.now()
            let wallClock = Double(EventLoop.wallClockNanoseconds()) / 1e9
            return state.withLock(\.stages).map { stage in
                MetricSample(
                    labels: [MetricLabel("stage", stage.name)],
                    value: wallClock - Double((now - stage.lastAdvance).count) / 1e9)
            }
        }
        metrics.gauge(
            "kv_config_last_reload_successful",
            "1 when the last reading of the settings was without error."
        ) { [self] in state.withLock(\.isReloadGood) ? 1 : 0 }
        metrics.gauge(
            "kv_config_last_reload_success_timestamp_seconds",
            "When the settings were last read without error, in seconds since 1970."
        ) { [self] in state.withLock(\.reloadTime) }
        metrics.gauge("kv_ready", "1 while /readyz says so.") { [self] in
            reasonsNotReady().isEmpty ? 1 : 0
        }
    }

    func recordReload(isGood: Bool) {
        let time = Double(EventLoop.wallClockNanoseconds()) / 1e9
        state.withLock {
            $0.isReloadGood = isGood
            if isGood { $0.reloadTime = time }
        }
    }

    // MARK: Life

    /// Start-up is over: from now on stages are held to their progress.
    func begin() {
        let now = Self.now()
        let startsThread = state.withLock { state in
            state.isReady = true
            for index in state.stages.indices { state.stages[index].lastAdvance = now }
            defer { state.hasThread = true }
            return !state.hasThread
        }
        guard startsThread else { return }
        do throws(DatabaseError) {
            _ = try NamedThread(name: "watchdog") { [self] in
                while look(at: Self.now()) { Self.sleep(period) }
            }
        } catch {
            log.error("no watchdog: \(error.message)")
        }
    }

    /// The stop has begun: not ready, and stages may stand still.
    func end() {
        state.withLock { state in
            state.isReady = false
            state.isEnding = true
            state.stalled = []
        }
    }

    /// One look at every stage. False when the stop has begun.
    func look(at now: Instant) -> Bool {
        // The closures are foreign code: they run outside of the lock.
        let stages = state.withLock(\.stages)
        let values = stages.map { $0.progress() }
        let patience = patience
        let (isEnding, before, stalled) = state.withLock { state in
            for (index, value) in values.enumerated() {
                if value == nil || value != state.stages[index].lastValue {
                    state.stages[index].lastAdvance = now
                }
                state.stages[index].lastValue = value
            }
            let before = state.stalled
            let stalled =
                state.isEnding
                ? [] : state.stages.filter { now - $0.lastAdvance > patience }
            state.stalled = stalled.map(\.name)
            return (state.isEnding, before, stalled)
        }
        for stage in stalled where !before.contains(stage.name) {
            log.error(
                "a stage makes no progress", [LogField("stage", stage.name)], event: .stageStalled)
        }
        // While stopping, the time-out of the stop is the guard.
        if let watchdog { tell(watchdog, stalled, at: now) }
        return !isEnding
    }

    /// A stage that waits in the kernel for a disk is no reason for a restart, which would make the
    /// disk no faster: it keeps the process from being live, but not from being pinged for.
    private func tell(_ watchdog: Watchdog, _ stalled: [Stage], at now: Instant) {
        let stuck = stalled.filter { stage in
            guard let thread = stage.thread else { return true }
            return ThreadState.read(thread)?.state != "D"
        }
        guard !stuck.isEmpty else { return watchdog.ping() }
        guard stuck.contains(where: { now - $0.lastAdvance >= watchdog.interval }) else { return }
        let isFirst = state.withLock { state in
            defer { state.hasTriggered = true }
            return !state.hasTriggered
        }
        guard isFirst else { return }
        dump(at: now)
        watchdog.trigger()
    }

    /// Logs what a person needs who was not there.
    private func dump(at now: Instant) {
        for stage in state.withLock(\.stages) {
            let age = Double((now - stage.lastAdvance).count) / 1e9
            log.error(
                "watchdog: stage",
                [
                    LogField("stage", stage.name), LogField("seconds_without_progress", age),
                    LogField("progress", stage.lastValue.map { "\($0)" } ?? "idle"),
                ])
        }
        for thread in ThreadState.all() {
            log.error(
                "watchdog: thread",
                [
                    LogField("thread", thread.name), LogField("thread_id", thread.id),
                    LogField("thread_state", thread.state), LogField("waits_in", thread.waitsIn),
                ])
        }
        log.error("watchdog: asks to be restarted")
    }

    // MARK: Pages

    func livePage() -> AdminResponse {
        let stalled = state.withLock(\.stalled)
        return Self.page("live", stalled.map { "\($0): no progress" })
    }

    func readyPage() -> AdminResponse { Self.page("ready", reasonsNotReady()) }

    /// The watched stages and when each last advanced or was idle.
    func stagesPage() -> AdminResponse {
        let now = Self.now()
        let stages = state.withLock(\.stages).map { stage in
            let age = (now - stage.lastAdvance).count / 1_000_000
            let value = stage.lastValue.map(String.init) ?? "null"
            return "{\"stage\":\(JSONText.quoted(stage.name)),\"progress\":\(value)"
                + ",\"age_ms\":\(age)}"
        }
        return .json("{\"stages\":[\(stages.joined(separator: ","))]}\n")
    }

    /// Why `/readyz` says no; empty when it says yes.
    private func reasonsNotReady() -> [String] {
        let (isReady, isEnding, checks, stalled) = state.withLock {
            ($0.isReady, $0.isEnding, $0.checks, $0.stalled)
        }
        var reasons = stalled.map { "\($0): no progress" }
        if isEnding {
            reasons.append("stopping")
        } else if !isReady {
            reasons.append("starting")
        }
        for (name, check) in checks {
            if let reason = check() { reasons.append("\(name): \(reason)") }
        }
        return reasons
    }

    private static func page(_ word: String, _ reasons: [String]) -> AdminResponse {
        let list = reasons.map(JSONText.quoted).joined(separator: ",")
        return .json(
            "{\"\(word)\":\(reasons.isEmpty),\"reasons\":[\(list)]}\n",
            status: reasons.isEmpty ? 200 : 503)
    }

    private static func now() -> Instant {
        var time = timespec()
        clock_gettime(CLOCK_MONOTONIC, &time)
        return Instant(
            nanoseconds: UInt64(time.tv_sec) * 1_000_000_000 + UInt64(time.tv_nsec))
    }

    private static func sleep(_ duration: Nanoseconds) {
        var time = timespec(
            tv_sec: Int(duration.count / 1_000_000_000),
            tv_nsec: Int(duration.count % 1_000_000_000))
        nanosleep(&time, nil)
    }
}
