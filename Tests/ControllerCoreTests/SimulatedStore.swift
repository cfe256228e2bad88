// A metadata store in memory that holds the controller's transactions to the invariants.

import KVBase
import ShardCore

@testable import ControllerCore

/// Applies transactions at once and records every broken invariant.
struct SimulatedStore {
    private(set) var revision: Revision = .none
    private(set) var records: [Bytes: MetadataRecord] = [:]
    private(set) var violations: [String] = []
    /// As a controller that stands by keeps them.
    private(set) var standby = StandbyShards(revision: .none)
    private var everSeen: Set<Bytes> = []
    /// Records that may come back after they were deleted.
    private static let recurring = [
        Bytes("controller/".utf8), StoreKey.heldPrefix, StoreKey.settingPrefix,
        StoreKey.weightPrefix, StoreKey.maintenancePrefix, StoreKey.coldPrefix,
    ]
    private var replicaOwners: [ReplicaID: GroupID] = [:]

    var snapshot: MetadataSnapshot {
        MetadataSnapshot(
            revision: revision,
            records: records.values.sorted { compareBytes($0.key, $1.key) < 0 })
    }

    /// For a controller that stood by.
    var snapshotWithoutShards: MetadataSnapshot {
        var snapshot = self.snapshot
        snapshot.records.removeAll { $0.key.starts(with: StandbyShards.prefix) }
        return snapshot
    }

    mutating func commit(_ transaction: MetadataTransaction) -> Result<Revision, DatabaseError> {
        for comparison in transaction.comparisons
        where (records[comparison.key]?.modRevision ?? .none) != comparison.modRevision {
            return .failure(DatabaseError(.fenced, "comparison failed"))
        }
        revision = revision.next()
        var keys: Set<Bytes> = []
        for change in transaction.changes {
            if !keys.insert(change.key).inserted { violations.append("key changed twice") }
            switch change {
            case .put(let key, let value, let lease):
                let isCounted = !Self.recurring.contains { key.starts(with: $0) }
                if isCounted, records[key] == nil, !everSeen.insert(key).inserted {
                    violations.append("id reused: \(key)")
                }
                records[key] = MetadataRecord(
                    key: key, value: value,
                    createRevision: records[key]?.createRevision ?? revision,
                    modRevision: revision, lease: lease)
            case .delete(let key): records[key] = nil
            }
        }
        do throws(DatabaseError) {
            try standby.apply(MetadataEvent(revision: revision, changes: transaction.changes))
        } catch {
            violations.append("shards of a standby: \(error)")
        }
        check()
        return .success(revision)
    }

    /// The lease of a crashed controller ends.
    mutating func endLease() { records[StoreKey.acting] = nil }

    var durable: DurableState {
        do { return try DurableState(snapshot) } catch { fatalError("\(error)") }
    }

    private mutating func check() {
        let state = durable
        if Array(standby.shards.elements) != state.shards {
            violations.append("a standby has other shards at \(revision)")
        }
        for record in state.groups {
            let nodes = Set(record.group.placements.map(\.node))
            if nodes.count != record.group.placements.count {
                violations.append("group \(record.group.id) has two replicas on one node")
            }
            for placement in record.group.placements {
                let owner = replicaOwners[placement.replica]
                if owner != nil, owner != record.group.id {
                    violations.append("replica id \(placement.replica) reused")
                }
                replicaOwners[placement.replica] = record.group.id
                if state.nodes.first(where: { $0.id == placement.node })?.isSpare != false {
                    violations.append("replica on an unknown node or a spare")
                }
            }
        }
        let names = state.tables.filter { $0.state != .dropping }.map(\.name)
        if Set(names).count != names.count { violations.append("two tables of one name") }
        if Set(state.nodes.map(\.name)).count != state.nodes.count {
            violations.append("two nodes of one name")
        }
        for table in state.tables {
            let own = state.shards.filter { $0.table == table.id }
            if ShardIndex(tiling: own) == nil {
                violations.append("shards of table \(table.id) do not tile at \(revision)")
            }
            for shard in own where !state.groups.contains(where: { $0.group.id == shard.group }) {
                violations.append("shard \(shard.id) in unknown group \(shard.group)")
            }
        }
        // As long as no decision had to go for newer ones.
        if state.decisions.first?.number ?? 1 == 1 {
            for operation in state.operations where operation.isFinished {
                let end = "operation \(operation.id) is \(operation.step): "
                let told = state.decisions.count {
                    $0.operation == operation.id && $0.text.hasPrefix(end)
                }
                if told != 1 {
                    violations.append("\(told) decisions tell how operation \(operation.id) ended")
                }
            }
        }
        for shard in state.shards where !state.tables.contains(where: { $0.id == shard.table }) {
            violations.append("shard \(shard.id) of no table")
        }
    }
}
