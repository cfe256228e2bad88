// The controller's shell: carries the core's effects out on one event loop.
//
// Threads: everything here runs on the loop's thread; the metadata log is synced there too, once
// per turn, at its end, before the connections are flushed.

import ControllerCore
import Daemon
import EventLoop
import KVBase
import MetadataStore
import Metrics
import RPC
import ShardCore
import SystemdSupport
import WireProtocol

final class ControllerServer: LoopService {
    static let tickInterval = Nanoseconds.milliseconds(25)
    static let leaseDuration = Nanoseconds.seconds(3)
    static let housekeepingInterval = Nanoseconds.milliseconds(500)
    /// A follower of the map with this much unsent is cut off; it asks for the map when it is back.
    static let followerBytesMax = 64 << 20

    /// Who waits for the answer of a table request.
    enum Requester {
        case router(ConnectionID, token: UInt32)
        case tool(ConnectionID, token: UInt32, table: String?)
        case operation(ConnectionID, token: UInt32)
    }

    let settings: ControllerServerSettings
    let loop: EventLoop
    let log: ComponentLog
    let metrics: ControllerMetrics
    private let onFailure: (DatabaseError) -> Void
    private let store: FileMetadataStore
    private let transport: RPCTransport
    private var listener: RPCServer?
    private(set) var controller: Controller?
    private(set) var sessions: [ConnectionID: ControllerSession] = [:]
    private var requesters: [RequestID: Requester] = [:]
    private var lease: LeaseID = .none
    private var connectionsIssued: UInt64 = 0
    private var requestsIssued: UInt64 = 0
    private var isStopping = false
    private var isStandingBy = false
    private let clusterCandidate = UInt64.random(in: 1...UInt64.max)

    /// `onFailure` is told once why this process can act no more.
    init(
        settings: ControllerServerSettings, loop: EventLoop, log: ComponentLog,
        metrics: ControllerMetrics, onFailure: @escaping (DatabaseError) -> Void
    ) throws(DatabaseError) {
        self.settings = settings
        self.loop = loop
        self.log = log
        self.metrics = metrics
        self.onFailure = onFailure
        var options = FileMetadataStore.Options()
        options.onSync = { metrics.fsyncDuration.observe($0) }
        store = try FileMetadataStore(
            directory: settings.storeDirectory, now: loop.now, options: options)
        // Before the transport's: what the store answers goes out in the same turn.
        let store = store
        loop.onTurnEnd { store.flush() }
        transport = RPCTransport(loop: loop)
    }

    /// Takes over if it may, and listens.
    func start() throws(DatabaseError) {
        store.grantLease(ttl: Self.leaseDuration, now: loop.now) { [unowned self] in
            if case .success(let granted) = $0 { lease = granted }
        }
        store.flush()
        var failure: DatabaseError?
        takeOver { failure = $0 }
        store.flush()
        if let failure { throw failure }
        listener = try RPCServer(
            transport: transport, address: settings.rpcAddress,
            hello: { [unowned self] in hello() },
            accept: { [unowned self] in accept($0) })
        if let listener {
            log.notice("listens", [LogField("address", listener.localAddress)])
        }
        loop.schedule(after: Self.tickInterval, repeating: Self.tickInterval) { [unowned self] in
            tick()
        }
        loop.schedule(
            after: Self.housekeepingInterval, repeating: Self.housekeepingInterval
        ) { [unowned self] in housekeep() }
        housekeep()
    }

    /// Says goodbye, gives the lease back and ends the loop.
    func stop() {
        guard !isStopping else { return }
        isStopping = true
        listener?.close()
        for session in sessions.values {
            session.connection.close(DatabaseError(.unavailable, "the controller stops"))
        }
        store.revoke(lease) { _ in }
        store.flush()
        // A moment for the goodbyes to leave.
        loop.schedule(after: .milliseconds(50)) { [loop] in loop.stop() }
    }

    /// The store closes with its last reference.
    func close() {}

    // MARK: The core

    func step(_ event: ControllerEvent) {
        guard controller != nil, !isStopping else { return }
        var effects = ControllerEffects()
        controller?.step(event, now: loop.now, into: &effects)
        for effect in effects.list { carryOut(effect) }
    }

    private func carryOut(_ effect: ControllerEffect) {
        switch effect {
        case .store(let transaction, let ticket):
            store.commit(transaction) { [unowned self] in
                switch $0 {
                case .success(let revision): step(.stored(ticket, revision))
                case .failure(.failed(let error)): step(.storeFailed(ticket, error))
                case .failure(let error):
                    step(.storeFailed(ticket, DatabaseError(.fenced, error.description)))
                }
            }
        case .acting(let term):
            metrics.isServing.set(1)
            isStandingBy = false
            log.notice("acts", [LogField("term", term)])
        case .standBy(let holder):
            if !isStandingBy { log.notice("stands by", [LogField("acting", holder)]) }
            isStandingBy = true
            controller = nil
            loop.schedule(after: Self.housekeepingInterval) { [unowned self] in
                takeOver { [unowned self] error in if let error { fail(error) } }
            }
        case .resign(let error): fail(error)
        case .admit(let connection, let admission):
            sessions[connection]?.connection.send(.registered) { admission.encode(into: &$0) }
        case .reject(let connection, let error): sessions[connection]?.connection.close(error)
        case .send(let connection, let commands):
            for piece in commands.pieces() {
                sessions[connection]?.connection.send(.nodeCommands) { piece.encode(into: &$0) }
            }
        case .publish(let update): publish(update)
        case .answer(let request, let error): answer(request, error)
        case .operationAnswer(let request, let result):
            guard case .operation(let id, let token) = requesters.removeValue(forKey: request),
                let session = sessions[id]
            else { return }
            session.requestsWaiting -= 1
            operationAnswer(result, token, of: session)
        case .decided(let text): log.info(text)
        }
    }

