// Starting, stopping and watching the daemons of one directory.

import Glibc
import OperatorClient

/// The daemons of a playground. A copy of what the directory says; changes are written at once.
struct Playground {
    let directory: PlaygroundDirectory
    private(set) var state: PlaygroundState
    let signals: SignalWatch

    /// Seconds a daemon gets to end after SIGTERM.
    static let stopSeconds = 15.0
    /// How long a daemon that was started waits for what others lack.
    private static let clusterPatience = 15.0

    init(_ directory: PlaygroundDirectory, _ state: PlaygroundState, _ signals: SignalWatch) {
        self.directory = directory
        self.state = state
        self.signals = signals
    }

    var daemons: [DaemonPlan] { directory.daemons(state) }

    func isRunning(_ daemon: DaemonPlan) -> Bool {
        state.processes[daemon.name]?.isRunning(daemon) ?? false
    }

    /// Takes up what another kvctl changed; false when the playground is gone.
    mutating func reload() throws(Failure) -> Bool {
        guard let state = try directory.state() else { return false }
        self.state = state
        return true
    }

    /// Lets the next start run Prometheus as `plan` says. It is no part of the cluster, so that an
    /// old playground may get one; one that runs goes on with the rules that it has.
    mutating func use(_ plan: PrometheusPlan) {
        guard !daemons.contains(where: { $0.kind == .prometheus && isRunning($0) }) else { return }
        state.plan.prometheus = plan
    }

    /// Lets the controllers back up to `place` from their next start on.
    mutating func use(backup place: String) throws(Failure) {
        guard state.plan.backup != place else { return }
        if let running = daemons.first(where: { $0.kind == .controller && isRunning($0) }) {
            throw Failure(
                .refused,
                "\(running.name) runs, and backs up to \(state.plan.backup ?? "nowhere"): stop the "
                    + "playground first (kvctl playground down --dir \(directory.path))")
        }
        state.plan.backup = place
    }

    // MARK: Starting

    /// Throws when a port that `daemons` need is taken, and stays so for a moment: a process that
    /// was just killed keeps its ports until its last thread has returned from the disk.
    func checkPorts(of daemons: [DaemonPlan]) throws(Failure) {
        let deadline = Deadline(seconds: 2)
        for daemon in daemons {
            for (port, use) in daemon.ports {
                while !Self.isFree(port), !deadline.hasPassed {
                    _ = signals.waitForStop(milliseconds: 20)
                }
                if Self.isFree(port) { continue }
                let free = stride(from: 7000, through: 60_000, by: 200).first { base in
                    base != state.plan.portBase
                        && (0..<100).allSatisfy { Self.isFree(base + $0) }
                }
                let hint = free.map { ", such as --port-base \($0)" } ?? ""
                throw Failure(
                    .refused,
                    "port \(port) (\(use) of \(daemon.name)) is taken: stop what listens there,"
                        + " or make the playground with another --port-base\(hint)")
            }
        }
    }

    /// Starts `daemons` and records them. Precondition: none of them runs.
    mutating func start(_ daemons: [DaemonPlan]) throws(Failure) {
        for daemon in daemons where access(daemon.binary, X_OK) != 0 {
            throw Failure(
                .failure, "there is no program \(daemon.binary): build it first (make build)")
        }
        try checkPorts(of: daemons)
        try directory.create(directory.path + "/logs")
        let isNew = state.nodeIDs.isEmpty
        for daemon in daemons {
            if daemon.kind == .router {
                try directory.create(daemon.home)
            } else {
                for data in daemon.data { try directory.create(data) }
            }
            if daemon.kind == .prometheus, let prometheus = state.plan.prometheus {
                try directory.write(
                    prometheus.configuration(scraping: self.daemons), to: "prometheus.yml",
                    of: daemon)
            }
            state.processes[daemon.name] = try DaemonProcess.spawn(daemon)
            try directory.save(state)
            if isNew, daemon.kind == .node { awaitAdmission(of: daemon) }
        }
    }

    /// Lets a new node register before the next one starts, so that node-1 gets id 1 and so on. One
    /// that takes long, or dies, is found out by `waitUntilReady`.
    private func awaitAdmission(of daemon: DaemonPlan) {
        let deadline = Deadline(seconds: 2)
        while !deadline.hasPassed, isRunning(daemon) {
            let page = try? AdminPage.get("/readyz", from: daemon.admin, deadline: deadline)
            if page?.status == 200 || signals.waitForStop(milliseconds: 10) { return }
        }
    }

    /// Waits until `daemons` serve and every group of the cluster has a leader, `seconds` at most;
    /// notices a daemon that dies at once.
    mutating func waitUntilReady(_ daemons: [DaemonPlan], seconds: Double) throws(Failure) {
        let deadline = Deadline(seconds: seconds)
        var readiness = ReadinessCheck(self)
        while let obstacle = try obstacle(to: daemons, &readiness) {
            if deadline.hasPassed {
                throw Failure(
                    .failure,
                    "not ready after \(Int(seconds)) s: \(obstacle.reason)"
                        + tail(of: obstacle.daemon))
            }
            if signals.waitForStop(milliseconds: 50) {
                throw Failure(.interrupted, "interrupted while starting")
            }
        }
    }

