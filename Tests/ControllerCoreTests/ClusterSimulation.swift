// A controller with simulated nodes, network and store, driven by one seed.
//
// Nodes keep identity, replicas and terms over a crash; a nominee wins when a majority of its
// group's nodes runs. Frames may be lost; a store transaction takes time, and a crash of the
// controller keeps a random prefix of those on their way.

import KVBase
import NodeCore
import ShardCore

@testable import ControllerCore

final class ClusterSimulation {
    struct Options {
        var nodes = 3
        var zones: [String] = []
        var spares = 0
        var settings = {
            var settings = ControllerSettings(name: "controller-1")
            settings.releaseAfter = .milliseconds(100)
            return settings
        }()
        /// Of 1,000 frames between node and controller.
        var lostPerMille: UInt64 = 0
        /// Of 1,000 commands about shards: applied later than the others, applied again much later.
        var latePerMille: UInt64 = 0
        var repeatedPerMille: UInt64 = 0
        /// Chunks in which a shard is copied.
        var chunks = 4
        var tickInterval: Nanoseconds = .milliseconds(20)
        var beatInterval: Nanoseconds = .milliseconds(150)
    }

    struct Replica {
        var id: ReplicaID
        var term: Term = .none
        var lastTerm: Term = .none
        var lastIndex: LogIndex = .none
    }

    struct SimNode {
        var name: String
        var zone: String
        var isSpare: Bool
        var id: NodeID = .none
        var cluster: UInt64 = 0
        var replicas: [(group: Group, replica: Replica)] = []
        var leads: [GroupID: Term] = [:]
        var isRunning = true
        var incarnation: UInt64 = 0
        var connection: ConnectionID?
        var isAdmitted = false
        var sequence: UInt64 = 0
        var seenControllerTerm: Term = .none
        /// Of its two disks; nil when it reports none.
        var freeBytes: UInt64?
        /// Its first disk failed.
        var diskFailed = false
        /// Heard, but of no use: refuses new replicas, or takes nothing in.
        var refusesReplicas = false
        var isDeaf = false
        /// Reported with every heartbeat.
        var loopDelay = Nanoseconds.zero
        /// Replicas removed from it.
        var buried: Set<ReplicaID> = []
        /// Of its replicas; lost when it stops.
        var digests: [ReplicaID: ShardDigest] = [:]
    }

    /// Who belongs to a group: in the simulation a change is committed at once or not at all.
    struct Members {
        var voters: [ReplicaID]
        var learners: [ReplicaID] = []
        /// Heartbeats of the leader since a learner came: it has everything after a few.
        var beats: [ReplicaID: Int] = [:]
    }

    enum Happening {
        case toController(ControllerEvent, life: Int)
        case storeDone(life: Int)
        case tick(life: Int)
        case toNode(Int, incarnation: UInt64, ControllerEffect)
        case beat(Int, incarnation: UInt64)
        case connect(Int, incarnation: UInt64)
        case startController
        case backedUp(OperationID, life: Int)
        case verified(OperationID, life: Int)
        /// A command reaches the log of a group, whoever sent it and when.
        case shardCommand(
            GroupID, ShardCommand, at: Int, incarnation: UInt64, controllerTerm: Term, id: UInt64?)
        case copyChunk(GroupID)
        case digested(Int, incarnation: UInt64, ShardDigest)
    }

    let options: Options
    var random: SeededRandom
    var now = Instant(nanoseconds: 1_000_000_000)
    var store = SimulatedStore()
    var controller: Controller?
    /// Counts controller processes; what was sent to an earlier one is lost.
    var life = 0
    var nodes: [SimNode] = []
    var lostPerMille: UInt64
    /// What each group's log holds.
    var states: [GroupID: SimulatedGroup] = [:]
    /// A replica whose records differ from those of the others.
    var corruptReplica: ReplicaID?
    /// Nodes report neither copies nor digests, as earlier versions did.
    var isSilentAboutMoves = false
    /// Nothing is copied.
    var holdsCopies = false
    /// How a backup ends that was asked for, and how many were written.
    var backupOutcome: Result<String, DatabaseError> = .success("a snapshot is there")
    var backups = 0
    var verifications = 0
    var verificationsStopped: [OperationID] = []
    /// Counts of shards that were held by request.
    var holdCount = 0
    /// What leaders report, by group.
    var loads: [GroupID: LoadReport] = [:]
    var sizes: [ShardID: ShardReport] = [:]
    /// Requests and records that follow the shards; takes the place of `loads` and `sizes`.
    var traffic: SimulatedTraffic?
    var latePerMille: UInt64
    var repeatedPerMille: UInt64
    var memberships: [GroupID: Members] = [:]
    var operationAnswers: [RequestID: Result<OperationID, DatabaseError>] = [:]
    var follower = ClusterMap()
    var answers: [RequestID: [DatabaseError?]] = [:]
    var violations: [String] = []
    var log: [String] = []
    /// Crash the controller right after this many transactions (counted over all lives).
    var crashAfterStores: Int?
    /// Whether the transaction at which it crashes is kept.
    var crashKeepsLast = true
    private(set) var storeCount = 0
    private var storeQueue: [(MetadataTransaction, StoreTicket)] = []
    private var agenda = Agenda<Happening>()
    var connectionsIssued: UInt64 = 0
    var leaderOfTerm: [String: NodeID] = [:]

