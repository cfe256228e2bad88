// A controller whose metadata is in etcd: its store, its session, and whether it may act.
//
// Threads: everything here runs on the loop's thread; the store and the session have threads that wait for
// etcd. So an etcd that does not answer delays what waits for it, and nothing else.

import EtcdMetadata
import EventLoop
import Glibc
import KVBase
import MetadataCore
import MetadataStore
import ReplicatedLog
import SystemdSupport

final class EtcdNode: MetadataHome {
    struct Settings: Sendable {
        var etcd: EtcdSettings
        var name: String
        /// Where nodes, routers and tools reach this controller.
        var address: String
        var adminAddress: String
        /// How long after its death this controller counts as acting, in seconds.
        var sessionSeconds: UInt64
        /// For the lock, and the lease of the last session.
        var directory: String
        /// The move that brought the metadata here, when there was one.
        var move: MetadataMove?
    }

    private static let tickInterval = Nanoseconds.milliseconds(100)
    private static let beatInterval = Nanoseconds.milliseconds(500)
    /// Between two looks at what stands below the prefix, while that is not what it should be.
    private static let lookInterval = Nanoseconds.milliseconds(500)

    private let settings: Settings
    private let loop: EventLoop
    private let log: ComponentLog
    private let metrics: EtcdMetrics
    private let lock: DirectoryLock
    private let store: EtcdMetadataStore
    private let session: EtcdSession
    private let sessionFile: String
    private let memory: EtcdMemory
    /// What is in etcd follows from what this controller remembers.
    private var isRecognized = false
    private let mailbox: Mailbox<Void>
    private var leaseWritten: UInt64 = 0
    private var beatAt = Instant.origin
    private var leaderships: UInt64 = 0
    /// The create revision of the election key in which this controller leads.
    private var leadsIn: UInt64?
    /// In which it was deposed, though its session does not know yet.
    private var lostIn: UInt64 = 0
    private var outageSince: Instant?
    private var said = ""
    private var isLossSaid = false
    private var isClosed = false
    private let transfer: EtcdTransfer
    private let jobs: BackgroundJobs
    /// What stands below the prefix is metadata, or may become it.
    private var isValid = false
    private var isLooking = false
    private var lookAt = Instant.origin
    /// What a move brings is not read before it counts.
    private var isOpen: Bool { isValid || settings.move == nil }
    /// Why it is not valid, as far as it was seen.
    private var invalidity: String?

    var onChange: () -> Void = {}
    var onFailure: (DatabaseError) -> Void = { _ in }
    var onMove: (MetadataMove) -> Void = { _ in }
    /// The create revision of the election key that this controller holds; 0 when it holds none.
    private(set) var election: UInt64 = 0
    let clusterCandidate = UInt64.random(in: 1...UInt64.max)
    private(set) var leadership: UInt64?

    init(
        settings: Settings, loop: EventLoop, log: ComponentLog, metrics: EtcdMetrics
    ) throws(DatabaseError) {
        self.settings = settings
        self.loop = loop
        self.log = log
        self.metrics = metrics
        try DurableFile.createDirectory(settings.directory)
        lock = try DirectoryLock(directory: settings.directory)
        sessionFile = settings.directory + "/session"
        memory = try EtcdMemory(
            directory: settings.directory, prefix: settings.etcd.prefix, loop: loop, log: log)
        var receive: () -> Void = {}
        let mailbox = loop.makeMailbox(capacity: 1) { (_: [Void]) in receive() }
        self.mailbox = mailbox
        let place = EtcdPlace(
            incarnation: UInt64.random(in: 1...UInt64.max), name: settings.name,
            address: settings.address, adminAddress: settings.adminAddress)
        store = try EtcdMetadataStore(
            settings: settings.etcd, fence: .closed, clock: { [loop] in loop.now },
            wake: { _ = mailbox.post(()) })
        transfer = try EtcdTransfer(settings.etcd)
        jobs = BackgroundJobs(loop)
        session = try EtcdSession(
            settings: settings.etcd, place: place, seconds: settings.sessionSeconds,
            earlierLease: try Self.earlierLease(sessionFile),
            wake: { _ = mailbox.post(()) })
        receive = { [unowned self] in turn() }
        store.onChange = { [unowned self] in storeChanged() }
    }

    // MARK: What the server asks

    var metadata: (any MetadataStore)? { store.isLoaded ? store : nil }
    var state: RevisionedState? { store.isLoaded ? store.state : nil }
    var helloNode: NodeID { .none }

    var cluster: UInt64 {
        guard store.isLoaded, let record = store.state.get(Bytes("controller/cluster".utf8))
        else { return 0 }
        let cluster = try? ByteReader.decode(record.value) { (reader) throws(DatabaseError) in
            try reader.readUInt64()
        }
        return cluster ?? 0
    }