    /// Waits until `daemon` does its part, `seconds` at most, and a while for the rest of the cluster. Answers what
    /// the cluster lacks then, nil when it serves; throws when the daemon itself is not ready.
    mutating func waitUntilStarted(
        _ daemon: DaemonPlan, seconds: Double
    ) throws(Failure) -> String? {
        let deadline = Deadline(seconds: seconds)
        let patience = Deadline(seconds: min(seconds, Self.clusterPatience))
        var readiness = ReadinessCheck(self)
        while let obstacle = try obstacle(to: [daemon], &readiness) {
            if obstacle.isOfCluster, patience.hasPassed, ReadinessCheck.isAlive(daemon) {
                return obstacle.reason
            }
            if deadline.hasPassed {
                throw Failure(
                    .failure,
                    "\(daemon.name) runs, and is not ready after \(Int(seconds)) s: \(obstacle.reason)"
                        + tail(of: daemon))
            }
            if signals.waitForStop(milliseconds: 50) {
                throw Failure(
                    .interrupted, "\(daemon.name) runs, and is not ready yet: \(obstacle.reason)")
            }
        }
        return nil
    }

    /// What keeps `daemons` and the cluster from serving; throws when one of them is dead.
    private mutating func obstacle(
        to daemons: [DaemonPlan], _ readiness: inout ReadinessCheck
    ) throws(Failure) -> ReadinessCheck.Obstacle? {
        for daemon in daemons where !isRunning(daemon) {
            throw Failure(.failure, "\(daemon.name) ended while starting" + tail(of: daemon))
        }
        let (obstacle, nodes) = readiness.obstacle(to: daemons)
        if nodes != state.nodeIDs, !nodes.isEmpty {
            state.nodeIDs.merge(nodes) { _, new in new }
            try directory.save(state)
        }
        return obstacle
    }

    // MARK: Stopping

    /// Ends those of `daemons` that run: Prometheus, routers, nodes, controllers, then etcd, each kind with
    /// SIGTERM and, when that does not help, SIGKILL. Returns the names of those it ended.
    @discardableResult
    mutating func stop(_ daemons: [DaemonPlan]) throws(Failure) -> [String] {
        var stopped: [String] = []
        for kind in [DaemonPlan.Kind.prometheus, .router, .node, .controller, .etcd] {
            let running = daemons.filter { $0.kind == kind && isRunning($0) }
            signal(SIGTERM, running)
            // One that was paused would never see the request.
            signal(SIGCONT, running)
            var left = waitForEnd(of: running, seconds: Self.stopSeconds)
            if !left.isEmpty {
                let names = left.map(\.name).joined(separator: ", ")
                Terminal.say("\(names): still there after \(Int(Self.stopSeconds)) s, killing")
                signal(SIGKILL, left)
                left = waitForEnd(of: left, seconds: 5)
            }
            if let survivor = left.first {
                throw Failure(.failure, "\(survivor.name) cannot be ended")
            }
            stopped += running.map(\.name)
        }
        for daemon in daemons { state.processes[daemon.name] = nil }
        try directory.save(state)
        return stopped
    }

    private func signal(_ signal: Int32, _ daemons: [DaemonPlan]) {
        for daemon in daemons { state.processes[daemon.name]?.signal(signal) }
    }

    /// Returns those that still run after `seconds`.
    private func waitForEnd(of daemons: [DaemonPlan], seconds: Double) -> [DaemonPlan] {
        let deadline = Deadline(seconds: seconds)
        var left = daemons.filter(isRunning)
        while !left.isEmpty, !deadline.hasPassed {
            _ = signals.waitForStop(milliseconds: 20)
            left = left.filter(isRunning)
        }
        return left
    }

    // MARK: Helpers

    /// The end of a daemon's log, as the rest of a message.
    func tail(of daemon: DaemonPlan) -> String {
        let lines = LogTail.lines(of: daemon.log, count: 15)
        guard !lines.isEmpty else { return "; its log \(daemon.log) is empty" }
        return "; the end of \(daemon.log):\n" + lines.map { "  " + $0 }.joined(separator: "\n")
    }

    private static func isFree(_ port: Int) -> Bool {
        let descriptor = socket(
            AF_INET, Int32(SOCK_STREAM.rawValue) | Int32(SOCK_CLOEXEC.rawValue), 0)
        guard descriptor >= 0 else { return true }
        defer { close(descriptor) }
        var on: Int32 = 1
        setsockopt(
            descriptor, SOL_SOCKET, SO_REUSEADDR, &on, socklen_t(MemoryLayout<Int32>.size))
        var address = sockaddr_in()
        address.sin_family = sa_family_t(AF_INET)
        address.sin_port = in_port_t(UInt16(port).bigEndian)
        address.sin_addr.s_addr = UInt32(0x7F00_0001).bigEndian
        return withUnsafePointer(to: &address) {
            $0.withMemoryRebound(to: sockaddr.self, capacity: 1) {
                bind(descriptor, $0, socklen_t(MemoryLayout<sockaddr_in>.size)) == 0
            }
        }
    }
}

/// The last lines of a log file.
enum LogTail {
    static func lines(of path: String, count: Int) -> [String] {
        let descriptor = open(path, O_RDONLY | O_CLOEXEC)
        guard descriptor >= 0 else { return [] }
        defer { close(descriptor) }
        let end = lseek(descriptor, 0, SEEK_END)
        lseek(descriptor, max(0, end - 16_384), SEEK_SET)
        var bytes = [UInt8](repeating: 0, count: 16_384)
        let read = Glibc.read(descriptor, &bytes, bytes.count)
        return String(decoding: bytes[..<max(0, read)], as: UTF8.self)
            .split(separator: "\n").suffix(count).map(String.init)
    }
}
