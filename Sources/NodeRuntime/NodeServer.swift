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

/// Owns all state of the node; every method runs on the loop's thread.
final class NodeServer: LoopService {
    static let heartbeatInterval = Nanoseconds.milliseconds(150)
    static let checkpointInterval = Nanoseconds.seconds(30)
    /// How often routers are told again who leads: a controller that lost sight of a leader has told
    /// them that nobody does.
    static let reminderInterval = Nanoseconds.milliseconds(250)
    static let unflushedBytesMax: UInt64 = 64 << 20

    var settings: NodeSettings
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
    var identity: NodeIdentity
    var map = ClusterMap(.withoutShards)
    /// What the newest map said of nodes and tables; kept over restarts.
    var book = AddressBook()
    /// Of the wall clock; shared with whoever shows it.
    var clockOffset: ClockOffset { status.clockOffset }
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
    /// What a controller said that did not take this node; nil from the next registration on.
    var refusal: String?
    private var inbound: [InboundConnection] = []
    let sessions = RouterSessions()
    var isStopping = false
    /// Leaders take no more requests in: this node is about to end.
    var refusesRequests = false
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
                    scrubBytesPerSecond: settings.scrubBytesPerSecond, metrics: metrics
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
        peers.didMeasure = { [roundTrip = metrics.peerRoundTrip] in roundTrip.observe($0.duration) }
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
        sessions.flush()
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
        ping()
        scrub()
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

    func forget(_ connection: InboundConnection) { inbound.removeAll { $0 === connection } }

    // MARK: Replicas

    func add(_ replica: GroupReplica) { replicas.set(replica, for: replica.group) }
}
