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

    /// What replacing would do, or why it is refused.
    public func planReplacement(
        of name: String, in id: GroupID, with wanted: String?, now: Instant
    ) throws(DatabaseError) -> Replacement {
        let node = try find(node: name)
        guard let group = groups[id] else {
            let known = groups.elements.prefix(20).map { "\($0.record.id)" }
            throw DatabaseError(
                .refused,
                "there is no group \(id); there are \(known.joined(separator: ", "))")
        }
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

    /// What adding a replica would do, or why it is refused.
    public func planAddition(
        to id: GroupID, on wanted: String?, now: Instant
    ) throws(DatabaseError) -> Replacement {
        guard let group = groups[id] else {
            let known = groups.elements.prefix(20).map { "\($0.record.id)" }
            throw DatabaseError(
                .refused,
                "there is no group \(id); there are \(known.joined(separator: ", "))")
        }
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
        let places = group.record.placements
        let lost = places.filter { nodes[$0.node]?.isLive != true }
        let live = places.count - lost.count
        if live <= places.count / 2 {
            let names = lost.map { name($0.node) }.joined(separator: " or ")
            throw DatabaseError(
                .refused,
                "group \(id) has \(live) of \(places.count) replicas live and cannot agree on "
                    + "anything; start \(names) first")
        }
        throw DatabaseError(
            .unavailable, "group \(id) has no serving leader now; repeat in a second")
    }

    mutating func start(
        _ plan: Replacement, origin: String, reason: String, parent: OperationID = .none,
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

    private mutating func advance(
        _ record: OperationRecord, to step: OperationRecord.Step, now: Instant,
        into effects: inout ControllerEffects
    ) {
        var record = record
        record.step = step
        effects.append(.decided("operation \(record.id) goes on: \(step)"))
        save(OperationChange(record: record), now: now, into: &effects)
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

    private func voters(of group: GroupStatus, after record: OperationRecord) -> [Placement] {
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

    // MARK: Ending

    /// The group has the new replica as voter: the cluster map follows, the old one is retired.
    private mutating func settle(
        _ record: OperationRecord, _ group: GroupStatus, now: Instant,
        into effects: inout ControllerEffects
    ) {
        guard !group.isStoring else { return }
        var next = GroupRecord(group: group.record, wanted: group.wanted)
        next.group.placements = voters(of: group, after: record).sorted { $0.replica < $1.replica }
        for (index, placement) in next.group.placements.enumerated() {
            let before = group.placementIndex(replica: placement.replica)
            if before.map({ group.createdMask & (1 << $0) != 0 }) ?? true {
                next.createdMask |= 1 << index
            }
        }
        let outcome =
            (record.kind == .addReplica
                ? "group \(record.group) has a replica on \(name(record.new.node)) now, "
                    + "\(next.group.placements.count) of \(group.wanted)"
                : "\(name(record.new.node)) has taken over group \(record.group) from "
                    + "\(name(record.old.node))")
            + (record.isCancelled ? "; the cancellation came too late" : "")
        finish(
            OperationChange(
                record: record, group: next, nodes: [takeFromPool(record.new.node)],
                retired: record.old == .nowhere
                    ? []
                    : [
                        RetiredReplica(
                            group: record.group, replica: record.old.replica,
                            node: record.old.node,
                            reason: "operation \(record.id): \(outcome), because \(record.reason)")
                    ]), as: .done, outcome, now: now, into: &effects)
    }

    /// Takes stored placements into what is known of a group.
    mutating func takeOver(placementsOf record: GroupRecord, now: Instant) {
        let id = record.group.id
        guard let before = groups[id] else { return }
        endAttempt(id)
        let gone = before.record.placements.filter { !record.group.placements.contains($0) }
        let come = record.group.placements.filter { !before.record.placements.contains($0) }
        if gone.contains(where: { $0.node == before.leader.node }) {
            loseLeader(id, isLost: false, now: now)
        }
        groups.update(id) { group in
            let old = group
            group = GroupStatus(record)
            for (index, placement) in record.group.placements.enumerated() {
                if let place = old.placementIndex(replica: placement.replica) {
                    group.reports[index] = old.reports[place]
                    group.reportedAt[index] = old.reportedAt[place]
                    if old.createdMask & (1 << place) != 0 { group.createdMask |= 1 << index }
                } else {
                    group.reports[index] = extraReports[placement.replica]
                    group.reportedAt[index] = now
                }
            }
            group.leader = old.leader
            group.isServing = old.isServing
            group.leaderlessSince = old.leaderlessSince
            group.isLeaderLost = old.isLeaderLost
            group.nomination = old.nomination
        }
        for placement in gone {
            nodes.update(placement.node) { node in
                node.replicas -= 1
                node.groups.removeAll { $0 == id }
            }
        }
        for placement in come {
            extraReports.remove(placement.replica)
            nodes.update(placement.node) { node in
                node.replicas += 1
                Self.insert(id, into: &node.groups)
            }
        }
        changes.append(.group(record.group))
        attend(id)
    }

    /// Stops before the swap.
    mutating func abandon(
        _ record: OperationRecord, _ reason: String, now: Instant,
        _ effects: inout ControllerEffects
    ) {
        var record = record
        record.isCancelled = true
        record.outcome = reason
        if record.step == .creating {
            return endReplacement(record, as: .cancelled, reason, now: now, &effects)
        }
        record.step = .retracting
        decide(
            "operation \(record.id) gives up: \(reason)",
            nodes: [record.old.node].filter { $0 != .none },
            group: record.group, operation: record.id, now: now, into: &effects)
        save(OperationChange(record: record), now: now, into: &effects)
    }

    /// The new replica's node failed: take the replica out, then try another node.
    mutating func retarget(
        _ record: OperationRecord, _ reason: String, now: Instant,
        into effects: inout ControllerEffects
    ) {
        var record = record
        record.outcome = reason
        record.avoided.append(record.new.node)
        if record.step == .creating { return retracted(record, now: now, into: &effects) }
        record.step = .retracting
        decide(
            "operation \(record.id) looks for another node: \(reason)", nodes: [record.new.node],
            group: record.group, operation: record.id, now: now, into: &effects)
        save(OperationChange(record: record), now: now, into: &effects)
    }

    /// The new replica is not in the group (any more).
    private mutating func retracted(
        _ record: OperationRecord, now: Instant, into effects: inout ControllerEffects
    ) {
        if record.isCancelled {
            let outcome = record.outcome.isEmpty ? "stopped by the operator" : record.outcome
            return endReplacement(record, as: .cancelled, outcome, now: now, &effects)
        }
        if record.origin == RuleName.rebalance.rawValue {
            // The old replica is as good as ever: no other node is needed.
            return endReplacement(record, as: .failed, record.outcome, now: now, &effects)
        }
        let plan = choose(
            record.group, replacing: record.old, prefersSpares: record.kind == .replaceReplica,
            avoiding: record.avoided, now: now)
        switch plan {
        case .failure(let error):
            endReplacement(
                record, as: .failed, "\(record.outcome); \(error.message)", now: now, &effects)
        case .success(let plan):
            let (retired, restored) = release(record, "its node failed: \(record.outcome)")
            var next = record
            next.step = .creating
            next.wasSpare = nodes[plan.node]?.record.isSpare ?? false
            next.new = Placement(
                replica: IDAllocators.take(&ids.replica), node: plan.node, disk: plan.disk)
            extraReports.remove(record.new.replica)
            decide(
                "operation \(record.id): \(record.outcome); \(describe(plan))",
                nodes: [record.new.node, plan.node], group: record.group, operation: record.id,
                now: now, into: &effects)
            save(
                OperationChange(
                    record: next, nodes: restored + [takeFromPool(plan.node)], retired: [retired],
                    usesIDs: true), now: now, into: &effects)
        }
    }

    /// Ends without a swap: the new replica is retired, its node goes back to the pool.
    mutating func endReplacement(
        _ record: OperationRecord, as step: OperationRecord.Step, _ outcome: String, now: Instant,
        _ effects: inout ControllerEffects
    ) {
        let (retired, restored) = release(record, outcome)
        extraReports.remove(record.new.replica)
        finish(
            OperationChange(record: record, nodes: restored, retired: [retired]), as: step,
            outcome, now: now, into: &effects)
    }

    private func release(_ record: OperationRecord, _ reason: String) -> (RetiredReplica, [Node]) {
        let retired = RetiredReplica(
            group: record.group, replica: record.new.replica, node: record.new.node,
            reason: "operation \(record.id): \(reason)")
        let isUsed = openOperations.contains {
            $0.record.id != record.id && $0.record.kind.bringsReplica
                && $0.record.step != .proposed
                && $0.record.new.node == record.new.node
        }
        guard record.wasSpare, !isUsed, let node = nodes[record.new.node], node.groups.isEmpty
        else { return (retired, []) }
        var spare = node.record
        spare.isSpare = true
        return (retired, [spare])
    }
}
