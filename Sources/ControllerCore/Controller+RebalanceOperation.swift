// Evening out the cluster because an operator asks for it: the steps of the rule, without its waiting
// times, one after the other until none is a gain any more.
//
// It ends: a replica moves only to a node that stays the less filled one, a leader only to a node
// that leads two groups fewer, and one operation moves no shard twice.

import KVBase
import ShardCore

extension Controller {
    /// After a step, figures of load are awaited for so long: leaders report them about once a
    /// second, and what they count lies up to a few seconds back.
    private static let settlingTime = Nanoseconds.seconds(5)
    private static let plannedStepsMax = 100

    // MARK: Planning

    /// What `rebalance` would do, or why it is refused.
    public func planRebalance(now: Instant) throws(DatabaseError) -> RebalancePlan {
        if let running = openOperations.first(where: { $0.record.kind == .rebalance }) {
            throw isWorkedOn("the balance of the cluster", running)
        }
        if let obstacle = obstacleToRebalance() {
            throw DatabaseError(
                .refused,
                "\(obstacle); nothing is evened out before all is well, see: kvctl doctor")
        }
        let plan = forecastRebalance(RebalanceLimits(since: .max), now: now)
        guard !plan.steps.isEmpty else {
            throw DatabaseError(
                .refused,
                "nothing to even out: \(describe(plan.before)); a step is worth it when a node holds "
                    + "two replicas more than another of its weight or leads two groups more, or "
                    + "when groups of a kind are more than "
                    + "\(Self.counted(runtime[.splitRate] / 2)) requests/s or "
                    + "\(quantity(runtime[.splitBytes] / 2)) apart and a shard lessens that")
        }
        return plan
    }

    /// The steps from now on, as far as they can be foreseen.
    private func forecastRebalance(_ limits: RebalanceLimits, now: Instant) -> RebalancePlan {
        var trial = self
        var limits = limits
        var plan = RebalancePlan(
            steps: [], isCut: false, before: balance, after: balance, bytes: 0)
        while let step = trial.nextStep(limits, now: now) {
            guard plan.steps.count < Self.plannedStepsMax else {
                plan.isCut = true
                break
            }
            plan.steps.append(step)
            switch step {
            case .replica(let replacement, _): plan.bytes += replacement.bytes
            case .shard(let move, _):
                plan.bytes += move.bytes ?? 0
                limits.shards.append(move.work.moving)
            case .leader(let group, _, _, _): limits.leaders.append(group)
            }
            trial.imagine(step)
        }
        plan.after = trial.balance
        return plan
    }

    /// The first of these that is possible: replicas over nodes, requests over groups, bytes over
    /// groups, leaders over nodes.
    private func nextStep(
        _ limits: RebalanceLimits, withLoad: Bool = true, now: Instant
    ) -> RebalanceStep? {
        let replica = replicaToMove(now: now) { group in
            !limits.groups.contains(group) && operation(on: group) == nil
        }
        if let (plan, reason) = replica { return .replica(plan, reason: reason) }
        guard withLoad else { return nil }
        func isAllowed(_ shard: Shard) -> Bool {
            !limits.shards.contains(shard.id) && operation(onShard: shard.id) == nil
                && rules.histories[shard.id].map({ $0.movedAt < limits.since }) ?? true
        }
        if let gap = loadGap(now: now), !isBusy(gap.fullest.group),
            let (shard, reason) = shardToMove(forLoad: gap, now: now, isAllowed: isAllowed),
            let plan = try? plan(moveOf: shard.id, to: .group(gap.emptiest.group), now: now)
        {
            return .shard(plan, reason: reason)
        }
        if let gap = bytesGap(), !isBusy(gap.fullest.group), !isBusy(gap.emptiest.group),
            let (shard, reason) = shardToMove(forBytes: gap, isAllowed: isAllowed),
            let plan = try? plan(moveOf: shard.id, to: .group(gap.emptiest.group), now: now)
        {
            return .shard(plan, reason: reason)
        }
        let leader = leaderToMove { leader in
            !limits.leaders.contains(leader.group) && operation(on: leader.group) == nil
        }
        guard let leader, let group = groups[leader.group],
            let from = group.record.placements.first(where: { $0.node == group.leader.node })
        else { return nil }
        return .leader(
            leader.group, from: from, to: leader.placement,
            reason: "\(name(from.node)) leads \(leader.gain) groups more than "
                + name(leader.placement.node))
    }

