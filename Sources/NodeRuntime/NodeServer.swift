// A data-plane node: its replicas, its disks and everybody who talks to it, on one event loop.

import Daemon
import EventLoop
import KVBase
import LSMEngine
import Metrics
import NodeCore
import RPC
import ReplicatedLog
import ReplicationCore
import ShardCore
import StorageAPI
import SystemdSupport
import WireProtocol

/// What a node is told by its configuration.
struct NodeSettings: Sendable {
    var name: String
    var dataDirectories: [String]
    var rpcAddress: SocketAddress
    var adminAddress: String
    var controllers: [SocketAddress]
    /// Most bytes per second that a group copies of a shard that moves to it. Above zero.
    var copyBytesPerSecond: UInt64
    var zone: String
    var isSpare: Bool
    /// Log bytes of a disk after which its engines are made durable.
    var checkpointBytes: Int
    /// Entries kept in memory behind that point for followers that lag a little.
    var retainedBytes: Int
    /// Memory for decompressed blocks of all LSM engines of the node together.
    var cacheBytes: Int
    /// A request that takes longer is told in the log; zero tells none.
    var slowRequest: Nanoseconds
}

/// Owns all state of the node; every method runs on the loop's thread.
final class NodeServer: LoopService {
    static let heartbeatInterval = Nanoseconds.milliseconds(150)
    static let checkpointInterval = Nanoseconds.seconds(30)
    /// How often routers are told again who leads: a controller that lost sight of a leader has told
    /// them that nobody does.
    static let reminderInterval = Nanoseconds.milliseconds(250)
    static let unflushedBytesMax: UInt64 = 64 << 20

    let settings: NodeSettings
    let loop: EventLoop
    let log: ComponentLog
    let metrics: NodeMetrics
    let status: NodeStatus
    let tuning: Tuning
    let incarnation = UInt64.random(in: 1 ... .max)
    var random = SeededRandom(seed: UInt64.random(in: 0 ... .max))
    let storageKey = StorageKey()
    /// What the groups led here are asked, and the newest report of it with its number.
    var load: LoadMeter
    private(set) var loadReport = LoadReport(groups: [], shards: [])
    private(set) var loadNumber: UInt64 = 0
    let applyScratch = ApplyScratch()
    let disks: [Disk]
    private(set) var transport: RPCTransport
    private(set) var peers: PeerLinks
    private(set) var identity: NodeIdentity
    private(set) var map = ClusterMap(.withoutShards)
    /// What the newest map said of nodes and tables; kept over restarts.
    var book = AddressBook()
    /// The monotonic clock, read anew at each call.
    var now: Instant { loop.now }

    var dirty: [GroupReplica] = []
    /// Those that have more to apply than fits in a turn.
    private var postponed: [GroupReplica] = []
    var replicas = SortedRecords<GroupID, GroupReplica>()
    var withGarbage: [GroupReplica] = []
    var shardReports = SortedRecords<ShardID, ShardReport>()
    var changedReports: [ShardID] = []
    /// Digests to be made, the first of them under way.
    var digestions: [ShardDigestion] = []
    /// A slice is being digested, or rests.
    var isDigesting = false
    var digests: [ShardDigest] = []
    /// Groups whose replica here is on its way into or out of being.
    var creating: [GroupID] = []
    /// Replicas removed whose records are still to be deleted.
    var removed: [RemovedReplica] = []
    /// How long requests take here, and what tells: those that this turn answered, and how busy the
    /// loop was before.
    var foreground = ForegroundLatency()
    var answered: [AnsweredRequest] = []
    var slow: SlowRequests
    var lastTurnEnd = Instant.origin
    var busyBefore: UInt64 = 0
    /// Requests may suffer from a copy until then.
    var disturbedUntil = Instant.origin
    /// Answers of groups here to groups here; taken in at the end of the turn.
    var selfAnswers: [ShardRecords] = []
    var outcomes: [CommandOutcome] = []
    var controllerTerm = Term.none
    var isHeartbeatDue = false
    var surveyNotBefore = Instant.origin
    var surveyedLast = GroupID.none
    var sweepNotBefore = Instant.origin

    private(set) var server: RPCServer?
    private(set) var controllers: [ControllerLink] = []
    private var inbound: [InboundConnection] = []
    private var sessions: [RouterSession?] = []
    private var nextGeneration: UInt32 = 1
    private var dirtySessions: [Int32] = []
    var isStopping = false
    private(set) var surveys: Completions

