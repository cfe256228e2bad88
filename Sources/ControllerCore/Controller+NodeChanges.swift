// What operators change about nodes: their weight, whether they are spares, and forgetting them.

import KVBase
import ShardCore

/// A change of a node that is on its way to the store.
enum NodeChange: Sendable {
    case weight(NodeID, UInt8)
    /// The record as it becomes; a node that is put into the pool is not held any more.
    case pool(Node)
    case removed(NodeID)
    /// Wall clock in milliseconds at which it ends; nil when it has ended.
    case maintenance(NodeID, until: UInt64?)
}

extension Controller {
    mutating func setWeight(
        of name: String, to weight: UInt8, _ request: RequestID, now: Instant,
        into effects: inout ControllerEffects
    ) throws(DatabaseError) {
        let node = try find(node: name)
        guard weight <= NodeStatus.weightMax else {
            throw DatabaseError(
                .refused,
                "a weight is a number from 0 to \(NodeStatus.weightMax), "
                    + "\(NodeStatus.defaultWeight) by default, not \(weight)")
        }
        let id = node.record.id
        var transaction = MetadataTransaction()
        if weight == NodeStatus.defaultWeight {
            transaction.changes.append(.delete(key: StoreKey.weight(id)))
        } else {
            transaction.put(StoreKey.weight(id)) { $0.write(weight) }
        }
        decide(
            "the weight of \(name) is \(weight) now, was \(node.weight): set by the operator",
            nodes: [id], now: now, into: &effects)
        store(transaction, then: .nodeChanged(.weight(id, weight), request), into: &effects)
    }

    mutating func setSpare(
        _ name: String, _ isSpare: Bool, _ request: RequestID, now: Instant,
        into effects: inout ControllerEffects
    ) throws(DatabaseError) {
        let node = try find(node: name)
        let id = node.record.id
        guard node.record.isSpare != isSpare else {
            throw DatabaseError(
                .refused, isSpare ? "\(name) is a spare already" : "\(name) is no spare")
        }
        if isSpare {
            try checkEmpty(node, "become a spare")
            try checkUnoccupied(node)
        }
        var record = node.record
        record.isSpare = isSpare
        var transaction = MetadataTransaction()
        transaction.put(record)
        if isSpare, node.isHeld {
            transaction.changes.append(.delete(key: StoreKey.held(id)))
        }
        // From now on nobody counts on it; a later decision is stored behind this.
        nodes.update(id) { $0.record.isSpare = isSpare }
        decide(
            "\(name) is \(isSpare ? "a spare" : "no spare any more"): "
                + OperationRecord.operatorReason,
            nodes: [id], now: now, into: &effects)
        store(transaction, then: .nodeChanged(.pool(record), request), into: &effects)
    }

    mutating func removeNode(
        _ name: String, _ request: RequestID, now: Instant, into effects: inout ControllerEffects
    ) throws(DatabaseError) {
        let node = try find(node: name)
        let id = node.record.id
        try checkEmpty(node, "be removed")
        guard node.connection == nil, !admissions.contains(where: { $0.record.id == id }) else {
            throw DatabaseError(
                .refused, "\(name) still runs; stop it first, or it would have to join anew")
        }
        try checkUnoccupied(node)
        var transaction = MetadataTransaction()
        transaction.changes = [
            .delete(key: StoreKey.node(id)), .delete(key: StoreKey.held(id)),
            .delete(key: StoreKey.weight(id)), .delete(key: StoreKey.maintenance(id)),
        ]
        let left = retired.elements.filter { $0.node == id }
        for replica in left {
            transaction.changes.append(.delete(key: StoreKey.retired(replica.replica)))
        }
        nodes.update(id) { $0.isHeld = true }
        decide(
            "\(name) (node \(id)) is forgotten: \(OperationRecord.operatorReason)"
                + (left.isEmpty
                    ? ""
                    : "; not deleted from its disks: \(plural(left.count, "replaced replica"))"),
            nodes: [id], now: now, into: &effects)
        store(transaction, then: .nodeChanged(.removed(id), request), into: &effects)
    }

    mutating func nodeChanged(
        _ change: NodeChange, _ request: RequestID?, into effects: inout ControllerEffects
    ) {
        switch change {
        case .weight(let id, let weight): nodes.update(id) { $0.weight = weight }
        case .pool(let record):
            if record.isSpare { nodes.update(record.id) { $0.isHeld = false } }
            changes.append(.node(record))
        case .maintenance(let id, let until): nodes.update(id) { $0.maintenanceUntil = until }
        case .removed(let id):
            if let connection = nodes[id]?.connection {
                connections[connection] = nil
                effects.append(
                    .reject(connection, DatabaseError(.fenced, "node \(id) was removed")))
            }
            for replica in retired.elements where replica.node == id {
                retired.remove(replica.replica)
            }
            nodes.remove(id)
            changes.append(.nodeRemoved(id))
        }
        if let request { operationAnswers.append((request, .success(.none))) }
    }

    private func checkEmpty(_ node: NodeStatus, _ wish: String) throws(DatabaseError) {
        let name = node.record.name
        guard node.groups.isEmpty else {
            let way =
                node.isLive
                ? "kvctl drain \(name)" : "kvctl replace \(name), or start it and drain it"
            throw DatabaseError(
                .refused,
                "\(name) holds \(plural(node.groups.count, "replica")) and cannot \(wish); first: \(way)"
            )
        }
        let id = node.record.id
        let coming = openOperations.first {
            $0.record.kind.bringsReplica && $0.record.step != .proposed
                && $0.record.new.node == id
        }
        if let coming {
            throw DatabaseError(
                .refused,
                "operation \(coming.record.id) brings a replica to \(name); wait for it, or stop "
                    + "it with: kvctl ops cancel \(coming.record.id)")
        }
        guard !plannedGroups.contains(where: { $0.group.placements.contains { $0.node == id } })
        else {
            throw DatabaseError(.unavailable, "a group is being formed on \(name); repeat")
        }
    }
}