    /// Takes a step as if it were done, in a copy of the controller that forecasts.
    private mutating func imagine(_ step: RebalanceStep) {
        switch step {
        case .replica(let plan, _):
            guard let group = groups[plan.group],
                let index = group.record.placements.firstIndex(of: plan.old)
            else { return }
            let heir = group.record.placements.first { $0.node != plan.old.node }
            groups.update(plan.group) { group in
                group.stored.group.placements[index].node = plan.node
                group.stored.group.placements[index].disk = plan.disk
            }
            nodes.update(plan.old.node) { node in
                node.replicas -= 1
                node.groups.removeAll { $0 == plan.group }
            }
            nodes.update(plan.node) { node in
                node.replicas += 1
                Self.insert(plan.group, into: &node.groups)
            }
            if group.leader.node == plan.old.node, let heir { lead(plan.group, on: heir.node) }
        case .shard(let plan, _):
            let load = shardLoads[plan.work.moving]
            shards.update(plan.work.moving) { $0.group = plan.work.target }
            shardCounts[plan.work.source, default: 0] -= 1
            shardCounts[plan.work.target, default: 0] += 1
            moveSize(of: plan.work.moving, from: plan.work.source, to: plan.work.target)
            guard let load else { return }
            groupLoads.update(plan.work.source) { group in
                group.reads -= min(load.reads, group.reads)
                group.writes -= min(load.writes, group.writes)
            }
            groupLoads.update(plan.work.target) { group in
                group.reads += load.reads
                group.writes += load.writes
            }
        case .leader(let group, _, let to, _): lead(group, on: to.node)
        }
    }

    private mutating func lead(_ group: GroupID, on node: NodeID) {
        guard let before = groups[group]?.leader.node else { return }
        nodes.update(before) { $0.leaders -= 1 }
        nodes.update(node) { $0.leaders += 1 }
        groups.update(group) { $0.leader.node = node }
    }

    // MARK: Figures

    /// As last reported.
    public var balance: ClusterBalance {
        var balances = SortedRecords<NodeID, NodeBalance>()
        for node in nodes.elements where !node.groups.isEmpty || node.isEligible {
            balances.set(
                NodeBalance(
                    node: node.record.id, weight: node.weight, replicas: node.replicas,
                    leaders: node.leaders, operations: 0, bytes: 0), for: node.record.id)
        }
        var forecasts: [GroupForecast] = []
        for group in groups.elements {
            let id = group.record.id
            let forecast = GroupForecast(
                group: id, operations: groupLoads[id]?.operations ?? 0, bytes: ownedBytes[id] ?? 0,
                shards: shardCount(of: id))
            forecasts.append(forecast)
            for placement in group.record.placements {
                balances.update(placement.node) { node in
                    node.bytes += forecast.bytes
                    if placement.node == group.leader.node {
                        node.operations += forecast.operations
                    }
                }
            }
        }
        return ClusterBalance(nodes: Array(balances.elements), groups: forecasts)
    }

    /// `1 to 4 replicas and 0 to 2 leaders per node, 0 to 310 requests/s and 0 B to 1 GiB per group`.
    private func describe(_ balance: ClusterBalance) -> String {
        func span(
            _ values: [UInt64], _ words: (UInt64) -> String, _ noun: String = ""
        ) -> String {
            let (low, high) = (values.min() ?? 0, values.max() ?? 0)
            return (low == high ? words(low) : "\(words(low)) to \(words(high))")
                + (noun.isEmpty ? "" : high == 1 ? " " + noun : " \(noun)s")
        }
        return span(balance.nodes.map { UInt64($0.replicas) }, Self.counted, "replica") + " and "
            + span(balance.nodes.map { UInt64(max(0, $0.leaders)) }, Self.counted, "leader")
            + " per node, " + span(balance.groups.map(\.operations), Self.counted)
            + " requests/s and " + span(balance.groups.map(\.bytes), quantity) + " per group"
    }

