// The router's event loop: clients on one side, nodes and controllers on the other, and the core
// between them.

import Configuration
import Daemon
import EventLoop
import KVBase
import Metrics
import RESP
import RPC
import RouterCore
import ShardCore
import SystemdSupport
import WireProtocol

/// Everything of a router that lives on its loop's thread.
final class RouterLoop: LoopService {
    /// The longest drain, however long requests may take: below the stop time-out of the unit.
    private static let drainMax = Nanoseconds.seconds(60)

    let loop: EventLoop
    private(set) var options: RouterOptions
    let log: ComponentLog
    let status: RouterStatus
    private(set) var transport: RPCTransport!
    private(set) var controllers: ControllerLink!
    var core: RequestRouter
    var cursors = CursorTable()
    var statistics = RouterStatistics()
    /// The time of the event that is being handled.
    private(set) var now: Instant
    let startTime: Instant

    /// By the core's client number.
    private(set) var sessions: [ClientSession?] = []
    private(set) var sessionCount = 0
    private var lastSessionSerial: UInt64 = 0
    private var listener: TCPListener?
    private(set) var nodes: [NodeID: NodeClient] = [:]
    private var cluster: UInt64 = 0
    private var effects = RouterEffects()
    /// Sessions with replies to write, and those that may go on, this turn.
    private var dirty: [ClientSession] = []
    private var resumable: [ClientSession] = []
    private var timer: LoopTimer?
    private var timerAt = Instant.distantFuture
    private var isControllerTimerArmed = false
    var lastPublished = Instant.origin
    /// Who answered the operation at hand, and when it was taken over; nil when no node did.
    private(set) var answering: (node: NodeID, submitted: Instant)?
    private var isStopping = false
    /// Sessions end as soon as they have answered; the loop ends with the last of them.
    private var isDraining = false
    private var hasStopped = false
    /// Of all that held since the start: requests may still be tried for so long.
    private var longestDeadline: Nanoseconds

    init(
        loop: EventLoop, options: RouterOptions, status: RouterStatus, log: ComponentLog
    ) throws(DatabaseError) {
        self.loop = loop
        self.options = options
        self.status = status
        self.log = log
        core = RequestRouter(tuning: options.tuning)
        longestDeadline = options.tuning.requestDeadline
        now = loop.now
        startTime = now
        // Before the transport's own hook: what this sends leaves in the same turn.
        loop.onTurnEnd { [unowned self] in endTurn() }
        transport = RPCTransport(loop: loop)
        controllers = ControllerLink(router: self, addresses: options.controllers)
        loop.schedule(after: .seconds(1), repeating: .seconds(1)) { [unowned self] in
            controllers.ping()
        }
        let accept: (TCPConnection) -> Void = { [unowned self] in self.accept($0) }
        if let descriptor = options.inheritedSocket {
            listener = try TCPListener(
                loop: loop, adoptingFileDescriptor: descriptor, accept: accept)
        } else {
            listener = try TCPListener(loop: loop, address: options.listen, accept: accept)
        }
    }

    /// Where clients reach it.
    var localAddress: SocketAddress { listener?.localAddress ?? options.listen }

    func hello(expecting node: NodeID) -> Hello {
        Hello(
            role: .router, cluster: cluster, expects: node, name: options.name,
            addresses: [localAddress.description, options.advertisedAdmin])
    }

    /// Takes over the cluster's number from the first controller that tells it.
    func learn(cluster: UInt64) {
        if self.cluster == 0 { self.cluster = cluster }
    }

    /// Reads the clock once per event.
    func tick() { now = loop.now }

    // MARK: Clients

    private func accept(_ connection: TCPConnection) {
        guard sessionCount < options.clientsMax, !isStopping else {
            statistics.refusedClients += 1
            connection.write(Bytes("-ERR max number of clients reached\r\n".utf8))
            connection.closeAfterWrites()
            return
        }
        lastSessionSerial += 1
        sessionCount += 1
        statistics.acceptedClients += 1
        let client = core.openClient()
        let session = ClientSession(
            router: self, connection: connection, client: client, serial: lastSessionSerial)
        while sessions.count <= Int(client) { sessions.append(nil) }
        sessions[Int(client)] = session
    }

    func sessionDidClose(_ session: ClientSession) {
        core.closeClient(session.client)
        sessions[Int(session.client)] = nil
        sessionCount -= 1
    }

    func markDirty(_ session: ClientSession) { dirty.append(session) }
    func markResumable(_ session: ClientSession) { resumable.append(session) }

    // MARK: Nodes

    /// Nodes whose connection was refused or broke and is not made again, in order.
    var lostNodes: [NodeID] { nodes.keys.sorted().filter { nodes[$0]?.isLost == true } }

    func nodeDidOpen(_ node: NodeID) {
        tick()
        core.nodeDidOpen(node, now: now, into: &effects)
        publishStatus()
    }

    func nodeDidClose(_ node: NodeID, wasRefused: Bool) {
        tick()
        let wasOpen = core.isOpen(node)
        core.nodeDidClose(node, now: now, into: &effects)
        if wasRefused, !wasOpen { controllers.reportUnreachable(node) }
        publishStatus()
    }

    /// It carries out nothing more on this connection, which ends now.
    func nodeDidFinish(_ node: NodeID) {
        tick()
        core.nodeDidClose(node, hasFinished: true, now: now, into: &effects)
        publishStatus()
    }