    init(seed: UInt64, _ options: Options) {
        self.options = options
        lostPerMille = options.lostPerMille
        latePerMille = options.latePerMille
        repeatedPerMille = options.repeatedPerMille
        random = SeededRandom(seed: seed)
        for index in 0..<(options.nodes + options.spares) {
            nodes.append(
                SimNode(
                    name: "node-\(index + 1)",
                    zone: options.zones.isEmpty ? "" : options.zones[index % options.zones.count],
                    isSpare: index >= options.nodes))
            nodes[index].incarnation = random.next() | 1
            schedule(.milliseconds(10 + random.below(200)), connect(index))
        }
        schedule(.milliseconds(1), .startController)
    }

    // MARK: Driving

    func run(for duration: Nanoseconds, until done: () -> Bool = { false }) {
        let end = now + duration
        while !done(), let next = agenda.takeFirst(until: end) {
            now = max(now, next.at)
            perform(next.what)
        }
        if !done() { now = max(now, end) }
    }

    func schedule(_ delay: Nanoseconds, _ what: Happening) { agenda.add(what, at: now + delay) }

    func send(_ event: ControllerEvent) {
        guard controller != nil else { return }
        var effects = ControllerEffects()
        controller?.step(event, now: now, into: &effects)
        take(effects)
    }

    func take(_ effects: ControllerEffects) {
        for effect in effects.list { carryOut(effect) }
    }

    func request(_ number: UInt64, _ request: TableRequest) {
        send(.tableRequest(RequestID(number), request))
    }

    func operate(_ number: UInt64, _ request: OperationRequest) {
        send(.operationRequest(RequestID(number), request))
    }

    func crash(node index: Int) {
        guard nodes[index].isRunning else { return }
        nodes[index].isRunning = false
        nodes[index].leads = [:]
        nodes[index].digests = [:]
        disconnect(index)
    }

    func start(node index: Int) {
        guard !nodes[index].isRunning else { return }
        nodes[index].isRunning = true
        nodes[index].incarnation = random.next() | 1
        nodes[index].sequence = 0
        schedule(.milliseconds(1 + random.below(50)), connect(index))
    }

    func wipe(node index: Int) {
        crash(node: index)
        nodes[index].id = .none
        nodes[index].cluster = 0
        nodes[index].replicas = []
        nodes[index].buried = []
        nodes[index].seenControllerTerm = .none
    }

    func crashController() {
        guard controller != nil else { return }
        let kept = Int(random.below(UInt64(storeQueue.count + 1)))
        for (transaction, _) in storeQueue[..<kept] { _ = store.commit(transaction) }
        stopController()
        schedule(.milliseconds(5 + random.below(500)), .startController)
    }

    /// A node is cut off from the controller, but runs on.
    func disconnect(_ index: Int) {
        guard let connection = nodes[index].connection else { return }
        nodes[index].connection = nil
        nodes[index].isAdmitted = false
        schedule(
            .microseconds(200), .toController(.connectionClosed(connection), life: life))
        if nodes[index].isRunning {
            schedule(.milliseconds(20 + random.below(300)), connect(index))
        }
    }

    func leader(of group: GroupID) -> NodeID? {
        for node in nodes where node.isRunning && node.leads[group] != nil { return node.id }
        return nil
    }

    // MARK: Happenings