    private func steps(_ count: Int) -> String { count == 1 ? "1 step" : "\(count) steps" }

    // MARK: The operation

    mutating func beginRebalance(
        _ request: RequestID, now: Instant, into effects: inout ControllerEffects
    ) throws(DatabaseError) {
        let plan = try planRebalance(now: now)
        var record = OperationRecord(
            id: IDAllocators.take(&nextOperation), kind: .rebalance, step: .moving,
            group: .none, old: .nowhere, new: .nowhere)
        record.outcome = "before: \(describe(plan.before))"
        begin(
            OperationChange(record: record, usesIDs: true), request: request,
            "evens out the cluster in \(steps(plan.steps.count))\(plan.isCut ? " or more" : ""), "
                + "\(quantity(plan.bytes)) to copy; \(describe(plan.before))", now: now,
            into: &effects)
    }

    /// Takes the next step when the last one has ended.
    mutating func pumpRebalance(
        _ status: OperationStatus, now: Instant, into effects: inout ControllerEffects
    ) {
        let record = status.record
        let parts = operations.elements.filter { $0.record.parent == record.id }
        guard parts.allSatisfy(\.record.isFinished) else {
            operations.update(record.id) { status in
                status.reached = max(status.reached, UInt64(parts.count))
                status.reachedAt = now
                status.note = ""
            }
            return
        }
        let done = parts.count { $0.record.step == .done }
        if record.isCancelled {
            return finish(
                OperationChange(record: record), as: .cancelled,
                "stopped by the operator after \(steps(done)), which stay; \(record.outcome); now: "
                    + describe(balance), now: now, into: &effects)
        }
        guard !record.isPaused, now >= status.sendAgainAt else { return }
        operations.update(record.id) { $0.sendAgainAt = now + settings.commandTimeout }
        if let obstacle = obstacleToRebalance() {
            return note(obstacle, of: record.id)
        }
        var limits = RebalanceLimits(since: record.startedAt)
        for part in parts {
            if part.record.kind == .transfer { limits.leaders.append(part.record.group) }
            if let work = part.record.work { limits.shards.append(work.moving) }
            // What could not be done is not tried again.
            if part.record.kind == .replaceReplica, part.record.step != .done {
                limits.groups.append(part.record.group)
            }
        }
        let isSettled =
            parts.isEmpty && now - actingSince >= Self.settlingTime
            || now - status.reachedAt >= Self.settlingTime
        guard let step = nextStep(limits, withLoad: isSettled, now: now) else {
            guard isSettled else {
                return note("waits for new figures of load", of: record.id)
            }
            return finish(
                OperationChange(record: record), as: .done,
                "\(steps(done)), none more is a gain; \(record.outcome); now: \(describe(balance))",
                now: now, into: &effects)
        }
        let left = forecastRebalance(limits, now: now).steps.count
        operations.update(record.id) { status in
            // Of all steps, so that it says between two of them how many are left.
            status.reached = UInt64(parts.count + left)
            status.note = ""
        }
        take(step, for: record, now: now, into: &effects)
    }

    private mutating func take(
        _ step: RebalanceStep, for parent: OperationRecord, now: Instant,
        into effects: inout ControllerEffects
    ) {
        let part = "part of operation \(parent.id): "
        switch step {
        case .replica(let plan, let reason):
            start(
                plan, origin: parent.origin, reason: part + reason, parent: parent.id, now: now,
                into: &effects)
        case .shard(let plan, let reason):
            start(
                plan, origin: parent.origin, reason: part + reason, parent: parent.id, now: now,
                into: &effects)
        case .leader(let group, let from, let to, let reason):
            let record = OperationRecord(
                id: IDAllocators.take(&nextOperation), kind: .transfer, step: .moving,
                origin: parent.origin, reason: part + reason, parent: parent.id, group: group,
                old: from, new: to)
            begin(
                OperationChange(record: record, usesIDs: true), request: nil,
                "moves the leader of group \(group) from \(name(from.node)) to \(name(to.node))",
                now: now, into: &effects)
        }
    }
}