    /// Opens disks and recovers replicas; blocking. `progress` gets sentences for the status line.
    init(
        settings: NodeSettings, loop: EventLoop, log: ComponentLog, metrics: NodeMetrics,
        status: NodeStatus, progress: (String) -> Void
    ) throws(DatabaseError) {
        self.settings = settings
        var tuning = Tuning()
        tuning.retainedBytesMax = settings.retainedBytes
        self.tuning = tuning
        self.loop = loop
        load = LoadMeter(seed: UInt64.random(in: 0 ... .max), now: loop.now)
        slow = SlowRequests(threshold: settings.slowRequest)
        self.log = log
        self.metrics = metrics
        self.status = status
        let known = try NodeIdentity.readAll(directories: settings.dataDirectories)
        identity =
            known
            ?? NodeIdentity(
                node: .none, cluster: 0, disk: 0, diskCount: settings.dataDirectories.count)
        let cache = LSMCache(bytes: settings.cacheBytes)
        var opened: [Disk] = []
        for (index, path) in settings.dataDirectories.enumerated() {
            progress("opening the engines of \(path)")
            opened.append(
                try Disk(
                    index: index, path: path, expectExisting: known != nil, cache: cache,
                    metrics: metrics
                ) { done, total in
                    status.recovered(
                        disk: index, of: settings.dataDirectories.count, done: done, total: total)
                    let percent = total == 0 ? 100 : done * 100 / total
                    progress("replaying the log of \(path): \(percent) % of \(total) bytes")
                })
        }
        disks = opened
        var hook: () -> Void = {}
        loop.onTurnEnd { hook() }
        let transport = RPCTransport(loop: loop)
        self.transport = transport
        var hello: (NodeID) -> Hello = { _ in Hello(role: .node, cluster: 0, name: "") }
        peers = PeerLinks(transport: transport) { hello($0) }
        surveys = Completions(loop) { _ in }
        hook = { [unowned self] in endTurn() }
        hello = { [unowned self] expected in self.hello(expects: expected) }
        for disk in disks {
            disk.attach(loop)
            disk.didFail = { [unowned self] in diskFailed($0) }
        }
        progress("bringing back the replicas")
        try recoverReplicas()
        status.endRecovery()
        peers.didLose = { [unowned self] in peerLost($0, $1) }
        try readAddressBook()
    }

    /// Starts to serve.
    func start() throws(DatabaseError) {
        LSMReadCounts.countOnThisThread()
        server = try RPCServer(
            transport: transport, address: settings.rpcAddress,
            hello: { [unowned self] in hello() },
            accept: { [unowned self] _ in
                let connection = InboundConnection(node: self)
                inbound.append(connection)
                return connection
            })
        controllers = settings.controllers.map { ControllerLink(node: self, address: $0) }
        // What recovery found to be amended in the log goes there first.
        for replica in replicas.elements { replica.step(.tick) }
        publishStatus()
        loop.schedule(after: tuning.tickInterval, repeating: tuning.tickInterval) {
            [unowned self] in tick()
        }
        loop.schedule(after: Self.heartbeatInterval, repeating: Self.heartbeatInterval) {
            [unowned self] in isHeartbeatDue = true
        }
        loop.schedule(after: Self.reminderInterval, repeating: Self.reminderInterval) {
            [unowned self] in remindRouters()
        }
        loop.schedule(after: LatencyWindow.slice, repeating: LatencyWindow.slice) {
            [unowned self] in foreground.advance(isDisturbed: isDisturbed)
        }
        loop.schedule(after: .seconds(1), repeating: .seconds(1)) { [unowned self] in
            everySecond()
        }
        loop.schedule(after: Self.checkpointInterval, repeating: Self.checkpointInterval) {
            [unowned self] in
            for disk in disks where disk.bytesSinceCheckpoint > 0 { checkpoint(disk) }
        }
    }

    func hello(expects: NodeID = .none) -> Hello {
        Hello(
            role: .node, cluster: identity.cluster, node: identity.node, expects: expects,
            name: settings.name)
    }

    func replica(_ group: GroupID) -> GroupReplica? { replicas[group] }

    /// A controller that acts has taken this node in.
    var isControlled: Bool { controllers.contains(where: \.isRegistered) }

    // MARK: The turn

