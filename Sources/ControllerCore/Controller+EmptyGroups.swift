// Groups that lost all their shards are dissolved: they cost heartbeats, and places on nodes.
//
// The record goes and the replicas are retired in one transaction. From the moment of the decision no
// later one can choose the group, because it is not known any more and the store keeps the order of
// decisions. Before, nothing may name it: a shard that is on its way into a group, or out of it, has an
// operation that does, and a table on its way counts its shards.

import KVBase
import ShardCore

extension Controller {
    /// Dissolves at most one group in a look: of those that have been empty for long enough the one
    /// that was formed last.
    mutating func dissolveEmptyGroups(now: Instant, into effects: inout ControllerEffects) {
        let grace = runtime.time(.groupsEmptyAfter)
        var due: GroupStatus?
        for group in groups.elements {
            let id = group.record.id
            guard shardCount(of: id) == 0, group.record.state == .active, !isNamed(id),
                !isWantedSoon(group)
            else {
                rules.empty.remove(id)
                continue
            }
            guard let since = rules.empty[id] else {
                rules.empty.set(now, for: id)
                continue
            }
            guard now - since >= grace, group.hasLeader, group.isServing, group.attempt == nil,
                !group.isStoring, transfer?.group != id,
                groupIDs(engine: group.record.engine, replicas: group.wanted).count
                    > groupsWanted(engine: group.record.engine, replicas: group.wanted)
            else { continue }
            due = group
        }
        guard let due, !isAboutToEvenOut(now: now) else { return }
        dissolve(due, now: now, into: &effects)
    }

    private mutating func dissolve(
        _ group: GroupStatus, now: Instant, into effects: inout ControllerEffects
    ) {
        let id = group.record.id
        let empty = RuntimeSetting.groupsEmptyAfter
        let reason = "group \(id) is dissolved: it had no shards for \(empty.write(runtime[empty]))"
        let left = groupIDs(engine: group.record.engine, replicas: group.wanted).count - 1
        var transaction = MetadataTransaction()
        transaction.changes = [
            .delete(key: StoreKey.group(id)), .delete(key: StoreKey.nomination(id)),
        ]
        let replicas = group.record.placements.map { placement in
            RetiredReplica(
                group: id, replica: placement.replica, node: placement.node, reason: reason)
        }
        for replica in replicas {
            transaction.put(StoreKey.retired(replica.replica)) { replica.encode(into: &$0) }
        }
        groups.remove(id)
        groupLoads.remove(id)
        rules.empty.remove(id)
        rules.hot.remove(id)
        shardCounts[id] = nil
        ownedBytes[id] = nil
        repairRefusedAt[id] = nil
        attention.removeAll { $0 == id }
        decide(
            reason + "; \(left) \(group.record.engine) group\(left == 1 ? "" : "s") of "
                + "\(group.wanted) replicas \(left == 1 ? "is" : "are") left",
            nodes: replicas.map(\.node), group: id, now: now, into: &effects)
        store(
            transaction, then: .dissolved(id, replicas, leader: group.leader.node), into: &effects)
    }

    mutating func dissolved(
        _ id: GroupID, _ replicas: [RetiredReplica], leader: NodeID, now: Instant
    ) {
        for replica in replicas {
            retired.set(replica, for: replica.replica)
            nodes.update(replica.node) { node in
                node.replicas -= 1
                node.groups.removeAll { $0 == id }
            }
        }
        nodes.update(leader) { $0.leaders -= 1 }
        retirementCheckAt = now
        changes.append(.groupRemoved(id))
    }

    // MARK: Grounds to keep it

    /// Groups of a kind that are kept, whether they hold shards or not: as many as are formed for the
    /// default kind, and for any other one that a table asks for.
    private func groupsWanted(engine: EngineKind, replicas: Int) -> Int {
        let isAskedFor =
            engine == .lsm && replicas == settings.replicasDefault
            || (tables.elements + procedures.elements.map(\.table)).contains {
                $0.engine == engine && Int($0.replicas) == replicas
            }
        return isAskedFor ? max(1, settings.groupsInitial) : 0
    }

    /// Whether an operation has to do with the group, one on its way to the store and a proposal
    /// included.
    private func isNamed(_ id: GroupID) -> Bool {
        func names(_ record: OperationRecord) -> Bool {
            record.group == id || record.work?.source == id || record.work?.target == id
        }
        return former.elements.contains { $0.record.group == id }
            || openOperations.contains { names($0.record) }
            || continuations.contains {
                if case .operation(let change) = $0.continuation {
                    names(change.record)
                } else {
                    false
                }
            }
    }

    /// Whether a group of its kind is above its rating, so that the rule for hot groups may want it.
    private func isWantedSoon(_ group: GroupStatus) -> Bool {
        guard mode(of: .hotShard) != .off else { return false }
        return rules.hot.elements.contains { hot in
            groups[hot.group].map {
                $0.record.engine == group.record.engine && $0.wanted == group.wanted
            } ?? false
        }
    }

    /// Whether rebalance waits to move shards.
    private func isAboutToEvenOut(now: Instant) -> Bool {
        guard mode(of: .rebalance) != .off, let since = rules.unevenSince else { return false }
        return now - since < runtime.time(.rebalanceSustain)
    }
}
