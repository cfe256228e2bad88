// Metadata rebuilt from an older state and from what simulated groups hold.

import Digest
import KVBase
import NodeCore
import ReplicationCore
import ShardCore
import Testing

@testable import ControllerCore

extension ClusterSimulation {
    /// What the nodes that run answer.
    func holdings(mapRevision: Revision = .none) -> [NodeHoldings] {
        nodes.filter { $0.isRunning && $0.id != .none }.map { node in
            var holdings = NodeHoldings(
                cluster: node.cluster,
                node: Node(
                    id: node.id, name: node.name, rpcAddress: "\(node.name):7000",
                    adminAddress: "\(node.name):7001", zone: node.zone, isSpare: node.isSpare,
                    diskCount: 2),
                controllerTerm: node.seenControllerTerm, isControlled: false,
                mapRevision: mapRevision, nodes: [], tables: [], groups: [])
            if mapRevision != .none {
                holdings.nodes = Array(follower.nodes.elements)
                holdings.tables = follower.activeTables.map(\.table)
            }
            holdings.replicas = node.replicas.map { replica(of: node, $0.group, $0.replica) }
            return holdings
        }
    }

    private func replica(
        of node: SimNode, _ group: Group, _ replica: Replica
    ) -> ReplicaHolding {
        let members = memberships[group.id]
        let shards = (states[group.id]?.state.shards).map { Array($0.elements) } ?? []
        return ReplicaHolding(
            group: group.id, replica: replica.id, engine: group.engine, disk: 0,
            isServing: node.leads[group.id] != nil, term: replica.term,
            applied: LogIndex(states[group.id]?.index ?? 0),
            voters: (members?.voters ?? []).sorted().map { voter in
                let host = nodes.first { $0.replicas.contains { $0.replica.id == voter } }
                return Placement(replica: voter, node: host?.id ?? .none, disk: 0)
            },
            learners: members?.learners ?? [],
            shards: shards.map { held in
                let standing: ShardStanding =
                    switch held.phase {
                    case .owned: .owned
                    case .fenced(let group, _, let isWhole): .fenced(to: group, isWhole: isWhole)
                    case .importing(let group, _, _): .importing(from: group)
                    }
                return ShardHolding(
                    shard: held.shard, partitioning: held.partitioning, standing: standing)
            })
    }

    /// All controllers are lost. What they had sent still arrives.
    func loseControllers() {
        crashController()
        run(for: .milliseconds(4))
    }

    /// New controllers begin with what was recovered from `older`.
    func rebuild(
        from older: MetadataSnapshot, holdings: [NodeHoldings]? = nil
    ) throws -> RecoveredMetadata {
        let recovered = try MetadataRecovery.recover(
            older: older.records, revision: older.revision, holdings: holdings ?? self.holdings(),
            clock: 1_800_000_000_000, origin: "a test", request: .test)
        #expect(!recovered.findings.contains { $0.kind == "refused" }, "\(recovered.findings)")
        var rebuilt = SimulatedStore()
        var transaction = MetadataTransaction()
        for record in recovered.records {
            transaction.changes.append(.put(key: record.key, value: record.value, lease: .none))
        }
        _ = rebuilt.commit(transaction)
        #expect(rebuilt.violations == [], "\(recovered.findings)")
        store = rebuilt
        return recovered
    }
}

extension MetadataRecovery.Request {
    fileprivate static let test = MetadataRecovery.Request(
        caller: "alice@host", verb: "restore", arguments: "{}", hash: SHA256.digest)
}

@Suite struct MetadataRecoveryTests {
    /// Three tables on two groups, a spare; then the older state is taken.
    static func cluster(seed: UInt64) -> (ClusterSimulation, MetadataSnapshot) {
        let simulation = ShardOperationTests.cluster(
            seed: seed, ShardOperationTests.options(nodes: 4, spares: 1))
        simulation.request(1_001, ControllerSimulationTests.create("gone"))
        simulation.run(for: .milliseconds(500))
        return (simulation, simulation.store.snapshot)
    }

    static func expectUniqueIDs(
        _ simulation: ClusterSimulation, above older: MetadataSnapshot
    ) throws {
        let old = try DurableState(older)
        let new = simulation.store.durable
        #expect(new.ids.shard > old.ids.shard + MetadataRecovery.shardJump - 1)
        #expect(new.ids.replica >= old.ids.replica + MetadataRecovery.idJump)
        #expect(new.term.rawValue > old.term.rawValue + MetadataRecovery.termJump - 1)
        #expect(new.nextOperation >= old.nextOperation + MetadataRecovery.idJump)
    }

