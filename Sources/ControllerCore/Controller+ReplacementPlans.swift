// What replacing or adding a replica would do, before anything is stored.

import KVBase
import ShardCore

extension Controller {
    /// What replacing would do, or why it is refused.
    public func planReplacement(
        of name: String, in id: GroupID, with wanted: String?, now: Instant
    ) throws(DatabaseError) -> Replacement {
        let node = try find(node: name)
        let group = try find(group: id)
        guard let index = group.placementIndex(node: node.record.id) else {
            let holders = group.record.placements.map { self.name($0.node) }
            throw DatabaseError(
                .refused,
                "\(name) holds no replica of group \(id); \(holders.joined(separator: ", ")) do")
        }
        try checkFree(id)
        try checkServes(group)
        var target = NodeID.none
        if let wanted {
            let spare = try find(node: wanted)
            target = spare.record.id
            guard target != node.record.id else {
                throw DatabaseError(.refused, "\(name) cannot take over from itself")
            }
        }
        switch choose(id, replacing: group.record.placements[index], with: target, now: now) {
        case .success(let plan): return plan
        case .failure(let error): throw error
        }
    }

    /// The first node with a replica that no other one could take over now, and why; nil when each
    /// replica has somewhere to go.
    public func firstWithoutHeir(now: Instant) -> (node: NodeID, reason: String)? {
        let bytes = bytesOfGroups()
        func heir(of old: Placement, in id: GroupID) -> Result<Replacement, DatabaseError> {
            choose(id, replacing: old, bytes: bytes[id] ?? 0, now: now)
        }
        // A node that holds nothing and has room for the largest group can take anything over.
        let largest = groups.elements.max { bytes[$0.record.id] ?? 0 < bytes[$1.record.id] ?? 0 }
        if let group = largest?.record, let placement = group.placements.first,
            case .success(let plan) = heir(of: placement, in: group.id),
            nodes[plan.node]?.replicas == 0
        {
            return nil
        }
        for group in groups.elements {
            for placement in group.record.placements {
                if case .failure(let error) = heir(of: placement, in: group.record.id) {
                    return (placement.node, error.message)
                }
            }
        }
        return nil
    }

    /// What adding a replica would do, or why it is refused.
    public func planAddition(
        to id: GroupID, on wanted: String?, now: Instant
    ) throws(DatabaseError) -> Replacement {
        let group = try find(group: id)
        guard group.lacking > 0 else {
            let lacking = groups.elements.filter { $0.lacking > 0 }.prefix(20)
                .map { "\($0.record.id)" }
            throw DatabaseError(
                .refused,
                "group \(id) has the \(group.wanted) replicas that its tables ask for; "
                    + (lacking.isEmpty
                        ? "no group lacks any"
                        : "replicas are lacking in \(lacking.joined(separator: ", "))"))
        }
        try checkFree(id)
        try checkServes(group)
        let target = try wanted.map { (name) throws(DatabaseError) in try find(node: name) }
        return try choose(
            id, replacing: .nowhere, with: target?.record.id ?? .none, prefersSpares: false,
            now: now
        ).get()
    }

    /// Only a group that can commit can change its members.
    func checkServes(_ group: GroupStatus) throws(DatabaseError) {
        let id = group.record.id
        guard group.record.state == .active else {
            throw DatabaseError(.refused, "group \(id) is still being created; repeat")
        }
        guard !group.hasLeader || !group.isServing else { return }
        try checkMajority(of: group)
        throw DatabaseError(
            .unavailable, "group \(id) has no serving leader now; repeat in a second")
    }

    /// Refuses what a group without a majority of live replicas would wait for without end.
    func checkMajority(of group: GroupStatus) throws(DatabaseError) {
        let places = group.record.placements
        let lost = places.filter { nodes[$0.node]?.isLive != true }
        let live = places.count - lost.count
        guard live <= places.count / 2 else { return }
        let names = lost.map { name($0.node) }.joined(separator: " or ")
        throw DatabaseError(
            .refused,
            "group \(group.record.id) has \(live) of \(places.count) replicas live and cannot agree "
                + "on anything; start \(names) first")
    }
}
