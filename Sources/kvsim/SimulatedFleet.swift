// Nodes and a metadata store that answer a real controller at once, for measuring it at scale. What
// goes wrong on the way is the business of the tests; here everything works, except dead nodes.

import ControllerCore
import KVBase
import ShardCore

/// One node: the replicas it hosts, and what it says of them.
struct SimulatedNode {
    var id: NodeID = .none
    var cluster: UInt64 = 0
    let name: String
    let zone: String
    let isSpare: Bool
    let connection: ConnectionID
    let rpcAddress: String
    var sequence: UInt64 = 0
    var isDead = false
    var replicas = SortedRecords<GroupID, ReplicaReport>()

    func registration() -> NodeRegistration {
        NodeRegistration(
            node: id, cluster: cluster, incarnation: connection.number, name: name,
            rpcAddress: rpcAddress, adminAddress: "\(name):7401", zone: zone,
            isSpare: isSpare, diskPaths: ["/var/lib/rangekeeper/disk-0"])
    }

    mutating func heartbeat(shards: [ShardReport]) -> NodeHeartbeat {
        sequence += 1
        return NodeHeartbeat(
            node: id, incarnation: connection.number, sequence: sequence, mapRevision: .none,
            loopDelay: .zero,
            disks: [
                DiskReport(
                    path: "/var/lib/rangekeeper/disk-0", state: .healthy, totalBytes: 1 << 40,
                    freeBytes: 1 << 39, dataBytes: 1 << 30)
            ], replicas: Array(replicas.elements), shards: shards)
    }
}

/// A controller with its store and its nodes. Time passes only by `now`.
struct SimulatedFleet {
    var now = Instant(nanoseconds: 1_000_000_000)
    var controller: Controller
    var nodes: [SimulatedNode] = []
    /// CPU time of the controller's steps, by what caused them.
    var steps: [String: Durations] = [:]
    /// Transactions and bytes that went to the store.
    var stored: (transactions: Int, changes: Int) = (0, 0)
    private let settings: ControllerSettings
    private var records: [Bytes: MetadataRecord] = [:]
    private var revision: Revision = .none
    private var placeOfNode: [NodeID: Int] = [:]
    private var waiting: [ControllerEvent] = []
    private var answered = 0
    private var ticks = 0
    private var nextRequest: UInt64 = 0

    /// `address` makes the RPC address of the node with a number, from 0.
    init(
        settings: ControllerSettings, nodes count: Int, spares: Int,
        address: (Int) -> String = { "node-\($0):7400" }
    ) {
        self.settings = settings
        controller = Self.controller(settings, MetadataSnapshot(revision: .none, records: []), now)
        for number in 0..<count + spares {
            nodes.append(
                SimulatedNode(
                    name: "node-\(number)", zone: "zone-\(number % 20)",
                    isSpare: number >= count, connection: ConnectionID(UInt64(number) + 1),
                    rpcAddress: address(number)))
        }
    }

    /// Virtual ranges of a table, at most.
    private static let virtualRangesMax = 4_096

    /// Lets all groups of the settings form on registered nodes, each led; then creates tables of
    /// `shards` shards in all. Answers how many tables.
    mutating func fill(shards: Int) -> Int {
        step("start", .start)
        register()
        while controller.groups.count < settings.groupsInitial
            || controller.groups.elements.contains(where: { !$0.hasLeader || !$0.isServing })
        {
            pass(milliseconds: 150, during: " while groups form")
        }
        let tables = (shards + Self.virtualRangesMax - 1) / Self.virtualRangesMax
        for table in 0..<tables {
            let count = shards * (table + 1) / tables - shards * table / tables
            create("table-\(table)", virtualRanges: UInt16(count))
        }
        return tables
    }

    static func controller(
        _ settings: ControllerSettings, _ snapshot: MetadataSnapshot, _ now: Instant
    ) -> Controller {
        do throws(DatabaseError) {
            return try Controller(
                settings: settings, snapshot: snapshot, lease: LeaseID(1), clusterCandidate: 1,
                now: now)
        } catch {
            preconditionFailure("a snapshot that the controller wrote: \(error)")
        }
    }

    var snapshot: MetadataSnapshot {
        MetadataSnapshot(
            revision: revision,
            records: records.values.sorted { compareBytes($0.key, $1.key) < 0 })
    }

    /// A controller that starts from what is stored; the one before is gone.
    mutating func takeOver(_ durations: inout Durations) {
        var ending = snapshot
        // The lease of the former process has ended.
        ending.records.removeAll { $0.lease != .none }
        records = records.filter { $0.value.lease == .none }
        waiting = []
        controller = durations.measure { Self.controller(settings, ending, now) }
        step("take-over: first step", .start)
    }

    // MARK: Events

    /// One event, and everything that follows from it at once.
    mutating func step(_ name: String, _ event: ControllerEvent) {
        waiting.append(event)
        var label = name
        while !waiting.isEmpty {
            let next = waiting.removeFirst()
            var effects = ControllerEffects()
            steps[label, default: Durations()].measure {
                controller.step(next, now: now, into: &effects)
            }
            for effect in effects.list { carryOut(effect) }
            switch waiting.first {
            case .stored: label = "an answer of the store"
            case .outcomes: label = "outcomes of commands"
            default: label = name
            }
        }
    }

    mutating func register() {
        for place in nodes.indices where !nodes[place].isDead {
            step(
                "registration", .register(nodes[place].connection, nodes[place].registration()))
        }
    }

    /// A heartbeat of every live node; `shards` tells what a node reports of them.
    mutating func beat(_ name: String, shards: (NodeID) -> [ShardReport] = { _ in [] }) {
        for place in nodes.indices where !nodes[place].isDead && nodes[place].id != .none {
            let heartbeat = nodes[place].heartbeat(shards: shards(nodes[place].id))
            step(name, .heartbeat(nodes[place].connection, heartbeat))
        }
    }

