// Replicas without a place: those that were replaced, and learners that nobody wants any more.

import KVBase
import ShardCore

extension Controller {
    /// Keeps the report of a replica that an operation is bringing in.
    mutating func observeExtra(
        _ report: ReplicaReport, of node: NodeID, now: Instant,
        into effects: inout ControllerEffects
    ) {
        guard let open = operation(on: report.group),
            open.record.new
                == Placement(
                    replica: report.replica, node: node, disk: open.record.new.disk)
        else { return }
        extraReports.set(report, for: report.replica)
        touchedOperations.append(open.record.id)
    }

    /// Tells live nodes to delete what was retired there, until they have.
    mutating func sweepRetired(now: Instant, into effects: inout ControllerEffects) {
        guard now >= retirementCheckAt else { return }
        retirementCheckAt = now + settings.commandTimeout
        for replica in retired.elements {
            guard let node = nodes[replica.node], node.isLive, node.hasReported else { continue }
            _ = command(
                replica.node,
                .removeReplica(replica.group, replica.replica, reason: replica.reason),
                .removal(replica.replica))
        }
        for group in groups.elements where group.hasLeader && group.isServing {
            guard let index = group.placementIndex(node: group.leader.node),
                let report = group.reports[index], report.role == .leader
            else { continue }
            for member in report.members where member.role == .learner {
                if operation(on: group.record.id)?.record.new.replica == member.replica { continue }
                _ = command(
                    group.leader.node, .removeLearner(group.record.id, member.replica),
                    .stray(member.replica))
            }
        }
    }

    mutating func removalOutcome(
        _ id: ReplicaID, _ error: DatabaseError?, now: Instant,
        into effects: inout ControllerEffects
    ) {
        guard error == nil, let replica = retired.remove(id) else { return }
        var transaction = MetadataTransaction()
        transaction.changes.append(.delete(key: StoreKey.retired(id)))
        decide(
            "\(name(replica.node)) has deleted its retired replica \(id) of group \(replica.group)",
            nodes: [replica.node], group: replica.group, now: now, into: &effects)
        store(transaction, then: .nothing, into: &effects)
    }
}