    private func perform(_ what: Happening) {
        switch what {
        case .startController: startController()
        case .toController(let event, let life): if life == self.life { send(event) }
        case .tick(let life):
            guard life == self.life else { return }
            send(.tick)
            schedule(options.tickInterval, .tick(life: life))
        case .storeDone(let life): if life == self.life { completeStore() }
        case .backedUp(let id, let life):
            guard life == self.life else { return }
            backups += 1
            send(.backupEnded(id, backupOutcome))
        case .verified(let id, let life):
            guard life == self.life, !verificationsStopped.contains(id) else { return }
            verifications += 1
            send(.backupEnded(id, backupOutcome))
        case .connect(let index, let incarnation):
            guard nodes[index].isRunning, nodes[index].incarnation == incarnation,
                nodes[index].connection == nil
            else { return }
            register(index)
        case .beat(let index, let incarnation):
            guard nodes[index].isRunning, nodes[index].incarnation == incarnation,
                nodes[index].connection != nil
            else { return }
            beat(index)
            schedule(options.beatInterval, .beat(index, incarnation: incarnation))
        case .toNode(let index, let incarnation, let effect):
            guard nodes[index].isRunning, nodes[index].incarnation == incarnation else { return }
            receive(effect, at: index)
        case .shardCommand(let group, let command, let index, let incarnation, let term, let id):
            let error = applyShardCommand(command, in: group)
            guard let id, nodes[index].isRunning, nodes[index].incarnation == incarnation else {
                return
            }
            answer(
                CommandOutcome(
                    id: id, controllerTerm: term, error: error.error, floor: error.floor),
                from: index)
        case .copyChunk(let group): copyChunk(group)
        case .digested(let index, let incarnation, let digest):
            guard nodes[index].isRunning, nodes[index].incarnation == incarnation else { return }
            nodes[index].digests[digest.replica] = digest
            beat(index)
        }
    }

    private func startController() {
        guard controller == nil else { return }
        life += 1
        do {
            // Every other one stood by before.
            let isWarm = life % 2 == 0
            controller = try Controller(
                settings: options.settings,
                snapshot: isWarm ? store.snapshotWithoutShards : store.snapshot,
                standby: isWarm ? store.standby : nil, lease: LeaseID(UInt64(life)),
                clusterCandidate: random.next() | 1, now: now)
        } catch {
            violations.append("controller did not start: \(error)")
            return
        }
        send(.start)
        send(.clock(1_800_000_000_000 + now.nanoseconds / 1_000_000))
        schedule(.milliseconds(1), .tick(life: life))
    }

    private func stopController() {
        controller = nil
        life += 1
        storeQueue = []
        for index in nodes.indices where nodes[index].connection != nil {
            nodes[index].connection = nil
            nodes[index].isAdmitted = false
            schedule(.milliseconds(20 + random.below(100)), connect(index))
        }
    }

    private func completeStore() {
        guard !storeQueue.isEmpty else { return }
        let (transaction, ticket) = storeQueue.removeFirst()
        storeCount += 1
        let isCrash = storeCount == crashAfterStores
        if !isCrash || crashKeepsLast {
            switch store.commit(transaction) {
            case .success(let revision):
                if !isCrash { send(.stored(ticket, revision)) }
            case .failure(let error):
                violations.append("store refused: \(error)")
                send(.storeFailed(ticket, error))
            }
        }
        if isCrash {
            storeQueue = []
            stopController()
            schedule(.milliseconds(50), .startController)
        }
    }

    private func carryOut(_ effect: ControllerEffect) {
        switch effect {
        case .store(let transaction, let ticket):
            storeQueue.append((transaction, ticket))
            schedule(.microseconds(100 + random.below(3_000)), .storeDone(life: life))
        case .acting:
            catchUp()
        case .standBy, .resign: violations.append("unexpected \(effect)")
        case .publish(let update):
            if !follower.apply(update) { violations.append("follower refused \(update.to)") }
            checkShards()
        case .answer(let request, let error): answers[request, default: []].append(error)
        case .operationAnswer(let request, let result): operationAnswers[request] = result
        case .backUp(let id): schedule(.milliseconds(200), .backedUp(id, life: life))
        case .verifyBackup(let id): schedule(.milliseconds(200), .verified(id, life: life))
        case .verifyNoMore(let id): verificationsStopped.append(id)
        case .decided(let text): log.append("\(now.nanoseconds / 1_000_000) \(text)")
        case .admit(let connection, _), .reject(let connection, _), .send(let connection, _):
            guard let index = nodes.firstIndex(where: { $0.connection == connection }) else {
                return
            }
            if case .send = effect, random.chance(lostPerMille, in: 1_000) { return }
            schedule(
                .microseconds(100 + random.below(500)),
                .toNode(index, incarnation: nodes[index].incarnation, effect))
        }
    }

    /// The follower of the map asks for what it missed.
    private func catchUp() {
        guard let controller else { return }
        for update in controller.mapUpdates(since: follower.revision) where !follower.apply(update)
        {
            violations.append("follower refused the map at \(update.to)")
        }
    }
}