    func receiveResponses(
        from node: NodeID, _ body: UnsafeRawBufferPointer
    ) throws(DatabaseError) {
        tick()
        var reader = ByteReader(body)
        while !reader.isAtEnd {
            let response = try Response(from: &reader)
            var hint: (term: Term, node: NodeID)?
            if response.error == .notLeader {
                var payload = ByteReader(response.payload)
                if let read = try? LeaderHint(from: &payload), payload.isAtEnd {
                    hint = (read.term, read.node)
                }
            }
            let verdict = core.receive(
                from: node, token: response.token, error: response.error, hint: hint, now: now,
                into: &effects)
            guard case .deliver(let destination, let code, let submitted) = verdict else {
                continue
            }
            observe(code, took: now - submitted)
            answering = (node, submitted)
            defer { answering = nil }
            guard let session = sessions[Int(destination.client)] else {
                preconditionFailure("an answer for a client that is gone")
            }
            session.answer(
                destination,
                OperationAnswer(
                    error: response.error, flags: response.flags, sequencer: response.sequencer,
                    payload: response.payload))
        }
    }

    // MARK: Map

    /// Takes over an update; false when a full one is needed.
    func take(_ update: MapUpdate) -> Bool {
        tick()
        let held = core.map.revision
        // A controller that is behind tells nothing new, except perhaps about leaders.
        if update.to < held || (update.to == held && !update.isFull) {
            for case .leader(let leader) in update.changes {
                core.observe(leader, now: now, into: &effects)
            }
            publishStatus()
            return true
        }
        let isTaken = core.apply(update, now: now, into: &effects)
        guard isTaken || update.isFull else { return false }
        if !isTaken {
            // To ask again would bring the same; its tables are served as far as they are whole.
            log.error(
                "the cluster map holds a table that its shards do not cover",
                [LogField("revision", update.to.ofMap)])
        }
        statistics.mapUpdates += 1
        connectNodes()
        publishStatus()
        return true
    }

    /// A node says that it leads.
    func observe(_ leader: GroupLeader) {
        tick()
        core.observe(leader, now: now, into: &effects)
    }

    private func connectNodes() {
        for node in core.map.nodes.elements where nodes[node.id]?.address != node.rpcAddress {
            nodes[node.id]?.close()
            do throws(DatabaseError) {
                let address = try SocketAddress.parse(node.rpcAddress)
                nodes[node.id] = NodeClient(
                    node: node.id, address: address, text: node.rpcAddress, router: self)
            } catch {
                log.error("node \(node.name) cannot be reached: \(error.message)")
            }
        }
        for (id, client) in nodes where core.map.nodes[id] == nil {
            nodes[id] = nil
            client.close()
        }
    }

    // MARK: Turns

    private func endTurn() {
        tick()
        // A reply may let a session go on, whose commands may fail at once, and so on; every round
        // answers commands that came from outside, so this ends.
        repeat {
            settleEffects()
            resumeSessions()
        } while !effects.isEmpty || !resumable.isEmpty
        if !dirty.isEmpty || core.hasUnsent { statistics.busyTurns += 1 }
        core.flush { node, body, _ in nodes[node]?.send(body) }
        for session in dirty { session.flush() }
        dirty.removeAll(keepingCapacity: true)
        armTimer()
        if now - lastPublished >= .milliseconds(100) { publishStatus() }
        if isDraining { drain() }
    }

    private func settleEffects() {
        guard !effects.isEmpty else { return }
        var current = RouterEffects()
        swap(&current, &effects)
        for node in current.unreachable { controllers.reportUnreachable(node) }
        if current.wantsMapRefresh { controllers.refresh(now: now) }
        for failure in current.failures {
            // The client may have left since.
            sessions[Int(failure.destination.client)]?.answer(failure.destination, failure.error)
        }
    }

    private func resumeSessions() {
        guard !resumable.isEmpty else { return }
        var current: [ClientSession] = []
        swap(&current, &resumable)
        for session in current { session.resume() }
    }

    private func armTimer() {
        guard let wake = core.nextWake else { return }
        guard wake < timerAt else { return }
        timer?.cancel()
        timerAt = wake
        timer = loop.schedule(after: wake - loop.now) { [unowned self] in
            timer = nil
            timerAt = .distantFuture
            tick()
            core.advance(now: now, into: &effects)
        }
    }

    /// Sees to it that waiting table requests are looked at.
    func wakeForControllers() {
        guard !isControllerTimerArmed else { return }
        isControllerTimerArmed = true
        loop.schedule(after: .milliseconds(50)) { [unowned self] in
            isControllerTimerArmed = false
            tick()
            if controllers.advance(now: now) { wakeForControllers() }
        }
    }

    // MARK: Reload

    /// Requests under way keep their deadline, clients their connection; who has said a password need
    /// not say the new one.
    func reload(_ settings: Settings) {
        options.follow(settings)
        core.setRequestDeadline(options.tuning.requestDeadline)
        longestDeadline = max(longestDeadline, options.tuning.requestDeadline)
        if options.password == nil {
            for session in sessions { session?.isAuthenticated = true }
        }
    }

    // MARK: Stopping

    /// Accepts nobody any more, and ends the loop when all that was asked is answered and written.
    /// A socket that systemd keeps goes on taking connections for the next process.
    func stop() {
        guard !isStopping else { return }
        isStopping = true
        listener?.close()
        // What clients had sent by now is in their sockets: one more turn takes it in.
        loop.schedule(after: .milliseconds(1)) { [unowned self] in isDraining = true }
        let patience = min(longestDeadline + .seconds(1), Self.drainMax)
        loop.schedule(after: patience) { [unowned self] in finishStop() }
    }

    private func drain() {
        for session in sessions { session?.drain() }
        if sessionCount == 0, core.pendingOperations == 0 { finishStop() }
    }

    private func finishStop() {
        guard !hasStopped else { return }
        hasStopped = true
        isDraining = false
        controllers.close()
        for client in nodes.values { client.close() }
        loop.stop()
    }

    /// Lets go of everything, after the loop has ended.
    func close() {
        sessions = []
        nodes = [:]
    }
}
