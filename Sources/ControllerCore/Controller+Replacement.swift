// Replacing one replica: create an empty one elsewhere -> the leader gives it the log -> it catches
// up -> the group swaps the two by joint consensus -> the map follows -> the old one is deleted.
// Adding one to a group that lacks it goes the same way; there is nothing to take its leave.
//
// What the group itself has committed decides: whenever the leader's membership shows that the new
// replica took the old one's place, the operation ends as done, whatever was asked meanwhile. So a
// cancellation and a swap may race, and the group's log settles it.

import KVBase
import ShardCore

extension Controller {
    /// A learner this close behind its leader may take part in the swap.
    private static let caughtUpEntries: UInt64 = 256

    // MARK: Starting

    mutating func start(
        _ plan: Replacement, origin: String = OperationRecord.operatorOrigin,
        reason: String = OperationRecord.operatorReason, parent: OperationID = .none,
        request: RequestID? = nil, now: Instant, into effects: inout ControllerEffects
    ) {
        guard let node = nodes[plan.node] else { return }
        let record = OperationRecord(
            id: IDAllocators.take(&nextOperation),
            kind: plan.isAddition ? .addReplica : .replaceReplica, step: .creating,
            origin: origin, reason: reason, parent: parent, group: plan.group, old: plan.old,
            new: Placement(
                replica: IDAllocators.take(&ids.replica), node: plan.node, disk: plan.disk),
            wasSpare: node.record.isSpare)
        begin(
            OperationChange(record: record, nodes: [takeFromPool(plan.node)], usesIDs: true),
            request: request, describe(plan), now: now, into: &effects)
    }

    /// The node's record as one that holds replicas. From now on nobody else counts it as a spare.
    mutating func takeFromPool(_ id: NodeID) -> Node {
        nodes.update(id) { $0.record.isSpare = false }
        guard let node = nodes[id] else { preconditionFailure("chosen nodes exist") }
        return node.record
    }

    // MARK: Driving

    mutating func pumpReplacement(
        _ status: OperationStatus, now: Instant, into effects: inout ControllerEffects
    ) {
        let record = status.record
        guard let group = groups[record.group] else { return }
        let view = leaderView(of: record)
        if let view, isSwapped(record, view.report.members) {
            return settle(record, group, now: now, into: &effects)
        }
        if record.step != .retracting, isHeldBack(record) {
            operations.update(record.id) { $0.reachedAt = now }
            return
        }
        if record.step != .retracting, record.step != .swapping, record.origin == "repair",
            let index = group.placementIndex(replica: record.old.replica),
            nodes[record.old.node]?.isFit(disk: record.old.disk) == true,
            group.reports[index]?.state == .active, view != nil, isUpToDate(record.old.replica)
        {
            return abandon(
                record, "\(name(record.old.node)) is back with its replica", now: now, &effects)
        }
        if record.step != .retracting, nodes[record.new.node]?.health == .down {
            return retarget(
                record, "\(name(record.new.node)) is down", now: now, into: &effects)
        }
        switch record.step {
        case .creating:
            if status.isConfirmed || extraReports[record.new.replica] != nil {
                advance(record, to: .adding, now: now, into: &effects)
            } else if now >= status.sendAgainAt {
                let obstacle = wait(for: record)
                operations.update(record.id) { $0.note = obstacle ?? "" }
                guard obstacle == nil else { return }
                send(
                    record.id, to: record.new.node, .createLearner(group.record, record.new),
                    now: now)
            }
        case .adding:
            guard let view else { return }
            if view.report.members.contains(where: { $0.replica == record.new.replica }) {
                advance(record, to: .catchingUp, now: now, into: &effects)
            } else if now >= status.sendAgainAt {
                send(record.id, to: view.node, .addLearner(record.group, record.new), now: now)
            }
        case .catchingUp: watch(status, view, now: now, into: &effects)
        case .swapping:
            guard let view, now >= status.sendAgainAt else { return }
            send(
                record.id, to: view.node,
                .replaceVoters(record.group, voters(of: group, after: record)), now: now)
        case .retracting:
            if status.isConfirmed {
                retracted(record, now: now, into: &effects)
            } else if let view, now >= status.sendAgainAt {
                send(
                    record.id, to: view.node,
                    .removeLearner(record.group, record.new.replica), now: now)
            }
        default: break
        }
    }