    /// Time passes, with a tick each 25 ms and heartbeats each 150 ms.
    mutating func pass(milliseconds: Int, during: String = "") {
        for _ in 0..<max(1, milliseconds / 25) {
            now = now + .milliseconds(25)
            ticks += 1
            if ticks % 6 == 0 { beat("heartbeat" + during) }
            step("tick" + during, .tick)
        }
    }

    /// Creates a table and waits for the answer.
    mutating func create(_ name: String, virtualRanges: UInt16) {
        let before = answered
        nextRequest += 1
        step(
            "table request",
            .tableRequest(
                RequestID(nextRequest),
                .create(
                    name: name, partitioning: .hash(virtualRanges: virtualRanges), engine: .lsm,
                    replicas: 3, splitPoints: [], ifMissing: false)))
        while answered == before { pass(milliseconds: 25) }
    }

    mutating func drop(_ name: String) {
        let before = answered
        nextRequest += 1
        step("drop request", .tableRequest(RequestID(nextRequest), .drop(name: name)))
        while answered == before || controller.proceduresInFlight > 0 { pass(milliseconds: 25) }
    }

    /// The node's process dies: its connections break.
    mutating func kill(_ place: Int) {
        nodes[place].isDead = true
        step("a node's connection breaks", .connectionClosed(nodes[place].connection))
    }

    // MARK: Effects

    private mutating func carryOut(_ effect: ControllerEffect) {
        switch effect {
        case .store(let transaction, let ticket):
            revision = revision.next()
            stored.transactions += 1
            stored.changes += transaction.changes.count
            for change in transaction.changes {
                switch change {
                case .put(let key, let value, let lease):
                    records[key] = MetadataRecord(
                        key: key, value: value,
                        createRevision: records[key]?.createRevision ?? revision,
                        modRevision: revision, lease: lease)
                case .delete(let key): records[key] = nil
                }
            }
            waiting.append(.stored(ticket, revision))
        case .admit(let connection, let admission):
            let place = Int(connection.number) - 1
            nodes[place].id = admission.node
            nodes[place].cluster = admission.cluster
            placeOfNode[admission.node] = place
        case .send(let connection, let commands):
            let place = Int(connection.number) - 1
            guard !nodes[place].isDead, !commands.commands.isEmpty else { return }
            var outcomes: [CommandOutcome] = []
            for command in commands.commands {
                carryOut(command.action, on: place)
                outcomes.append(
                    CommandOutcome(
                        id: command.id, controllerTerm: commands.controllerTerm, error: nil))
            }
            waiting.append(.outcomes(connection, outcomes))
        case .answer(_, let error):
            if let error { fail("a request was refused: \(error)") }
            answered += 1
        case .resign(let error): fail("the controller resigned: \(error)")
        case .reject(_, let error): fail("a node was rejected: \(error)")
        case .acting, .standBy, .publish, .operationAnswer, .backUp, .verifyBackup, .verifyNoMore,
            .decided:
            break
        }
    }

    private mutating func carryOut(_ action: NodeCommand.Action, on place: Int) {
        switch action {
        case .createReplica(let group, let replica):
            nodes[place].replicas.set(report(group.id, replica, .follower), for: group.id)
        case .createLearner(let group, let placement):
            nodes[place].replicas.set(report(group.id, placement.replica, .learner), for: group.id)
        case .nominate(let group, let replica, let term): lead(group, replica, term, on: place)
        case .addLearner(let group, let placement):
            nodes[place].replicas.update(group) { report in
                report.members.removeAll { $0.replica == placement.replica }
                report.members.append(
                    MemberReport(
                        replica: placement.replica, role: .learner, match: report.lastIndex,
                        snapshotBytes: nil))
            }
        case .removeLearner(let group, let replica):
            nodes[place].replicas.update(group) { $0.members.removeAll { $0.replica == replica } }
        case .replaceVoters(let group, let voters):
            nodes[place].replicas.update(group) { report in
                report.members = voters.map {
                    MemberReport(
                        replica: $0.replica, role: .voter, match: report.lastIndex,
                        snapshotBytes: nil)
                }
            }
            for voter in voters {
                guard let other = placeOfNode[voter.node], other != place else { continue }
                nodes[other].replicas.update(group) { $0.role = .follower }
            }
        case .removeReplica(let group, let replica, _):
            if nodes[place].replicas[group]?.replica == replica {
                nodes[place].replicas.remove(group)
            }
        case .createShard, .dropShard, .shard, .holdCopy, .transferLeadership: break
        }
    }

    private func report(_ group: GroupID, _ replica: ReplicaID, _ role: ReplicaReport.Role)
        -> ReplicaReport
    {
        ReplicaReport(
            group: group, replica: replica, role: role, state: .active, term: .none,
            lastTerm: .none, lastIndex: LogIndex(1), commit: LogIndex(1), applied: LogIndex(1),
            leader: .none, isServing: false)
    }

    /// The nominee wins.
    private mutating func lead(_ id: GroupID, _ replica: ReplicaID, _ term: Term, on place: Int) {
        guard let group = controller.groups[id]?.record else { return }
        let members = group.placements.map {
            MemberReport(
                replica: $0.replica, role: .voter, match: LogIndex(1), snapshotBytes: nil)
        }
        for placement in group.placements {
            guard let other = placeOfNode[placement.node] else { continue }
            nodes[other].replicas.update(id) { report in
                report.role = other == place ? .leader : .follower
                report.term = term
                report.leader = replica
                report.isServing = other == place
                report.members = other == place ? members : []
            }
        }
    }
}
