// Operations on all replicas of a node, and the rule that repairs groups after a node is gone.

import KVBase
import ShardCore

extension Controller {
    // MARK: Requests

    /// What `replace NODE` would do to each group of the node, or why it is refused.
    public func planReplacements(
        of name: String, with wanted: String?, now: Instant
    ) throws(DatabaseError) -> [Replacement] {
        let node = try find(node: name)
        if let wanted {
            let spare = try find(node: wanted)
            guard spare.record.isSpare || spare.groups.isEmpty else {
                let free = nodes.elements.filter { $0.record.isSpare && $0.isLive }
                throw DatabaseError(
                    .refused,
                    "\(wanted) is in use: it holds \(plural(spare.groups.count, "replica")); "
                        + (free.isEmpty
                            ? "there is no live spare: start a node with spare = true"
                            : "live spares: "
                                + free.map(\.record.name).joined(separator: ", ")))
            }
        }
        try checkUnoccupied(node)
        guard !node.groups.isEmpty else {
            throw DatabaseError(.refused, "\(name) holds no replica: there is nothing to replace")
        }
        var plans: [Replacement] = []
        for group in node.groups {
            plans.append(try planReplacement(of: name, in: group, with: wanted, now: now))
        }
        return plans
    }

    func checkUnoccupied(_ node: NodeStatus) throws(DatabaseError) {
        let running = openOperations.first {
            ($0.record.kind == .drain || $0.record.kind == .replaceNode)
                && $0.record.old.node == node.record.id
        }
        guard let running else { return }
        throw DatabaseError(
            .refused,
            "operation \(running.record.id) moves the replicas of \(node.record.name); stop it "
                + "with: kvctl ops cancel \(running.record.id)")
    }

    mutating func replaceNode(
        _ name: String, with wanted: String?, _ request: RequestID, now: Instant,
        into effects: inout ControllerEffects
    ) throws(DatabaseError) {
        let plans = try planReplacements(of: name, with: wanted, now: now)
        let node = try find(node: name)
        let target = wanted.flatMap { try? find(node: $0).record.id } ?? .none
        beginNode(.replaceNode, node.record.id, with: target, request, plans.map(\.group), &effects)
    }

    /// What `drain NODE` would do to each group of the node, or why it is refused.
    public func planDrain(of name: String, now: Instant) throws(DatabaseError) -> [Replacement] {
        let node = try find(node: name)
        try checkUnoccupied(node)
        guard !node.groups.isEmpty else {
            throw DatabaseError(
                .refused,
                "\(name) holds no replica: there is nothing to drain; so that it gets none: kvctl node "
                    + "weight \(name) 0; to forget it once it is stopped: kvctl node remove \(name)"
            )
        }
        for group in node.groups {
            try checkFree(group)
            try checkMajority(of: find(group: group))
        }
        var plans: [Replacement] = []
        for group in node.groups {
            guard let status = groups[group],
                let index = status.placementIndex(node: node.record.id)
            else { continue }
            let choice = choose(
                group, replacing: status.record.placements[index], prefersSpares: false, now: now)
            switch choice {
            case .failure(let error): throw error
            case .success(let plan): plans.append(plan)
            }
        }
        return plans
    }

    mutating func drain(
        _ name: String, _ request: RequestID, now: Instant, into effects: inout ControllerEffects
    ) throws(DatabaseError) {
        _ = try planDrain(of: name, now: now)
        let node = try find(node: name)
        beginNode(.drain, node.record.id, with: .none, request, node.groups, &effects)
    }

    private mutating func beginNode(
        _ kind: OperationRecord.Kind, _ node: NodeID, with target: NodeID, _ request: RequestID,
        _ groups: [GroupID], _ effects: inout ControllerEffects
    ) {
        let record = OperationRecord(
            id: IDAllocators.take(&nextOperation), kind: kind, step: .moving, group: .none,
            old: Placement(replica: .none, node: node, disk: 0),
            new: Placement(replica: .none, node: target, disk: 0))
        let list = groups.map { "\($0)" }.joined(separator: ", ")
        begin(
            OperationChange(record: record, held: node, usesIDs: true), request: request,
            (kind == .drain ? "drains " : "replaces ") + name(node) + ": groups \(list)",
            now: stepTime, into: &effects)
    }

    mutating func endDrain(
        _ name: String, _ request: RequestID, now: Instant, into effects: inout ControllerEffects
    ) throws(DatabaseError) {
        let node = try find(node: name)
        try checkUnoccupied(node)
        guard node.isHeld else {
            throw DatabaseError(.refused, "\(name) is not drained: it may hold replicas already")
        }
        let id = node.record.id
        let last = operations.elements.last {
            ($0.record.kind == .drain || $0.record.kind == .replaceNode)
                && $0.record.old.node == id
        }
        var transaction = MetadataTransaction()
        transaction.changes.append(.delete(key: StoreKey.held(id)))
        decide(
            "\(name) may hold replicas again: \(OperationRecord.operatorReason)", nodes: [id],
            now: now,
            into: &effects)
        store(
            transaction,
            then: .released(id, request, last?.record.id ?? .none), into: &effects)
    }

    // MARK: Driving

