// One controller driven by hand: events in, effects out, the store answering at once.

import KVBase
import ShardCore

@testable import ControllerCore

final class ControllerBench {
    var now = Instant(nanoseconds: 1_000_000_000)
    var store = SimulatedStore()
    var controller: Controller
    /// Transactions are kept back while this is set.
    var holdsStores = false
    private var held: [(MetadataTransaction, StoreTicket)] = []
    private var sequences: [ConnectionID: UInt64] = [:]

    init(_ settings: ControllerSettings = ControllerSettings(name: "controller-1")) throws {
        controller = try Controller(
            settings: settings, snapshot: store.snapshot, lease: LeaseID(1),
            clusterCandidate: 0xC1, now: now)
        step(.start)
    }

    /// All effects of the event and of the store's answers.
    @discardableResult
    func step(_ event: ControllerEvent) -> [ControllerEffect] {
        var effects = ControllerEffects()
        controller.step(event, now: now, into: &effects)
        var all: [ControllerEffect] = []
        for effect in effects.list {
            all.append(effect)
            if case .store(let transaction, let ticket) = effect {
                held.append((transaction, ticket))
            }
        }
        if !holdsStores { all += release() }
        return all
    }

    /// Lets the store answer.
    @discardableResult
    func release() -> [ControllerEffect] {
        var all: [ControllerEffect] = []
        while !held.isEmpty {
            let (transaction, ticket) = held.removeFirst()
            switch store.commit(transaction) {
            case .success(let revision): all += step(.stored(ticket, revision))
            case .failure(let error): all += step(.storeFailed(ticket, error))
            }
        }
        return all
    }

    /// Ticks every 20 ms for as long as `duration`.
    @discardableResult
    func pass(_ duration: Nanoseconds) -> [ControllerEffect] {
        let end = now + duration
        var all: [ControllerEffect] = []
        while now < end {
            now = now + .milliseconds(20)
            all += step(.tick)
        }
        return all
    }

    static func registration(
        _ name: String, node: NodeID = .none, cluster: UInt64 = 0, incarnation: UInt64 = 1,
        zone: String = "", isSpare: Bool = false
    ) -> NodeRegistration {
        NodeRegistration(
            node: node, cluster: cluster, incarnation: incarnation, name: name,
            rpcAddress: "\(name):1", adminAddress: "\(name):2", zone: zone, isSpare: isSpare,
            diskPaths: ["/disk"])
    }

    @discardableResult
    func register(_ connection: UInt64, _ registration: NodeRegistration) -> [ControllerEffect] {
        step(.register(ConnectionID(connection), registration))
    }

    @discardableResult
    func beat(
        _ connection: UInt64, node: UInt32, incarnation: UInt64 = 1,
        _ replicas: [ReplicaReport] = [], disks: [DiskReport] = [],
        loopDelay: Nanoseconds = .zero
    ) -> [ControllerEffect] {
        let id = ConnectionID(connection)
        sequences[id, default: 0] += 1
        return step(
            .heartbeat(
                id,
                NodeHeartbeat(
                    node: NodeID(node), incarnation: incarnation, sequence: sequences[id] ?? 0,
                    mapRevision: .none, loopDelay: loopDelay, disks: disks, replicas: replicas,
                    shards: [])))
    }

    static func report(
        group: UInt32 = 1, replica: UInt32, leads: Bool = false, term: UInt64,
        last: (term: UInt64, index: UInt64)
    ) -> ReplicaReport {
        ReplicaReport(
            group: GroupID(group), replica: ReplicaID(replica), role: leads ? .leader : .follower,
            state: .active, term: Term(term), lastTerm: Term(last.term),
            lastIndex: LogIndex(last.index), commit: LogIndex(last.index),
            applied: LogIndex(last.index), leader: .none, isServing: leads)
    }

    /// Three nodes on connections 1...3 with one group whose replica 1, on node 1, leads in term 1.
    static func threeNodes() throws -> ControllerBench {
        var settings = ControllerSettings(name: "controller-1")
        settings.groupsInitial = 1
        let bench = try ControllerBench(settings)
        for node: UInt32 in 1...3 {
            bench.register(UInt64(node), registration("node-\(node)"))
            bench.beat(UInt64(node), node: node)
        }
        for _ in 0..<6 {
            bench.pass(.milliseconds(100))
            for node: UInt32 in 1...3 {
                let isFormed = !bench.controller.groups.isEmpty
                bench.beat(
                    UInt64(node), node: node,
                    isFormed ? [report(replica: node, term: 0, last: (0, 0))] : [])
            }
        }
        bench.beat(1, node: 1, [report(replica: 1, leads: true, term: 1, last: (1, 10))])
        for node: UInt32 in 2...3 {
            bench.beat(UInt64(node), node: node, [report(replica: node, term: 1, last: (1, 10))])
        }
        return bench
    }
}

extension [ControllerEffect] {
    var rejections: [DatabaseError] {
        compactMap { if case .reject(_, let error) = $0 { error } else { nil } }
    }

    var admissions: [NodeAdmission] {
        compactMap { if case .admit(_, let admission) = $0 { admission } else { nil } }
    }

    var commands: [(connection: ConnectionID, action: NodeCommand.Action, id: UInt64)] {
        flatMap { effect -> [(ConnectionID, NodeCommand.Action, UInt64)] in
            guard case .send(let connection, let batch) = effect else { return [] }
            return batch.commands.map { (connection, $0.action, $0.id) }
        }
    }

    var nominations: [(replica: ReplicaID, term: Term)] {
        commands.compactMap {
            if case .nominate(_, let replica, let term) = $0.action { (replica, term) } else { nil }
        }
    }

    var published: [MapChange] {
        flatMap { if case .publish(let update) = $0 { update.changes } else { [MapChange]() } }
    }

    var answers: [DatabaseError?] {
        compactMap { effect -> DatabaseError?? in
            if case .answer(_, let error) = effect { .some(error) } else { nil }
        }
    }

    /// Position of the first effect that `matches`.
    func position(where matches: (ControllerEffect) -> Bool) -> Int? { firstIndex(where: matches) }
}