    /// What an operation has to wait for before its new replica is created, whoever asked for it: each disk
    /// takes in one at a time, the cluster `replacements.max`. Older ones go first; those that get nothing
    /// now, for want of a leader or because an operator holds them, keep nobody waiting.
    private func wait(for record: OperationRecord) -> String? {
        let before = openOperations.map(\.record).filter {
            $0.kind.bringsReplica && $0.id < record.id && $0.step != .proposed && !$0.isPaused
                && leaderView(of: $0) != nil
        }
        if let other = before.first(where: {
            ($0.new.node, $0.new.disk) == (record.new.node, record.new.disk)
        }) {
            return "waits for operation \(other.id), which brings a replica to the same disk"
        }
        return before.count < runtime[.replacementsMax]
            ? nil : "waits for its turn: \(plural(before.count, "new replica")) under way"
    }

    /// Waits until the new replica has nearly everything; gives its node up when nothing moves.
    private mutating func watch(
        _ status: OperationStatus, _ view: (node: NodeID, report: ReplicaReport)?, now: Instant,
        into effects: inout ControllerEffects
    ) {
        let record = status.record
        guard let view, let group = groups[record.group],
            let member = view.report.members.first(where: { $0.replica == record.new.replica })
        else {
            // Nobody leads: time does not count against the new replica.
            operations.update(record.id) { $0.reachedAt = now }
            return
        }
        let reached = max(member.match.rawValue, member.snapshotBytes ?? 0)
        if reached != status.reached {
            operations.update(record.id) { status in
                status.reached = reached
                status.reachedAt = now
            }
            noteCopied(member, by: view.report, of: record, now: now)
        } else if now - status.reachedAt > settings.stallTimeout,
            view.report.lastIndex > member.match
        {
            let seconds = (now - status.reachedAt).count / 1_000_000_000
            return retarget(
                record, "\(name(record.new.node)) received nothing for \(seconds) s", now: now,
                into: &effects)
        }
        let last = view.report.lastIndex.rawValue
        let lag = last - min(last, member.match.rawValue)
        guard member.match != .none, lag <= Self.caughtUpEntries,
            let own = extraReports[record.new.replica], own.state == .active,
            nodes[record.new.node]?.isLive == true
        else { return }
        // Never swap a live voter for one that leaves the group without a live majority.
        let next = voters(of: group, after: record)
        let live = next.count { nodes[$0.node]?.isLive == true }
        guard live > next.count / 2 else {
            operations.update(record.id) {
                $0.note = "only \(live) of the \(next.count) next voters are live"
            }
            return
        }
        advance(record, to: .swapping, now: now, into: &effects)
    }

    private mutating func noteCopied(
        _ member: MemberReport, by leader: ReplicaReport, of record: OperationRecord, now: Instant
    ) {
        // Beside a snapshot, entries stand in for bytes: most of a log is records.
        let last = max(1, leader.lastIndex.rawValue)
        let reached =
            member.snapshotBytes
            ?? bytes(of: record.group).share(min(last, member.match.rawValue), of: last)
        operations.update(record.id) { $0.copied.reach(reached, now: now) }
        replicaCopyPace = operations[record.id]?.copied.bytesPerSecond(now: now) ?? replicaCopyPace
    }

    func voters(of group: GroupStatus, after record: OperationRecord) -> [Placement] {
        group.record.placements.filter { $0.replica != record.old.replica } + [record.new]
    }

    /// The group's leader and what it reported, the new replica included, which may lead already.
    private func leaderView(of record: OperationRecord) -> (node: NodeID, report: ReplicaReport)? {
        guard let group = groups[record.group] else { return nil }
        var best: (node: NodeID, report: ReplicaReport)?
        for (index, placement) in group.record.placements.enumerated() {
            guard let report = group.reports[index], report.role == .leader, report.isServing,
                nodes[placement.node]?.isLive == true, report.term > best?.report.term ?? .none
            else { continue }
            best = (placement.node, report)
        }
        if let report = extraReports[record.new.replica], report.role == .leader,
            report.isServing, nodes[record.new.node]?.isLive == true,
            report.term > best?.report.term ?? .none
        {
            best = (record.new.node, report)
        }
        return best
    }

    private func isSwapped(_ record: OperationRecord, _ members: [MemberReport]) -> Bool {
        members.contains { $0.replica == record.new.replica && $0.role == .voter }
            && !members.contains { $0.role == .outgoing || $0.replica == record.old.replica }
    }
}