    /// Starts the next part when the last one has ended.
    mutating func pumpNode(
        _ status: OperationStatus, now: Instant, into effects: inout ControllerEffects
    ) {
        let record = status.record
        let parts = openOperations.filter { $0.record.parent == record.id }
        guard parts.isEmpty, let node = nodes[record.old.node] else { return }
        if record.isCancelled {
            return finish(
                OperationChange(record: record), as: .cancelled,
                "stopped by the operator with \(plural(node.groups.count, "replica")) left",
                now: now,
                into: &effects)
        }
        guard !record.isPaused else { return }
        guard !node.groups.isEmpty else {
            return finish(
                OperationChange(record: record), as: .done,
                "\(node.record.name) holds no replica any more", now: now, into: &effects)
        }
        guard now >= status.sendAgainAt else { return }
        operations.update(record.id) { $0.sendAgainAt = now + settings.commandTimeout }
        var obstacle = ""
        for group in node.groups {
            guard operation(on: group) == nil, let known = groups[group],
                let index = known.placementIndex(node: record.old.node)
            else {
                obstacle = "another operation works on group \(group)"
                continue
            }
            guard known.hasLeader, known.isServing else {
                obstacle = "group \(group) has no serving leader"
                continue
            }
            switch choose(
                group, replacing: known.record.placements[index], with: record.new.node,
                prefersSpares: record.kind == .replaceNode, now: now)
            {
            case .failure(let error): obstacle = error.message
            case .success(let plan):
                operations.update(record.id) { $0.note = "" }
                return start(
                    plan, origin: record.origin, reason: "part of operation \(record.id)",
                    parent: record.id, now: now, into: &effects)
            }
        }
        operations.update(record.id) { $0.note = obstacle }
    }

    // MARK: Repair

    /// A replica that is lost, or one that a group never had.
    private struct Loss {
        var group: GroupID
        /// Where the replica is; nothing for one that is to be added.
        var old: Placement
        var reason: String
    }

    /// Replaces the replicas of nodes that stay down and of disks that failed, and those that lag, and adds those that
    /// groups lack, one at a time per node that takes one.
    mutating func repair(now: Instant, into effects: inout ControllerEffects) {
        guard mode(of: .repair) != .off, now >= repairCheckAt else { return }
        repairCheckAt = now + settings.commandTimeout
        let lost = losses(now: now)
        guard !lost.isEmpty else { return }
        // Each look goes on where the last one ended, so that no group waits behind hopeless ones.
        let start = lost.firstIndex { $0.group > repairCursor } ?? 0
        for loss in (lost[start...] + lost[..<start]).prefix(settings.repairLooksMax) {
            repairCursor = loss.group
            repair(loss, now: now, into: &effects)
        }
    }

    /// In order of groups; in each what is lost comes before what was never there.
    private func losses(now: Instant) -> [Loss] {
        var lost: [Loss] = []
        func lose(_ group: GroupID, on node: NodeStatus, _ reason: String) {
            guard operation(on: group) == nil, let status = groups[group],
                let index = status.placementIndex(node: node.record.id)
            else { return }
            lost.append(
                Loss(group: group, old: status.record.placements[index], reason: reason))
        }
        for node in nodes.elements where !node.groups.isEmpty && !node.isInMaintenance {
            for (group, reason) in incurable(on: node, now: now) {
                lose(group, on: node, reason)
            }
            let since = node.health == .down ? node.downSince : node.diskFailedSince
            guard let since, now - since >= runtime.time(.repairAfter) else { continue }
            let silence = (now - node.lastHeard).count / 1_000_000_000
            for group in node.groups {
                if node.health == .down {
                    lose(group, on: node, "\(node.record.name) is silent for \(silence) s")
                } else if let status = groups[group],
                    let index = status.placementIndex(node: node.record.id),
                    status.reports[index]?.state == .failed
                {
                    lose(group, on: node, "its disk on \(node.record.name) failed")
                }
            }
        }
        for lag in lagging where !rules.burdened.contains(lag.group) {
            guard let node = nodes[lag.node], node.isLive, !node.isInMaintenance else { continue }
            lose(lag.group, on: node, "its replica on \(node.record.name) is \(lag.reason)")
        }
        lost.sort { ($0.group, $0.old.node) < ($1.group, $1.old.node) }
        var additions: [Loss] = []
        for group in groups.elements
        where group.lacking > 0 && operation(on: group.record.id) == nil {
            let count = group.record.placements.count
            additions.append(
                Loss(
                    group: group.record.id, old: .nowhere,
                    reason: "group \(group.record.id) has \(count) of \(group.wanted) replicas"))
        }
        guard !additions.isEmpty else { return lost }
        return (lost + additions).enumerated()
            .sorted { ($0.element.group, $0.offset) < ($1.element.group, $1.offset) }
            .map(\.element)
    }

    private mutating func repair(
        _ loss: Loss, now: Instant, into effects: inout ControllerEffects
    ) {
        let id = loss.group
        let open = openOperations.filter {
            $0.record.kind.bringsReplica && $0.record.step != .proposed
        }
        guard open.count < runtime[.replacementsMax], operation(on: id) == nil,
            let group = groups[id], group.record.state == .active, group.hasLeader,
            group.isServing,
            nodes[loss.old.node].map({ (try? checkUnoccupied($0)) != nil }) ?? true,
            stopped(.repair, now: now, where: { $0.group == id }) == nil
        else { return }
        let choice = choose(
            id, replacing: loss.old, prefersSpares: loss.old != .nowhere, now: now)
        switch choice {
        case .success(let plan):
            if mode(of: .repair) == .propose {
                guard !isProposed(.repair, where: { $0.group == id && $0.old == plan.old }) else {
                    return
                }
                return propose(
                    plan, origin: "repair", reason: loss.reason, now: now, into: &effects)
            }
            guard !open.contains(where: { $0.record.new.node == plan.node }) else { return }
            start(plan, origin: "repair", reason: loss.reason, now: now, into: &effects)
        case .failure(let error):
            // Once a minute: what it says is the same, but for its numbers.
            if let last = repairRefusedAt[id], now - last < .seconds(60) { return }
            repairRefusedAt[id] = now
            decide(
                "repair of group \(id): \(error.message)",
                nodes: [loss.old.node].filter { $0 != .none }, group: id, now: now,
                into: &effects)
        }
    }
}