    @Test func anOlderStateFollowsWhatTheGroupsDidSince() throws {
        let (simulation, older) = Self.cluster(seed: 1)
        simulation.operate(
            1, .split(SplitRequest(table: "t", at: Bytes("f".utf8), to: .group(GroupID(2)))))
        simulation.run(for: .seconds(2))
        simulation.operate(2, .move(ShardID(1), to: .any))
        simulation.run(for: .seconds(2))
        simulation.operate(3, .merge(ShardID(1)))
        simulation.run(for: .seconds(2))
        let victim = try #require(
            simulation.store.durable.groups.first?.group.placements.first?.node)
        let name = try #require(simulation.nodes.first { $0.id == victim }?.name)
        simulation.operate(4, .replace(node: name, group: nil, with: nil))
        simulation.run(for: .seconds(5))
        simulation.request(1_002, ControllerSimulationTests.create("new"))
        simulation.request(1_003, .drop(name: "gone"))
        simulation.run(for: .seconds(2))
        let truth = simulation.store.durable
        #expect(truth.operations.allSatisfy { $0.step == .done }, "\(simulation.log.suffix(30))")

        simulation.loseControllers()
        let book = Revision(truth.term.rawValue << 32 + 99)
        let recovered = try simulation.rebuild(
            from: older, holdings: simulation.holdings(mapRevision: book))
        #expect(recovered.unconfirmed == [])
        #expect(recovered.findings.allSatisfy { $0.kind == "changed" }, "\(recovered.findings)")
        #expect(recovered.findings.contains { $0.text.contains("table gone") })
        simulation.run(for: .seconds(20))
        let state = simulation.store.durable
        #expect(state.shards == truth.shards)
        #expect(state.tables == truth.tables)
        let places = state.groups.map {
            $0.group.placements.map { [$0.replica.rawValue, $0.node.rawValue] }
        }
        #expect(
            places
                == truth.groups.map {
                    $0.group.placements.map { [$0.replica.rawValue, $0.node.rawValue] }
                })
        try Self.expectUniqueIDs(simulation, above: older)
        ControllerSimulationTests.expectConverged(simulation, "\(simulation.log.suffix(30))")
    }

    /// Every moment of a split, a move and a merge: what was under way goes on, or never began.
    @Test(arguments: 0..<60) func whateverIsUnderWayIsSeenThrough(moment: UInt64) throws {
        let (simulation, older) = Self.cluster(seed: 100 + moment)
        simulation.operate(
            1, .split(SplitRequest(table: "t", at: Bytes("f".utf8), to: .group(GroupID(2)))))
        simulation.operate(2, .move(ShardID(2), to: .group(GroupID(1))))
        simulation.run(for: .milliseconds(moment * 7))
        if moment % 3 == 0 { simulation.operate(3, .cancel(OperationID(2))) }
        simulation.run(for: .milliseconds(moment % 5))
        let comment: Comment = "moment \(moment)"
        simulation.loseControllers()
        _ = try simulation.rebuild(from: moment % 2 == 0 ? older : simulation.store.snapshot)
        simulation.run(for: .seconds(20))
        ControllerSimulationTests.expectConverged(simulation, comment)
    }

    /// A replacement that had come as far as it had.
    @Test(arguments: 0..<30) func aReplacementUnderWayLeavesNothingBehind(moment: UInt64) throws {
        let (simulation, older) = Self.cluster(seed: 300 + moment)
        let placement = try #require(
            simulation.store.durable.groups.first?.group.placements.first)
        let name = try #require(simulation.nodes.first { $0.id == placement.node }?.name)
        simulation.operate(1, .replace(node: name, group: GroupID(1), with: nil))
        simulation.run(for: .milliseconds(moment * 40))
        simulation.loseControllers()
        _ = try simulation.rebuild(from: older)
        simulation.run(for: .seconds(30))
        ControllerSimulationTests.expectConverged(simulation, "moment \(moment)")
    }

    @Test func aBackupThatHoldsItsOwnMakingIsDone() throws {
        let (simulation, _) = Self.cluster(seed: 6)
        simulation.operate(1, .backup)
        simulation.run(for: .milliseconds(50))
        let older = simulation.store.snapshot
        #expect(simulation.store.durable.operations.last?.step == .writing)
        simulation.loseControllers()
        _ = try simulation.rebuild(from: older)
        let operations = simulation.store.durable.operations
        let record = try #require(operations.last { $0.kind == .backup })
        #expect(record.step == .done)
        let decision = try #require(
            simulation.store.durable.decisions.last { $0.operation == record.id })
        #expect(decision.text.contains("is done: the metadata was restored"))
        // And the restore itself is the last thing that happened.
        let restore = try #require(operations.last)
        #expect(restore.kind == .restore && restore.isFinished)
        #expect(restore.outcome.hasPrefix("restored from "))
    }

    @Test func nodesAloneAreEnough() throws {
        let (simulation, _) = Self.cluster(seed: 7)
        simulation.operate(1, .split(SplitRequest(table: "t", at: Bytes("f".utf8))))
        simulation.run(for: .seconds(3))
        let truth = simulation.store.durable
        simulation.loseControllers()
        let recovered = try simulation.rebuild(
            from: MetadataSnapshot(revision: .none, records: []),
            holdings: simulation.holdings(mapRevision: Revision(1 << 32 + 5)))
        #expect(recovered.findings.allSatisfy { $0.kind == "changed" }, "\(recovered.findings)")
        simulation.run(for: .seconds(10))
        let state = simulation.store.durable
        #expect(state.tables == truth.tables)
        #expect(state.shards == truth.shards)
        #expect(state.cluster == truth.cluster)
        ControllerSimulationTests.expectConverged(simulation, "recovered")
    }

    @Test func aTableThatNobodyCanNameIsKept() throws {
        let (simulation, _) = Self.cluster(seed: 8)
        simulation.loseControllers()
        let recovered = try simulation.rebuild(
            from: MetadataSnapshot(revision: .none, records: []))
        #expect(recovered.findings.contains { $0.kind == "incomplete" && $0.text.contains("name") })
        #expect(
            simulation.store.durable.tables.map(\.name) == ["recovered-1", "recovered-2"])
        #expect(recovered.shards == 3)
    }

    @Test func aGroupThatIsNotHeardIsSaidAndKept() throws {
        let (simulation, older) = Self.cluster(seed: 9)
        let group = try #require(simulation.store.durable.groups.last?.group)
        simulation.loseControllers()
        var holdings = simulation.holdings()
        for index in holdings.indices {
            holdings[index].replicas.removeAll { $0.group == group.id }
        }
        holdings.removeAll { holding in group.placements.contains { $0.node == holding.node.id } }
        let recovered = try MetadataRecovery.recover(
            older: older.records, revision: older.revision, holdings: holdings, clock: 1,
            origin: "a test", request: .test)
        #expect(recovered.unconfirmed.contains(group.id))
        #expect(
            recovered.findings.contains {
                $0.kind == "incomplete" && $0.text.contains("group \(group.id)")
            }, "\(recovered.findings)")
        let state = try DurableState(
            MetadataSnapshot(revision: .none, records: recovered.records))
        // Nothing of it is created anew.
        #expect(state.groups.allSatisfy { $0.isComplete })
        #expect(state.shards.count == 3)
    }

    /// Just started, replicas have applied less than their group has committed: nothing is concluded from
    /// shards that they do not know yet.
    @Test func replicasWithoutALeaderProveNothing() throws {
        let (simulation, older) = Self.cluster(seed: 13)
        simulation.loseControllers()
        var holdings = simulation.holdings()
        for node in holdings.indices {
            for index in holdings[node].replicas.indices {
                holdings[node].replicas[index].isServing = false
                holdings[node].replicas[index].applied = LogIndex(0)
                holdings[node].replicas[index].shards = []
            }
        }
        let recovered = try MetadataRecovery.recover(
            older: older.records, revision: older.revision, holdings: holdings, clock: 1,
            origin: "a test", request: .test)
        #expect(recovered.unconfirmed.count == 2)
        #expect(recovered.findings.count { $0.kind == "incomplete" } == 2, "\(recovered.findings)")
        let state = try DurableState(
            MetadataSnapshot(revision: .none, records: recovered.records))
        #expect(state.shards == (try DurableState(older)).shards)
        #expect(state.tables == (try DurableState(older)).tables)
    }

    @Test func theRestoreStandsInTheAuditLogBehindWhatTheOlderStateHas() throws {
        let (simulation, snapshot) = Self.cluster(seed: 17)
        simulation.loseControllers()
        var older = snapshot.records.filter { $0.key != AuditHead.storeKey }
        var head = AuditHead()
        for number in [UInt64(1), 2] {
            var transaction = MetadataTransaction()
            let entry = AuditEntry(
                after: head, at: number, caller: "bob@host", address: "127.0.0.1:9",
                verb: "table.drop", event: .requested(arguments: "{}"), hash: SHA256.digest)
            transaction.audit(entry, behind: &head)
            transaction.put(AuditHead.storeKey) { head.encode(into: &$0) }
            for case .put(let key, let value, _) in transaction.changes {
                older.removeAll { $0.key == key }
                older.append(
                    MetadataRecord(
                        key: key, value: value, createRevision: snapshot.revision,
                        modRevision: snapshot.revision, lease: .none))
            }
        }
        older.sort { compareBytes($0.key, $1.key) < 0 }
        for (older, first) in [(older, UInt64(3)), ([], 1)] {
            let records = try MetadataRecovery.recover(
                older: older, revision: snapshot.revision, holdings: simulation.holdings(),
                clock: 7, origin: "a test", request: .test
            ).records
            let trail = AuditTrail(
                records.filter { $0.key.starts(with: AuditEntry.storePrefix) },
                head: try AuditHead(records.first { $0.key == AuditHead.storeKey }))
            #expect(trail.fault(since: nil, hash: SHA256.digest) == nil)
            #expect(trail.entries.map(\.number) == Array(1...first + 1))
            let asked = try #require(trail.entries.dropLast().last)
            #expect(asked.caller == "alice@host" && asked.verb == "restore" && asked.at == 7)
            guard case .answered(first, true, let text) = trail.entries.last?.event else {
                Issue.record("\(String(describing: trail.entries.last))")
                continue
            }
            #expect(text.contains("from a test"))
        }
    }

    @Test func aShardThatTwoGroupsServeIsRefused() throws {
        let (simulation, older) = Self.cluster(seed: 10)
        simulation.loseControllers()
        var holdings = simulation.holdings()
        let shard = try #require(simulation.states[GroupID(1)]?.state.shards.elements.first)
        for node in holdings.indices {
            for index in holdings[node].replicas.indices
            where holdings[node].replicas[index].group == GroupID(2) {
                holdings[node].replicas[index].shards.append(
                    ShardHolding(
                        shard: shard.shard, partitioning: shard.partitioning, standing: .owned))
            }
        }
        let recovered = try MetadataRecovery.recover(
            older: older.records, revision: older.revision, holdings: holdings, clock: 1,
            origin: "a test", request: .test)
        #expect(
            recovered.findings.contains {
                $0.kind == "refused" && $0.text.contains("shard \(shard.shard.id)")
            })
    }

    @Test func nodesOfAnotherClusterAndControllersThatActAreRefused() throws {
        let (simulation, older) = Self.cluster(seed: 11)
        var holdings = simulation.holdings()
        holdings[0].cluster += 1
        holdings[1].isControlled = true
        let refused = try MetadataRecovery.recover(
            older: older.records, revision: older.revision, holdings: holdings, clock: 1,
            origin: "a test", request: .test
        ).findings.filter { $0.kind == "refused" }
        #expect(refused.count == 2, "\(refused)")
    }

    /// It was admitted by metadata that is lost, and did not answer when that was rebuilt.
    @Test func aNodeThatTheOlderStateDoesNotKnowIsTakenInWithWhatItHolds() throws {
        let (simulation, older) = Self.cluster(seed: 12)
        let last = simulation.nodes.count - 1
        simulation.wipe(node: last)
        simulation.start(node: last)
        simulation.run(for: .seconds(2))
        let id = simulation.nodes[last].id
        #expect(try DurableState(older).nodes.allSatisfy { $0.id != id })
        simulation.loseControllers()
        let others = simulation.holdings().filter { $0.node.id != id }
        _ = try simulation.rebuild(from: older, holdings: others)
        simulation.run(for: .seconds(5))
        #expect(simulation.nodes[last].id == id && simulation.nodes[last].isAdmitted)
        #expect(
            simulation.store.durable.nodes.first { $0.id == id }?.name
                == simulation.nodes[last].name)
        #expect(simulation.violations == [])
    }
}