    private func takeOver(_ done: @escaping (DatabaseError?) -> Void) {
        store.range(prefix: []) { [unowned self] result in
            do throws(DatabaseError) {
                let snapshot: MetadataSnapshot
                switch result {
                case .success(let value): snapshot = value
                case .failure(.failed(let error)): throw error
                case .failure(let error): throw DatabaseError(.unavailable, error.description)
                }
                controller = try Controller(
                    settings: settings.core, snapshot: snapshot, lease: lease,
                    clusterCandidate: clusterCandidate, now: loop.now)
                done(nil)
                tellClock()
                step(.start)
            } catch {
                done(error)
            }
        }
    }

    private func tellClock() {
        step(.clock(EventLoop.wallClockNanoseconds() / 1_000_000))
    }

    private func fail(_ error: DatabaseError) {
        metrics.isServing.set(0)
        metrics.isLeader.set(0)
        log.error("can act no more", [LogField("reason", error.message)])
        onFailure(error)
    }

    private func tick() {
        let started = loop.now
        step(.tick)
        metrics.tickDuration.observe(loop.now - started)
        metrics.lastTick.set(Int64(EventLoop.wallClockNanoseconds() / 1_000_000_000))
    }

    private func housekeep() {
        guard !isStopping else { return }
        let now = loop.now
        tellClock()
        store.keepAlive(lease, now: now) { [unowned self] in
            if case .failure = $0 { step(.leaseLost) }
        }
        store.tick(now: now)
        metrics.storeRecords.set(Int64(store.recordCount))
        metrics.storeBytes.set(Int64(store.memoryBytes))
        if let controller { metrics.update(controller) }
    }

    // MARK: Connections

    private func hello() -> Hello {
        Hello(
            role: .controller, cluster: controller?.cluster ?? 0, name: settings.core.name,
            addresses: [settings.adminAddress])
    }

    private func accept(_ connection: RPCConnection) -> ControllerSession {
        connectionsIssued += 1
        let session = ControllerSession(
            id: ConnectionID(connectionsIssued), connection: connection, server: self)
        sessions[session.id] = session
        return session
    }

    func closed(_ session: ControllerSession) {
        sessions[session.id] = nil
        step(.connectionClosed(session.id))
    }

    // MARK: The map

    func watchMap(_ session: ControllerSession, from revision: Revision) {
        guard let controller, controller.isActing else {
            session.connection.close(DatabaseError(.unavailable, "this controller does not act"))
            return
        }
        for update in controller.mapUpdates(since: revision) {
            for piece in update.pieces() {
                session.connection.send(.mapUpdate) { piece.encode(into: &$0) }
            }
        }
        session.followsMap = true
    }

    private func publish(_ update: MapUpdate) {
        var frame = ByteWriter()
        for piece in update.pieces() {
            Frame.append(.mapUpdate, to: &frame) { piece.encode(into: &$0) }
        }
        for session in sessions.values where session.followsMap {
            if session.connection.pendingBytes > Self.followerBytesMax {
                session.connection.close(
                    DatabaseError(.overloaded, "the map is not read fast enough"))
            } else {
                session.connection.sendFrames(frame.bytes)
            }
        }
    }

    // MARK: Table requests

    func tableRequest(_ request: TableRequest, token: UInt32, of session: ControllerSession) {
        guard session.requestsWaiting < ControllerSession.requestsWaitingMax else {
            return session.answer(
                token, DatabaseError(.overloaded, "too many table requests wait"))
        }
        submit(request, for: .router(session.id, token: token), of: session)
    }

    func submit(_ request: TableRequest, for requester: Requester, of session: ControllerSession) {
        metrics.tableRequests.increment()
        session.requestsWaiting += 1
        requestsIssued += 1
        let id = RequestID(requestsIssued)
        requesters[id] = requester
        if controller == nil || isStopping {
            answer(id, DatabaseError(.unavailable, "this controller does not act"))
        } else {
            step(.tableRequest(id, request))
        }
    }

    private func answer(_ request: RequestID, _ error: DatabaseError?) {
        switch requesters.removeValue(forKey: request) {
        case .router(let id, let token):
            guard let session = sessions[id] else { return }
            session.requestsWaiting -= 1
            session.answer(token, error)
        case .tool(let id, let token, let table):
            guard let session = sessions[id] else { return }
            session.requestsWaiting -= 1
            adminAnswer(error, table: table, token, of: session)
        case .operation, nil: break
        }
    }

    /// A number for a request of an operator's tool, by which its answer finds back.
    func operationRequest(from session: ControllerSession, _ token: UInt32) -> RequestID {
        session.requestsWaiting += 1
        requestsIssued += 1
        let id = RequestID(requestsIssued)
        requesters[id] = .operation(session.id, token: token)
        return id
    }
}

extension ControllerSession {
    func answer(_ token: UInt32, _ error: DatabaseError?) {
        connection.send(.tableResponse) { writer in
            writer.write(token)
            writer.write(error)
        }
    }
}
