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
    private var agenda: [(at: Instant, order: Int, what: Happening)] = []
    private var scheduled = 0
    private var connectionsIssued: UInt64 = 0
    private var leaderOfTerm: [String: NodeID] = [:]

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
        while let next = agenda.first, next.at <= end, !done() {
            agenda.removeFirst()
            now = max(now, next.at)
            perform(next.what)
        }
        if !done() { now = max(now, end) }
    }

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

    // MARK: Nodes

    private func connect(_ index: Int) -> Happening {
        .connect(index, incarnation: nodes[index].incarnation)
    }

    private func register(_ index: Int) {
        guard controller != nil else {
            schedule(.milliseconds(50), connect(index))
            return
        }
        connectionsIssued += 1
        let connection = ConnectionID(connectionsIssued)
        nodes[index].connection = connection
        let node = nodes[index]
        let registration = NodeRegistration(
            node: node.id, cluster: node.cluster, incarnation: node.incarnation, name: node.name,
            rpcAddress: "\(node.name):7000", adminAddress: "\(node.name):7001", zone: node.zone,
            isSpare: node.isSpare, diskPaths: ["/a", "/b"])
        schedule(
            .microseconds(300), .toController(.register(connection, registration), life: life))
    }

    private func receive(_ effect: ControllerEffect, at index: Int) {
        switch effect {
        case .admit(let connection, let admission):
            guard nodes[index].connection == connection else { return }
            if nodes[index].id != .none, nodes[index].id != admission.node {
                violations.append("\(nodes[index].name) got a second identity")
            }
            nodes[index].id = admission.node
            nodes[index].cluster = admission.cluster
            nodes[index].isAdmitted = true
            schedule(.milliseconds(1), .beat(index, incarnation: nodes[index].incarnation))
        case .reject(let connection, _):
            guard nodes[index].connection == connection else { return }
            nodes[index].connection = nil
            nodes[index].isAdmitted = false
            schedule(
                .microseconds(200), .toController(.connectionClosed(connection), life: life))
            schedule(.milliseconds(100), connect(index))
        case .send(_, let batch):
            guard batch.controllerTerm >= nodes[index].seenControllerTerm else { return }
            nodes[index].seenControllerTerm = batch.controllerTerm
            var outcomes: [CommandOutcome] = []
            for command in batch.commands {
                if case .shard(let group, let shardCommand) = command.action {
                    enqueue(
                        shardCommand, in: group, at: index, controllerTerm: batch.controllerTerm,
                        id: command.id)
                } else {
                    outcomes.append(
                        CommandOutcome(
                            id: command.id, controllerTerm: batch.controllerTerm,
                            error: carryOut(command.action, at: index)))
                }
            }
            guard !outcomes.isEmpty, let connection = nodes[index].connection else { return }
            if !random.chance(lostPerMille, in: 1_000) {
                schedule(
                    .microseconds(300),
                    .toController(.outcomes(connection, outcomes), life: life))
            }
            beat(index)
        default: break
        }
    }

    private func carryOut(_ action: NodeCommand.Action, at index: Int) -> DatabaseError? {
        switch action {
        case .createReplica(let group, let replica):
            if store.durable.nodes.first(where: { $0.id == nodes[index].id })?.isSpare != false {
                violations.append("spare told to host a replica")
            }
            if memberships[group.id] == nil {
                memberships[group.id] = Members(voters: group.placements.map(\.replica))
            }
            return create(replica, of: group, at: index)
        case .createLearner(let group, let placement):
            return create(placement.replica, of: group, at: index)
        case .addLearner(let group, let placement):
            guard nodes[index].leads[group] != nil, hasMajority(group) else {
                return DatabaseError(.notLeader, "not leader")
            }
            guard memberships[group]?.voters.contains(placement.replica) != true else {
                return DatabaseError(.refused, "is a voter")
            }
            if memberships[group]?.learners.contains(placement.replica) == false {
                memberships[group]?.learners.append(placement.replica)
            }
            return nil
        case .removeLearner(let group, let replica):
            guard nodes[index].leads[group] != nil, hasMajority(group) else {
                return DatabaseError(.notLeader, "not leader")
            }
            guard memberships[group]?.voters.contains(replica) != true else {
                return DatabaseError(.refused, "is a voter")
            }
            memberships[group]?.learners.removeAll { $0 == replica }
            return nil
        case .replaceVoters(let group, let voters):
            return swap(group, to: voters.map(\.replica), at: index)
        case .removeReplica(let group, let replica, _):
            let voters = memberships[group]?.voters ?? []
            let isDissolved = !store.durable.groups.contains { $0.group.id == group }
            if voters.contains(replica), !isDissolved {
                violations.append("voter \(replica) of group \(group) was removed")
            }
            guard nodes[index].leads[group] == nil || voters.count == 1 || !hasMajority(group)
            else { return DatabaseError(.refused, "it still leads") }
            if nodes[index].replicas.contains(where: { $0.replica.id == replica }) {
                nodes[index].leads[group] = nil
            }
            nodes[index].replicas.removeAll { $0.replica.id == replica }
            nodes[index].buried.insert(replica)
            return nil
        case .nominate(let group, let replica, let term):
            return elect(group, replica, term, at: index)
        case .transferLeadership(let group, let to):
            guard let term = nodes[index].leads[group],
                let target = nodes.firstIndex(where: {
                    $0.isRunning && $0.replicas.contains { $0.replica.id == to }
                })
            else { return DatabaseError(.notLeader, "not leader") }
            return elect(group, to, term.next(), at: target)
        case .createShard(let shard, let partitioning):
            guard nodes[index].leads[shard.group] != nil else {
                return DatabaseError(.notLeader, "not leader")
            }
            return applyControl(.createShard, shard, partitioning)
        case .dropShard(let shard):
            guard nodes[index].leads[shard.group] != nil else {
                return DatabaseError(.notLeader, "not leader")
            }
            return applyControl(.dropShard, shard, .range)
        case .holdCopy(let group, let shard):
            holdCount += 1
            states[group]?.heldUntil[shard] = now + .seconds(3)
            return nil
        case .shard: preconditionFailure("goes through the log")
        }
    }

    private func create(_ replica: ReplicaID, of group: Group, at index: Int) -> DatabaseError? {
        if nodes[index].refusesReplicas { return DatabaseError(.storageFailed, "disk /a failed") }
        if nodes[index].buried.contains(replica) { return DatabaseError(.fenced, "was removed") }
        if let held = nodes[index].replicas.first(where: { $0.group.id == group.id }) {
            return held.replica.id == replica ? nil : DatabaseError(.refused, "holds another")
        }
        nodes[index].replicas.append((group, Replica(id: replica)))
        return nil
    }

    /// Whether a majority of the voters runs.
    func hasMajority(_ group: GroupID, of voters: [ReplicaID]? = nil) -> Bool {
        guard let voters = voters ?? memberships[group]?.voters else { return false }
        let running = voters.count { voter in
            nodes.contains { $0.isRunning && $0.replicas.contains { $0.replica.id == voter } }
        }
        return running > voters.count / 2
    }

    private func swap(_ group: GroupID, to voters: [ReplicaID], at index: Int) -> DatabaseError? {
        guard let term = nodes[index].leads[group], let before = memberships[group],
            hasMajority(group)
        else { return DatabaseError(.notLeader, "not leader") }
        if Set(before.voters) == Set(voters) { return nil }
        for voter in voters where !before.voters.contains(voter) {
            guard before.learners.contains(voter), before.beats[voter] ?? 0 >= 3 else {
                return DatabaseError(.refused, "replica \(voter) is unknown or behind")
            }
        }
        guard hasMajority(group, of: voters) else {
            return DatabaseError(.refused, "would stop the group")
        }
        let isGrowth =
            voters.count == before.voters.count + 1 && before.voters.allSatisfy(voters.contains)
        if voters.count != before.voters.count, !isGrowth {
            violations.append("voters \(before.voters) were changed to \(voters)")
        }
        memberships[group] = Members(
            voters: voters, learners: before.learners.filter { !voters.contains($0) })
        let own = nodes[index].replicas.first { $0.group.id == group }?.replica.id
        if let own, !voters.contains(own) {
            // A leader that is no voter any more hands over.
            nodes[index].leads[group] = nil
            for (other, node) in nodes.enumerated() where node.isRunning {
                guard
                    let held = node.replicas.first(where: { voters.contains($0.replica.id) })?
                        .replica.id
                else { continue }
                _ = elect(group, held, term.next(), at: other)
                if nodes[other].leads[group] != nil { break }
            }
        }
        return nil
    }

    private func elect(_ group: GroupID, _ replica: ReplicaID, _ term: Term, at index: Int)
        -> DatabaseError?
    {
        guard let position = nodes[index].replicas.firstIndex(where: { $0.replica.id == replica })
        else { return DatabaseError(.fenced, "unknown replica") }
        guard term > nodes[index].replicas[position].replica.term else {
            return DatabaseError(.fenced, "old term")
        }
        let own = nodes[index].replicas[position].replica
        let electors = memberships[group]?.voters ?? []
        guard electors.contains(replica) else { return DatabaseError(.refused, "not a voter") }
        var voters: [(node: Int, replica: Int)] = []
        for (other, node) in nodes.enumerated() where node.isRunning {
            for (slot, held) in node.replicas.enumerated() where held.group.id == group {
                let behind =
                    (held.replica.lastTerm, held.replica.lastIndex) <= (own.lastTerm, own.lastIndex)
                guard electors.contains(held.replica.id) else { continue }
                if held.replica.term < term, behind { voters.append((other, slot)) }
            }
        }
        nodes[index].replicas[position].replica.term = term
        guard voters.count > electors.count / 2 else { return nil }
        let key = "\(group)/\(term)"
        if leaderOfTerm[key] != nil { violations.append("two leaders of \(key)") }
        leaderOfTerm[key] = nodes[index].id
        for (other, slot) in voters {
            nodes[other].replicas[slot].replica.term = term
            nodes[other].replicas[slot].replica.lastTerm = term
            nodes[other].replicas[slot].replica.lastIndex = own.lastIndex.next()
        }
        for other in nodes.indices { nodes[other].leads[group] = nil }
        nodes[index].leads[group] = term
        return nil
    }

    func beat(_ index: Int) {
        guard nodes[index].isAdmitted, let connection = nodes[index].connection else { return }
        nodes[index].sequence += 1
        let node = nodes[index]
        if random.chance(lostPerMille, in: 1_000) { return }
        for group in node.leads.keys.sorted() { feedLearners(of: group, from: index) }
        let reports = nodes[index].replicas.map { held in
            ReplicaReport(
                group: held.group.id, replica: held.replica.id,
                role: node.leads[held.group.id] != nil
                    ? .leader
                    : memberships[held.group.id]?.voters.contains(held.replica.id) == true
                        ? .follower : .learner, state: node.diskFailed ? .failed : .active,
                term: held.replica.term, lastTerm: held.replica.lastTerm,
                lastIndex: held.replica.lastIndex, commit: held.replica.lastIndex,
                applied: LogIndex(states[held.group.id]?.index ?? 0), leader: .none,
                isServing: node.leads[held.group.id] != nil,
                members: node.leads[held.group.id] != nil
                    ? members(of: held.group.id, last: held.replica.lastIndex) : [])
        }
        schedule(
            .microseconds(200),
            .toController(
                .heartbeat(
                    connection,
                    NodeHeartbeat(
                        node: node.id, incarnation: node.incarnation, sequence: node.sequence,
                        mapRevision: .none, loopDelay: node.loopDelay, disks: disks(of: node),
                        replicas: reports,
                        shards: sizes(of: node),
                        load: load(of: node), copies: copies(of: node),
                        digests: isSilentAboutMoves
                            ? [] : node.digests.keys.sorted().compactMap { node.digests[$0] })),
                life: life))
    }

    private func disks(of node: SimNode) -> [DiskReport] {
        guard let free = node.freeBytes else { return [] }
        return ["/a", "/b"].map {
            DiskReport(
                path: $0, state: node.diskFailed ? .failed : .healthy, totalBytes: 1 << 40,
                freeBytes: free, dataBytes: 0)
        }
    }

    /// A running learner is as far as its leader after three of the leader's heartbeats.
    private func feedLearners(of group: GroupID, from index: Int) {
        guard let learners = memberships[group]?.learners,
            let own = nodes[index].replicas.first(where: { $0.group.id == group })?.replica
        else { return }
        for learner in learners {
            for (other, node) in nodes.enumerated() where node.isRunning && !node.isDeaf {
                guard let slot = node.replicas.firstIndex(where: { $0.replica.id == learner })
                else { continue }
                memberships[group]?.beats[learner, default: 0] += 1
                nodes[other].replicas[slot].replica.term = own.term
                nodes[other].replicas[slot].replica.lastTerm = own.lastTerm
                nodes[other].replicas[slot].replica.lastIndex = own.lastIndex
            }
        }
    }

    private func members(of group: GroupID, last: LogIndex) -> [MemberReport] {
        guard let members = memberships[group] else { return [] }
        return members.voters.map { voter in
            let isDeaf = nodes.contains {
                $0.isDeaf && $0.leads[group] == nil
                    && $0.replicas.contains { $0.replica.id == voter }
            }
            return MemberReport(
                replica: voter, role: .voter, match: isDeaf ? .none : last, snapshotBytes: nil)
        }
            + members.learners.map {
                MemberReport(
                    replica: $0, role: .learner,
                    match: members.beats[$0] ?? 0 >= 3 ? last : .none, snapshotBytes: nil)
            }
    }

    // MARK: The agenda

    func schedule(_ delay: Nanoseconds, _ what: Happening) {
        scheduled += 1
        let item = (at: now + delay, order: scheduled, what: what)
        var low = 0
        var high = agenda.count
        while low < high {
            let middle = (low + high) / 2
            if (agenda[middle].at, agenda[middle].order) < (item.at, item.order) {
                low = middle + 1
            } else {
                high = middle
            }
        }
        agenda.insert(item, at: low)
    }
}
