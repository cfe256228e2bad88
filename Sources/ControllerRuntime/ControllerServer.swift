// The controller's shell: carries the core's effects out on one event loop.
//
// Whoever leads the metadata group acts; the others stand by with a warm copy. Threads: everything here
// runs on the loop's thread; the metadata log is written by a thread of its own.

import ControllerCore
import Daemon
import EventLoop
import KVBase
import MetadataCore
import MetadataStore
import Metrics
import RPC
import ReplicationCore
import ShardCore
import SystemdSupport
import WireProtocol

final class ControllerServer: LoopService {
    static let tickInterval = Nanoseconds.milliseconds(25)
    static let leaseDuration = Nanoseconds.seconds(3)
    static let housekeepingInterval = Nanoseconds.milliseconds(500)
    /// A follower of the map with this much unsent is cut off; it asks for the map when it is back.
    static let followerBytesMax = 64 << 20

    /// Before a controller that resigned, though it still leads the metadata group, acts again.
    static let retryInterval = Nanoseconds.milliseconds(500)

    let settings: ControllerServerSettings
    let loop: EventLoop
    let log: ComponentLog
    let metrics: ControllerMetrics
    private let pages: ControllerPages
    private let onFailure: (DatabaseError) -> Void
    /// Begins this program anew.
    let onMove: (String) -> Void
    let home: any MetadataHome
    /// The same, when the metadata is replicated among the controllers.
    let quorum: QuorumNode?
    private let takeOverDuration: DurationHistogram
    /// Nil when no backup is asked for.
    private(set) var backup: BackupKeeper?
    /// Not behind the snapshots: nobody acts until this one is done.
    private let jobs: BackgroundJobs
    let maps: MapFeed
    private let warm: WarmShards
    let transport: RPCTransport
    /// Nil when the metadata is not in etcd.
    private let certificates: CertificateWatch?
    /// To the acting controller, while this one stands by.
    var clockLink: ClockLink?
    private var listener: RPCServer?
    private(set) var controller: Controller?
    private(set) var sessions: [ConnectionID: ControllerSession] = [:]
    /// Rises with every attempt to act: answers of the store to an earlier one are dropped.
    private(set) var attempt: UInt64 = 0
    /// The leadership (`MetadataHome`) in which this controller acts or is about to.
    private var attemptTerm: UInt64?
    private var leadsSince = Instant.origin
    var requesters = Requesters()
    var auditBook = AuditBook()
    var moves = MoveState()
    private var lease: LeaseID = .none
    private var connectionsIssued: UInt64 = 0
    private(set) var isStopping = false
    /// The core gives up: what it answers now may have been carried out.
    private(set) var isResigning = false

    /// `onFailure` is told once why this process can act no more.
    init(
        settings: ControllerServerSettings, loop: EventLoop, log: ComponentLog,
        metrics: ControllerMetrics, quorumMetrics: QuorumMetrics, backupMetrics: BackupMetrics,
        pages: ControllerPages, registry: MetricsRegistry, onMove: @escaping (String) -> Void,
        onFailure: @escaping (DatabaseError) -> Void
    ) throws(DatabaseError) {
        self.settings = settings
        self.loop = loop
        self.log = log
        self.metrics = metrics
        self.pages = pages
        self.onFailure = onFailure
        self.onMove = onMove
        // Before the transport's: what the store answers goes out in the same turn.
        var endTurn: () -> Void = {}
        loop.onTurnEnd { endTurn() }
        transport = RPCTransport(loop: loop)
        jobs = BackgroundJobs(loop)
        maps = MapFeed(loop)
        warm = WarmShards(loop)
        var hello: () -> Hello = { preconditionFailure("no connection is made before the start") }
        takeOverDuration = quorumMetrics.takeOver
        if let wanted = settings.etcd {
            quorum = nil
            home = try EtcdNode(
                settings: wanted, loop: loop, log: log, metrics: EtcdMetrics(registry))
        } else {
            let node = try QuorumNode(
                settings: settings.quorum, loop: loop, transport: transport, log: log,
                metrics: quorumMetrics, controllerMetrics: metrics, hello: { hello() })
            quorum = node
            home = node
        }
        certificates = settings.etcd.map {
            CertificateWatch(
                CertificateWatch.files(of: $0.etcd), loop: loop, log: log, registry: registry)
        }
        let home = home
        endTurn = { [unowned self] in
            storeAudit()
            home.endTurn()
        }
        hello = { [unowned self] in self.hello() }
        home.onChange = { [unowned self] in leadershipChanged() }
        home.onFailure = { [unowned self] in fail($0) }
        home.onMove = { [unowned self] in follow($0) }
        if let wanted = settings.backup {
            let service = try BackupService(
                to: wanted.destination, settings: wanted.settings, loop: loop, log: log,
                metrics: backupMetrics
            ) { [unowned self] in receive($0) }
            backup = BackupKeeper(service, loop)
        }
    }

