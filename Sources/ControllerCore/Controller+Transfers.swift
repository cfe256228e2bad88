// Moving the leader of a group to another of its nodes, as an operator asks for it.

import KVBase
import ShardCore

extension Controller {
    /// Who leads the group and who would, or why that is refused.
    public func planTransfer(
        of id: GroupID, to name: String
    ) throws(DatabaseError) -> (leader: Placement, next: Placement) {
        let node = try find(node: name)
        let group = try find(group: id)
        let places = group.record.placements
        guard let index = group.placementIndex(node: node.record.id) else {
            let names = places.map { self.name($0.node) }.joined(separator: ", ")
            throw DatabaseError(
                .refused, "\(name) holds no replica of group \(id); \(names) do")
        }
        try checkFree(id)
        guard let leader = places.first(where: { $0.node == group.leader.node }) else {
            throw DatabaseError(.unavailable, "group \(id) has no leader now; repeat")
        }
        guard leader.node != node.record.id else {
            throw DatabaseError(.refused, "\(name) leads group \(id) already")
        }
        guard !node.isInMaintenance else {
            throw DatabaseError(
                .refused,
                "\(name) is in maintenance and leads nothing; end that first with: "
                    + Self.endOfMaintenance(name))
        }
        guard node.isLive, group.reports[index]?.state == .active else {
            throw DatabaseError(.refused, "the replica of group \(id) on \(name) is not active")
        }
        return (leader, places[index])
    }

    mutating func transfer(
        _ id: GroupID, to name: String, _ request: RequestID, now: Instant,
        into effects: inout ControllerEffects
    ) throws(DatabaseError) {
        let (leader, next) = try planTransfer(of: id, to: name)
        let record = OperationRecord(
            id: IDAllocators.take(&nextOperation), kind: .transfer, step: .moving,
            group: id, old: leader, new: next)
        begin(
            OperationChange(record: record, usesIDs: true), request: request,
            "moves the leader of group \(id) from \(self.name(leader.node)) to \(name)", now: now,
            into: &effects)
    }

    mutating func pumpTransfer(
        _ status: OperationStatus, now: Instant, into effects: inout ControllerEffects
    ) {
        let record = status.record
        guard let group = groups[record.group] else { return }
        if group.leader.node == record.new.node {
            return finish(
                OperationChange(record: record), as: .done, "\(name(record.new.node)) leads",
                now: now, into: &effects)
        }
        guard now - status.reachedAt < settings.requestDeadline else {
            return finish(
                OperationChange(record: record), as: .failed,
                "\(name(record.new.node)) did not take over within "
                    + "\(settings.requestDeadline.count / 1_000_000_000) s", now: now,
                into: &effects)
        }
        guard group.hasLeader, now >= status.sendAgainAt else { return }
        send(
            record.id, to: group.leader.node,
            .transferLeadership(record.group, to: record.new.replica), now: now)
    }
}