    private func endTurn() {
        // Proposing and applying may dirty replicas again (a group of one commits on its own).
        var rounds = 0
        while !dirty.isEmpty || !selfAnswers.isEmpty, rounds < 16 {
            var answers: [ShardRecords] = []
            swap(&answers, &selfAnswers)
            for answer in answers { receive(answer) }
            var batch: [GroupReplica] = []
            swap(&batch, &dirty)
            for replica in batch {
                replica.isDirty = false
                replica.propose()
                replica.applyCommitted()
            }
            rounds += 1
        }
        for disk in disks { disk.submit() }
        if !outcomes.isEmpty {
            for controller in controllers { controller.send(outcomes) }
            outcomes.removeAll()
        }
        if isHeartbeatDue {
            isHeartbeatDue = false
            for controller in controllers { controller.sendHeartbeat() }
            changedReports.removeAll(keepingCapacity: true)
        }
        measureAnswers()
        for slot in dirtySessions { sessions[Int(slot)]?.flush() }
        dirtySessions.removeAll(keepingCapacity: true)
        peers.flush()
    }

    /// Lets a replica go on applying in the next turn, after whatever else has arrived.
    func postpone(_ replica: GroupReplica) {
        if postponed.isEmpty {
            loop.schedule(after: .zero) { [unowned self] in
                var batch: [GroupReplica] = []
                swap(&batch, &postponed)
                for replica in batch { replica.resumeApplying() }
            }
        }
        postponed.append(replica)
    }

    private func tick() {
        status.countTick()
        lookAtDisks()
        let now = now
        for replica in replicas.elements where replica.core.nextDeadline(now: now) <= now {
            replica.step(.tick)
        }
        for replica in replicas.elements where replica.orphansUntil <= now { replica.failOrphans() }
        for replica in replicas.elements where replica.isLeader { replica.continueCopies() }
        for disk in disks
        where disk.bytesSinceCheckpoint >= settings.checkpointBytes && !disk.isCheckpointing {
            checkpoint(disk)
        }
        collectGarbage()
        sweep()
    }

    private func everySecond() {
        for disk in disks where disk.failure == nil {
            disk.measure()
            let unflushed = disk.allEngines.reduce(0) { $0 + $1.statistics.unflushedBytes }
            if unflushed > Self.unflushedBytesMax { checkpoint(disk) }
        }
        surveyShards()
        loadReport = measureLoad()
        loadNumber += 1
        publishStatus()
    }

    func checkpoint(_ disk: Disk) {
        disk.checkpoint(replicas.elements.filter { $0.disk === disk && !$0.isFailed })
    }

    /// A role, a term or the membership changed: the controllers hear of it with this turn.
    func reportSoon() { isHeartbeatDue = true }

    private func diskFailed(_ disk: Disk) {
        guard let error = disk.failure else { return }
        log.error(
            "disk failed: its replicas stop until the node is restarted",
            [LogField("path", disk.path), LogField("reason", error.message)], event: .diskFailed)
        if error.isCorruption { metrics.engineChecksumFailures.increment() }
        for replica in replicas.elements where replica.disk === disk { replica.fail(error) }
        isHeartbeatDue = true
    }

    private func peerLost(_ peer: NodeID, _ reason: DatabaseError?) {
        for controller in controllers { controller.reportUnreachable(peer) }
        for replica in replicas.elements {
            for member in replica.core.membership.all where member.node == peer {
                replica.step(.unreachable(member.replica))
            }
        }
    }

    // MARK: Sessions and answers

    func openSession(_ connection: RPCConnection) -> RouterSession {
        let slot = sessions.firstIndex { $0 == nil } ?? sessions.count
        let session = RouterSession(
            connection: connection, slot: Int32(slot), generation: nextGeneration)
        nextGeneration += 1
        if slot == sessions.count { sessions.append(session) } else { sessions[slot] = session }
        for replica in replicas.elements
        where replica.isLeader && replica.core.canPropose && !replica.isFailed {
            tell(session, replica)
        }
        return session
    }

    /// A replica leads and serves: whoever routes requests or decides is told at once.
    func announce(_ replica: GroupReplica) {
        for session in sessions { if let session { tell(session, replica) } }
        reportSoon()
    }

    private func remindRouters() {
        let now = now
        for session in sessions {
            guard let session, !session.connection.isCongested else { continue }
            for replica in replicas.elements
            where !replica.isFailed && replica.core.canServeReads(at: now) {
                tell(session, replica)
            }
        }
    }

    private func tell(_ session: RouterSession, _ replica: GroupReplica) {
        let leader = GroupLeader(
            group: replica.group, term: replica.core.term, node: identity.node)
        session.connection.send(.leaderNotice) { leader.encode(into: &$0) }
    }

    var sessionCount: Int { sessions.count { $0 != nil } }

    func closeSession(_ session: RouterSession) { sessions[Int(session.slot)] = nil }

    func forget(_ connection: InboundConnection) { inbound.removeAll { $0 === connection } }