    /// Joins the metadata group, and listens.
    func start() throws(DatabaseError) {
        listener = try RPCServer(
            transport: transport, address: settings.rpcAddress,
            hello: { [unowned self] in hello() },
            accept: { [unowned self] in accept($0) })
        if let listener {
            log.notice("listens", [LogField("address", listener.localAddress)])
        }
        try home.start()
        loop.schedule(after: Self.tickInterval, repeating: Self.tickInterval) { [unowned self] in
            tick()
        }
        loop.schedule(
            after: Self.housekeepingInterval, repeating: Self.housekeepingInterval
        ) { [unowned self] in housekeep() }
        housekeep()
    }

    /// Says goodbye, hands the metadata group over and ends the loop.
    func stop() {
        guard !isStopping else { return }
        standDown(DatabaseError(.unavailable, "the controller stops"))
        stopBackup()
        isStopping = true
        listener?.close()
        for session in sessions.values {
            session.connection.close(DatabaseError(.unavailable, "the controller stops"))
        }
        let isHandingOver = home.handOver()
        // A moment for the goodbyes to leave and for the successor to win.
        loop.schedule(after: .milliseconds(isHandingOver ? 250 : 50)) { [loop] in loop.stop() }
    }

    func close() {
        backup?.close()
        moves.migration?.close()
        moves.jobs?.close()
        jobs.close()
        maps.close()
        certificates?.close()
        warm.close()
        home.close()
    }

    // MARK: Acting and standing by

    /// Acts when this replica has come to lead the metadata group, stands down when it does not any more.
    func leadershipChanged() {
        guard !isStopping else { return }
        guard !moves.isFrozen else { return moves.migration?.leadershipChanged() ?? () }
        guard let leadership = home.leadership else {
            if attemptTerm != nil {
                let reason = home.obstacle ?? "this controller does not lead the metadata group"
                standDown(DatabaseError(.notLeader, reason))
            }
            return
        }
        guard attemptTerm != leadership else { return }
        if attemptTerm != nil {
            standDown(DatabaseError(.notLeader, "the metadata group has a new term"))
        }
        attemptTerm = leadership
        leadsSince = loop.now
        takeOver()
    }

    /// Ends the leases of controllers before this one, for they can store nothing any more, then reads
    /// everything and begins.
    private func takeOver() {
        guard let store = home.metadata, !isStopping else { return }
        attempt += 1
        let number = attempt
        lease = .none
        store.range(prefix: Bytes("controller/".utf8)) { [unowned self] result in
            guard number == attempt else { return }
            guard case .success(let snapshot) = result else { return couldNotRead(result) }
            // Before anything is changed: the metadata may have left.
            if followMark() { return }
            for record in snapshot.records where record.lease != .none {
                store.revoke(record.lease) { _ in }
            }
            store.grantLease(ttl: Self.leaseDuration, now: loop.now) { [unowned self] in
                guard number == attempt else { return }
                guard case .success(let granted) = $0 else { return couldNotRead($0) }
                lease = granted
                read(number)
            }
        }
    }

    /// Either the leadership is gone too, and this is dropped, or it is tried again in a moment.
    private func couldNotRead<Value>(_ result: Result<Value, MetadataError>) {
        guard case .failure(let error) = result else { return }
        resigned(DatabaseError(.unavailable, error.description))
    }

    /// Builds the core from this controller's copy of the state, off the loop: with a million shards that
    /// were not decoded before it takes a second, and a leader that is silent for so long is no leader
    /// any more.
    private func read(_ number: UInt64) {
        guard let state = home.state else { return }
        let candidate = home.clusterCandidate
        let (core, lease, now) = (settings.core, lease, loop.now)
        let standby = warm.shards(at: state.revision)
        jobs.run("take-over") { () throws(DatabaseError) -> Controller in
            try Controller(
                settings: core,
                snapshot: MetadataSnapshot(
                    revision: state.revision,
                    records: standby == nil
                        ? state.range(prefix: [])
                        : state.range(without: StandbyShards.prefix)),
                standby: standby, lease: lease, clusterCandidate: candidate, now: now)
        } _: { [unowned self] result in
            guard number == attempt, !isStopping else { return }
            switch result {
            // No thread for it: that passes.
            case .failure(let error) where error.code == .unavailable: resigned(error)
            case .failure(let error): fail(error)
            case .success(let read):
                guard home.state?.revision == state.revision else {
                    return self.read(number)
                }
                controller = read
                tellClock()
                step(.start)
            }
        }
    }