    func isAlone(at now: Instant) -> Bool {
        leadership != nil && store.failure == nil && now < session.validUntil
    }

    var leader: (name: String, address: String)? {
        guard outage == nil, store.failure == nil, let election = store.election else { return nil }
        return (election.place.name, election.place.address)
    }

    var obstacle: String? {
        if let invalidity { return invalidity }
        if let failure = store.failure { return failure.message }
        if let outage { return "etcd does not answer: \(outage)" }
        if session.isNameTaken {
            return "another controller named \(settings.name) has a session in etcd"
        }
        return store.isLoaded ? nil : "the metadata is being read from etcd"
    }

    private var outage: String? { store.outage ?? session.outage }

    func readStored(
        _ prefixes: [Bytes],
        _ completion: @escaping (Result<[MetadataRecord], DatabaseError>) -> Void
    ) {
        jobs.run("etcd-read") { [transfer] () throws(DatabaseError) in
            try transfer.records(under: prefixes)
        } _: {
            completion($0)
        }
    }

    // MARK: Time

    func start() throws(DatabaseError) {
        log.notice(
            "keeps its metadata in etcd",
            [
                LogField("endpoints", settings.etcd.endpoints.joined(separator: ",")),
                LogField("prefix", settings.etcd.prefix),
            ])
        loop.schedule(after: Self.tickInterval, repeating: Self.tickInterval) { [unowned self] in
            guard !isClosed else { return }
            if isOpen { store.tick(now: loop.now) }
            turn()
            if memory.isDue(loop.now), isRecognized, store.failure == nil {
                memory.see(cluster: cluster, revision: store.state.revision, now: loop.now)
            }
        }
        lookAround()
        turn()
    }

    func endTurn() {
        guard !isClosed, isOpen else { return }
        store.flush()
    }

    private func turn() {
        guard !isClosed else { return }
        session.flush()
        store.expect(sequence: session.sequence)
        if isOpen { store.flush() }
        if loop.now >= beatAt {
            beatAt = loop.now + Self.beatInterval
            session.beat(
                now: loop.now, known: store.sequence,
                campaigns: isValid && isRecognized && store.outage == nil && store.failure == nil)
        }
        if session.isBehind { store.doubt() }
        if !isValid || store.outage != nil { lookAround() }
        look()
    }

    private func storeChanged() {
        if let failure = store.failure {
            if failure.code == .refused {
                // The metadata has left: where to stands in etcd.
                isValid = false
                return lookAround()
            }
            guard store.isHistoryLost else { return onFailure(failure) }
            sayLoss(failure)
        }
        if store.isLoaded { recognize() }
        // Whoever acted is gone: no need to wait for the next beat.
        if store.election == nil { beatAt = min(beatAt, loop.now) }
        if case .closed = store.fence, let leadsIn { lostIn = leadsIn }
        onChange()
    }

    // MARK: A history that is lost

    /// Compares what is in etcd with what was there before this process, once, and notes it from then on.
    private func recognize() {
        guard !isRecognized, store.failure == nil else { return }
        if let objection = memory.objection(cluster: cluster, revision: store.state.revision) {
            return store.abandon(objection)
        }
        isRecognized = true
    }

    /// The process stays, to say so: whatever it decided now would contradict what nodes know.
    private func sayLoss(_ failure: DatabaseError) {
        guard !isLossSaid else { return }
        isLossSaid = true
        log.error(
            "decides nothing any more: etcd does not hold the metadata that it held; nodes and routers go "
                + "on",
            [LogField("reason", failure.message), LogField("runbook", "KVMetadataWentBack")])
    }

    // MARK: Acting

    /// Sees whether this controller may act, and says what there is to say.
    private func look() {
        rememberLease()
        sayOutage()
        if session.isNameTaken, said != settings.name {
            said = settings.name
            log.warning(
                "waits: another controller of this name has a session in etcd",
                [LogField("controller", settings.name)])
        }
        var held: UInt64?
        if let holding = session.holding, holding != lostIn, loop.now < session.validUntil,
            isRecognized, store.outage == nil, store.failure == nil
        {
            held = holding
        }
        guard held != leadsIn else { return }
        leadsIn = held
        election = held ?? 0
        if let held {
            leaderships += 1
            leadership = leaderships
            store.fence = .held(held)
            log.notice("is elected in etcd", [LogField("election", held)])
        } else {
            leadership = nil
            store.fence = .closed
            log.notice("is not elected in etcd any more")
        }
        onChange()
    }

