// The admin server of a daemon: metrics, health, and looks inside for who hunts a fault.

import AdminHTTP
import BuildInfo
import Configuration
import EventLoop
import KVBase
import Metrics
import Synchronization
import SystemdSupport

extension DaemonContext {
    /// Adds a page under `/debug/`, before `startAdmin`. It runs on the admin server's thread and
    /// must not wait: it tells what the loop published last.
    public func addDebugPage(
        _ name: String, _ page: @escaping @Sendable (AdminRequest) -> AdminResponse
    ) {
        state.withLock { $0.debugPages.append((path: "/debug/\(name)", page: page)) }
    }

    /// Starts the admin server at `listen.admin`, if set; returns its port. Early in the start, so
    /// that a long recovery can be watched.
    @discardableResult
    public func startAdmin() throws(DatabaseError) -> UInt16? {
        guard let text = settings.optionalString("listen.admin"), !text.isEmpty else { return nil }
        let address = try SocketAddress.parse(text)
        let server = try AdminServer(
            host: address.host, port: address.port, handlers: adminPages(),
            actions: ["/debug/log": { [self] in changeLogLevel($0) }])
        let isStopping = state.withLock { state in
            state.adminServer = server
            return state.isStopping
        }
        if isStopping { server.stop() }
        log.component("daemon").info(
            "admin HTTP listens", [LogField("host", address.host), LogField("port", server.port)])
        return server.port
    }

    private func adminPages() -> [String: AdminServer.Handler] {
        let (metrics, health) = (metrics, health)
        var pages: [String: AdminServer.Handler] = [:]
        pages["/metrics"] = { Self.metricsPage(metrics, $0) }
        pages["/livez"] = { _ in health.livePage() }
        pages["/readyz"] = { _ in health.readyPage() }
        pages["/debug/settings"] = { [self] _ in settingsPage() }
        pages["/debug/log"] = { [self] _ in logPage() }
        pages["/debug/stages"] = { _ in health.stagesPage() }
        for (path, page) in state.withLock(\.debugPages) { pages[path] = page }
        let list = pages.keys.filter { $0.hasPrefix("/debug/") }.sorted()
        let index = list.map(JSONText.quoted).joined(separator: ",")
        for path in ["/debug", "/debug/"] {
            pages[path] = { _ in .json("{\"pages\":[\(index)]}\n") }
        }
        let everything = (["/metrics", "/livez", "/readyz"] + list).joined(separator: "\n")
        pages["/"] = { [name] _ in .text("\(name) \(BuildInfo.text)\n\(everything)\n") }
        return pages
    }

    /// In the format and the encoding that the client likes best.
    static func metricsPage(
        _ metrics: MetricsRegistry, _ request: AdminRequest
    ) -> AdminResponse {
        let format = MetricsFormat.negotiated(accept: request.accept)
        let page = metrics.render(format)
        if MetricsFormat.admitsGzip(request.acceptEncoding), let small = Gzip.compress(page) {
            return AdminResponse(
                contentType: format.contentType, contentEncoding: "gzip", body: small)
        }
        return AdminResponse(contentType: format.contentType, body: page)
    }

    private func settingsPage() -> AdminResponse {
        let waiting = settings.waiting(since: initialSettings)
        let lines = settings.lines.map { line in
            let value = line.value.map(JSONText.quoted) ?? "null"
            return "{\"name\":\(JSONText.quoted(line.name)),\"value\":\(value)"
                + ",\"origin\":\(JSONText.quoted(line.origin.description))"
                + ",\"needs_restart\":\(waiting.contains(line.name))}"
        }
        return .json("{\"settings\":[\(lines.joined(separator: ","))]}\n")
    }

    private func logPage() -> AdminResponse {
        .json("{\"level\":\"\(log.level.name)\",\"burst\":\(log.burst)}\n")
    }

    /// `POST /debug/log?level=debug`: until the next change, reading of the settings, or restart.
    private func changeLogLevel(_ request: AdminRequest) -> AdminResponse {
        guard let level = request.parameter("level").flatMap({ LogLevel(name: $0) }) else {
            let names = LogLevel.allCases.map(\.name).joined(separator: ", ")
            return .text("level is one of \(names)\n", status: 400)
        }
        let before = log.level
        // At the level that tells more, or the change would hide itself.
        log.level = max(before, level)
        log.component("daemon").notice(
            "log level changed", [LogField("from", before.name), LogField("to", level.name)],
            event: .logLevelChanged)
        log.level = level
        return logPage()
    }

    func registerMetrics() {
        ProcessMetrics.register(in: metrics)
        metrics.registerRendering()
        metrics.info(
            "kv_build_info", "The running build.", MetricLabel("program", name),
            MetricLabel("version", BuildInfo.version),
            MetricLabel("revision", BuildInfo.revision))
        for level in LogLevel.allCases {
            let label = MetricLabel("level", level.name)
            metrics.counter("kv_log_messages_total", "Log messages written.", label) {
                [log] in Double(log.count(level))
            }
            metrics.counter(
                "kv_log_messages_dropped_total", "Log messages held back by the rate limit.", label
            ) { [log] in Double(log.countLeftOut(level)) }
        }
        health.register(in: metrics)
    }

    /// The figures of the daemon's event loop.
    func registerLoop(_ progress: LoopProgress) {
        metrics.counter(
            "kv_loop_busy_seconds_total",
            "Time that the event loop spent working rather than waiting."
        ) { Double(progress.busyNanoseconds) / 1e9 }
        metrics.counter("kv_loop_turns_total", "Turns of the event loop.") {
            Double(progress.turns)
        }
    }
}