    /// Acts no more, if it did: whoever waits is answered, and who is connected is told.
    func standDown(_ reason: DatabaseError) {
        step(.leaseLost)
        guard attemptTerm != nil else { return }
        attempt += 1
        attemptTerm = nil
        controller = nil
        maps.forget()
        // Of metadata that moves the last revisions are stored too.
        if !moves.isFrozen { stopBackup() }
        auditBook = AuditBook()
        metrics.standDown()
        log.notice(
            "stands by", [LogField("reason", reason.message)], event: .controllerStandsBy)
        for session in sessions.values { session.stands(standing) }
    }

    /// The core gave up. While this replica leads the metadata group nobody else can act, so it begins
    /// anew in a moment.
    private func resigned(_ error: DatabaseError) {
        guard attemptTerm != nil, !isStopping else { return }
        log.warning("resigns", [LogField("reason", error.message)])
        controller = nil
        standDown(error)
        loop.schedule(after: Self.retryInterval) { [unowned self] in leadershipChanged() }
    }

    // MARK: The core

    func step(_ event: ControllerEvent) {
        guard controller != nil, !isStopping else { return }
        var effects = ControllerEffects()
        controller?.step(event, now: loop.now, into: &effects)
        isResigning = controller?.hasResigned ?? false
        for effect in effects.list { carryOut(effect) }
        isResigning = false
    }

    private func carryOut(_ effect: ControllerEffect) {
        switch effect {
        case .store(let transaction, let ticket):
            let number = attempt
            home.metadata?.commit(transaction) { [unowned self] in
                guard number == attempt else { return }
                switch $0 {
                case .success(let revision): step(.stored(ticket, revision))
                case .failure(.failed(let error)): step(.storeFailed(ticket, error))
                case .failure(let error):
                    step(.storeFailed(ticket, DatabaseError(.fenced, error.description)))
                }
            }
        case .acting(let term):
            metrics.isServing.set(1)
            let took = loop.now - leadsSince
            takeOverDuration.observe(took)
            log.notice(
                "acts",
                [LogField("term", term), LogField("after_ms", took.count / 1_000_000)],
                event: .controllerActs)
            for session in sessions.values { session.stands(standing) }
            startBackup()
            sayNotMoved()
        case .standBy(let holder):
            resigned(DatabaseError(.fenced, "\(holder) holds the lease to act"))
        case .resign(let error): resigned(error)
        case .admit(let connection, let admission):
            sessions[connection]?.connection.send(.registered) { admission.encode(into: &$0) }
        case .reject(let connection, let error): sessions[connection]?.connection.close(error)
        case .send(let connection, let commands):
            for piece in commands.pieces() {
                sessions[connection]?.connection.send(.nodeCommands) { piece.encode(into: &$0) }
            }
        case .publish(let update): publish(update)
        case .answer(let request, let error): answer(request, error)
        case .operationAnswer(let request, let result): answer(request, result)
        case .backUp(let id): backUp(id)
        case .verifyBackup(let id): verifyBackup(id)
        case .verifyNoMore(let id): verifyNoMore(id)
        case .decided(let text): log.info(text, event: .decision)
        }
    }

    private func tellClock() {
        step(.clock(EventLoop.wallClockNanoseconds() / 1_000_000))
    }

    /// The store failed, or holds what cannot be read.
    func fail(_ error: DatabaseError) {
        guard !isStopping else { return }
        metrics.standDown()
        log.error("can act no more", [LogField("reason", error.message)])
        onFailure(error)
    }

    private func tick() {
        let started = loop.now
        lookForMove()
        step(.tick)
        metrics.tickDuration.observe(loop.now - started)
        metrics.lastTick.set(Int64(EventLoop.wallClockNanoseconds() / 1_000_000_000))
    }

    private func housekeep() {
        guard !isStopping else { return }
        askForMove()
        home.updateMetrics()
        maps.forgetUnused(now: loop.now)
        metrics.hasLeader.set(home.leader == nil ? 0 : 1)
        metrics.connections.set(Int64(sessions.count))
        compareClocks()
        pages.publish(self)
        guard let store = home.metadata, let state = home.state else { return }
        metrics.revision.set(Int64(state.revision.rawValue))
        metrics.storeRecords.set(Int64(state.records.count))
        metrics.storeBytes.set(Int64(state.records.memoryBytes))
        if attemptTerm == nil { warm.follow(store, state) }
        if attemptTerm != nil, lease != .none {
            let number = attempt
            store.keepAlive(lease, now: loop.now) { [unowned self] in
                guard number == attempt else { return }
                if case .failure = $0 { step(.leaseLost) }
            }
        }
        guard let controller else { return }
        tellClock()
        metrics.update(controller, progress: views(of: controller).percents())
    }

    // MARK: Connections

    func hello() -> Hello {
        Hello(
            role: .controller, cluster: home.cluster,
            node: home.helloNode, name: settings.core.name,
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
}