    private func sayOutage() {
        if let outage, outageSince == nil {
            outageSince = loop.now
            log.error(
                "etcd does not answer: no decisions until it does; nodes and routers go on",
                [LogField("reason", outage)])
            onChange()
        } else if outage == nil, let since = outageSince {
            outageSince = nil
            log.notice(
                "etcd answers",
                [LogField("after_ms", (loop.now - since).count / 1_000_000)])
            onChange()
        }
    }

    // MARK: Moves

    /// Sees what stands below the prefix: completes what a move brought here, and follows one that led away.
    private func lookAround() {
        guard !isLooking, !isClosed, loop.now >= lookAt else { return }
        isLooking = true
        lookAt = loop.now + Self.lookInterval
        let expected = settings.move
        jobs.run("etcd-look") { [transfer] () throws(DatabaseError) in
            var found = try transfer.look()
            if let expected, case .incoming(expected.id, _) = found {
                try transfer.complete(id: expected.id)
                found = try transfer.look()
            }
            return found
        } _: { [unowned self] result in
            isLooking = false
            guard !isClosed else { return }
            switch result {
            // The store says so too.
            case .failure(let error) where error.code == .unavailable: return
            case .failure(let error): invalidity = error.message
            case .success(let content): judge(content)
            }
            onChange()
        }
    }

    private func judge(_ content: EtcdTransfer.Content) {
        invalidity = nil
        switch content {
        // Not where the store has seen since that the metadata left: a look that began before must not hide it.
        case .metadata: isValid = store.failure?.code != .refused
        case .nothing:
            guard let move = settings.move else {
                isValid = true
                return
            }
            store.abandon(
                "the metadata was moved to \(move.prefix) in etcd, and there is nothing: was it deleted?"
            )
            storeChanged()
        case .incoming:
            isValid = false
            invalidity =
                "metadata is being moved to \(settings.etcd.prefix) in etcd, and does not count yet"
        case .moved(let move?):
            isValid = false
            if let known = settings.move, known.revision > move.revision {
                invalidity = "the metadata that was moved to \(settings.etcd.prefix) is not there"
            } else {
                onMove(move)
            }
        case .moved(nil):
            onFailure(
                DatabaseError(
                    .refused,
                    "the metadata was moved out of etcd: set metadata = embedded, or another etcd.prefix"
                ))
        }
    }

    // MARK: The end

    func handOver() -> Bool {
        store.fence = .closed
        leadership = nil
        leadsIn = nil
        session.release()
        return false
    }

    func close() {
        guard !isClosed else { return }
        isClosed = true
        transfer.close()
        jobs.close()
        session.close()
        store.close()
        memory.close(
            isRecognized && store.failure == nil ? (cluster, store.state.revision) : nil)
    }

    // MARK: The lease of the last session

    /// A process before this one on the same directory is gone, for it held the lock: its session is ended
    /// at once, so that a restart need not wait for it.
    private static func earlierLease(_ path: String) throws(DatabaseError) -> UInt64 {
        guard let bytes = try DurableFile.read(path) else { return 0 }
        return UInt64(String(decoding: bytes, as: UTF8.self)) ?? 0
    }

    private func rememberLease() {
        guard session.lease != leaseWritten, session.lease != 0 else { return }
        leaseWritten = session.lease
        do throws(DatabaseError) {
            try DurableFile.replace(sessionFile, with: Bytes(String(leaseWritten).utf8))
        } catch {
            // A restart waits for the session to end, nothing more.
            log.warning("cannot note the session", [LogField("reason", error.message)])
        }
    }

    // MARK: Views

    func updateMetrics() {
        metrics.update(
            store.statistics, isUp: outage == nil, isElected: leadership != nil,
            isHistoryLost: store.isHistoryLost)
    }

    func controllerViews(acting term: UInt64?, admin: String) -> [ControllerView] {
        let elected = leader?.name
        return store.controllers.map { place in
            let isOwn = place.name == settings.name
            return ControllerView(
                name: place.name, rpc: place.address, admin: place.adminAddress,
                acting: isOwn && term != nil, term: isOwn ? term ?? 0 : 0,
                role: place.name == elected ? "leader" : "follower", reachable: true, lag: 0,
                state: "member")
        }
    }

    func controllersView(acting term: UInt64?, admin: String) -> ControllersView {
        let role = leadership != nil ? "leader" : store.isLoaded ? "follower" : "empty"
        let revision = store.state.revision.rawValue
        return ControllersView(
            name: settings.name, rpc: settings.address, role: role,
            term: store.election?.createRevision ?? 0, form: "\(MetadataForm.etcd)",
            acting: term != nil, obstacle: obstacle,
            leader: Nullable(leader?.name), applied: revision, commit: revision,
            controllers: controllerViews(acting: term, admin: admin))
    }
}