    /// Answers a waiter, whoever it is; one that is gone is passed over.
    func answer(
        _ waiter: Waiter, flags: ResponseFlags, sequencer: Sequencer,
        payload: UnsafeRawBufferPointer? = nil
    ) {
        if waiter.slot == Waiter.commandSlot {
            finishCommand(waiter, error: nil, floor: sequencer)
        } else {
            respond(waiter, .ok) {
                $0.writeResponse(
                    token: UInt32(truncatingIfNeeded: waiter.token), flags: flags,
                    sequencer: sequencer,
                    payload: payload ?? UnsafeRawBufferPointer(start: nil, count: 0))
            }
        }
    }

    func answer(_ waiter: Waiter, error: DatabaseError, sequencer: Sequencer = .zero) {
        if waiter.slot == Waiter.commandSlot {
            finishCommand(waiter, error: error)
        } else if error.code == .notLeader {
            // Routers read a hint there, never a sentence.
            answerNotLeader(waiter, LeaderHint(term: .none, node: .none))
        } else {
            let message = Bytes(error.message.utf8)
            respond(waiter, RequestResult(error.code)) { writer in
                message.withUnsafeBytes {
                    writer.writeResponse(
                        token: UInt32(truncatingIfNeeded: waiter.token), error: error.code,
                        sequencer: sequencer, payload: $0)
                }
            }
        }
    }

    func answerNotLeader(_ waiter: Waiter, _ hint: LeaderHint) {
        if waiter.slot == Waiter.commandSlot {
            finishCommand(waiter, error: DatabaseError(.notLeader, "another replica leads"))
        } else {
            var writer = ByteWriter()
            hint.encode(into: &writer)
            let payload = writer.bytes
            respond(waiter, .notLeader) { writer in
                payload.withUnsafeBytes {
                    writer.writeResponse(
                        token: UInt32(truncatingIfNeeded: waiter.token), error: .notLeader,
                        payload: $0)
                }
            }
        }
    }

    private func respond(
        _ waiter: Waiter, _ result: RequestResult, _ body: (inout ByteWriter) -> Void
    ) {
        guard waiter.slot >= 0, let session = sessions[Int(waiter.slot)],
            session.generation == waiter.generation
        else { return }
        if !session.isDirty {
            session.isDirty = true
            dirtySessions.append(waiter.slot)
        }
        answered.append(AnsweredRequest(waiter: waiter, result: result))
        session.respond(body)
    }

    // MARK: Replicas

    func add(_ replica: GroupReplica) { replicas.set(replica, for: replica.group) }

    /// Takes over the identity that a controller gave; durable before it is used.
    func admitted(_ admission: NodeAdmission) throws(DatabaseError) {
        guard identity.node != admission.node || identity.cluster != admission.cluster else {
            return
        }
        guard identity.node == .none else {
            throw DatabaseError(
                .fenced, "a controller takes node \(identity.node) for \(admission.node)")
        }
        for disk in disks {
            let own = NodeIdentity(
                node: admission.node, cluster: admission.cluster, disk: disk.index,
                diskCount: disks.count)
            try own.write(directory: disk.path)
        }
        identity.node = admission.node
        identity.cluster = admission.cluster
        publishStatus()
        log.notice(
            "admitted to the cluster", [LogField("node", admission.node)], event: .nodeAdmitted)
    }

    func registration() -> NodeRegistration {
        NodeRegistration(
            node: identity.node, cluster: identity.cluster, incarnation: incarnation,
            name: settings.name, rpcAddress: server?.localAddress.description ?? "",
            adminAddress: settings.adminAddress, zone: settings.zone, isSpare: settings.isSpare,
            diskPaths: settings.dataDirectories)
    }

    /// Takes over a step of the cluster map; false when it does not fit.
    func follow(_ update: MapUpdate) -> Bool {
        guard map.apply(update) else { return false }
        updatePeers(Array(map.nodes.elements))
        // Of a whole map in pieces the nodes are known with the last.
        let touchesBook =
            (update.isFull && update.isLast)
            || update.changes.contains {
                switch $0 {
                case .node, .nodeRemoved, .table, .tableRemoved: true
                default: false
                }
            }
        if touchesBook { writeAddressBook() }
        return true
    }

    func updatePeers(_ nodes: [Node]) {
        var addresses: [(NodeID, SocketAddress)] = []
        for peer in nodes where peer.id != identity.node {
            if let address = try? SocketAddress.parse(peer.rpcAddress) {
                addresses.append((peer.id, address))
            }
        }
        peers.update(addresses)
    }
}
