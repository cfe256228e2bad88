// What requests would do, and what that rests on.

import ControllerCore
import KVBase
import ShardCore

extension ClusterViews {
    /// The plan of a request, or why it is refused. Changes nothing.
    ///
    /// - Precondition: a request of a kind that has plans.
    func plan(_ request: OperationRequest) throws(DatabaseError) -> PlanDocument {
        switch request {
        case .replace(let node, let group?, let with):
            let plan = try controller.planReplacement(of: node, in: group, with: with, now: now)
            var arguments = AdminRequest.Arguments()
            arguments.node = node
            arguments.group = group.rawValue
            arguments.with = nodeName(plan.node)
            return document(
                "replace", arguments, [plan],
                "replaces the replica of group \(group) on \(node) by one on "
                    + nodeName(plan.node))
        case .replace(let node, nil, let with):
            let plans = try controller.planReplacements(of: node, with: with, now: now)
            var arguments = AdminRequest.Arguments()
            arguments.node = node
            arguments.with = with
            return document(
                "replace", arguments, plans,
                "replaces \(node) in \(count(plans.count, "group"))")
        case .addReplica(let group, let node):
            let plan = try controller.planAddition(to: group, on: node, now: now)
            var arguments = AdminRequest.Arguments()
            arguments.group = group.rawValue
            arguments.node = nodeName(plan.node)
            let known = controller.groups[group]
            return document(
                "replica.add", arguments, [plan],
                "adds a replica on \(nodeName(plan.node)) to group \(group), which has "
                    + "\(known?.record.placements.count ?? 0) of \(known?.wanted ?? 0)")
        case .drain(let node):
            let plans = try controller.planDrain(of: node, now: now)
            var arguments = AdminRequest.Arguments()
            arguments.node = node
            return document(
                "drain", arguments, plans,
                "moves the replicas of \(count(plans.count, "group")) off \(node) and gives it none"
            )
        case .transfer(let group, let node):
            return try planTransfer(of: group, to: node)
        case .rebalance: return document(try controller.planRebalance(now: now))
        case .split(let split):
            return document(try controller.plan(split: split, now: now))
        case .move(let shard, let target):
            return document(try controller.plan(moveOf: shard, to: target, now: now))
        case .merge(let shard): return document(try controller.plan(mergeOf: shard, now: now))
        default: preconditionFailure("no plan for \(request)")
        }
    }

    /// The records that `basis` names, as they are now.
    func current(_ basis: PlanBasis) -> PlanBasis {
        let shards = basis.shards.compactMap { controller.shards[ShardID($0.id)] }
        let groups = basis.groups.compactMap { group in
            controller.groups[GroupID(group.id)].map { (status: $0, isLed: group.leader != nil) }
        }
        return PlanBasis(
            cluster: hex(controller.cluster), shards: shards.compactMap(state),
            groups: groups.map { state($0.status, withLeader: $0.isLed) })
    }

    // MARK: Replicas

    private func document(
        _ verb: String, _ arguments: AdminRequest.Arguments, _ plans: [Replacement],
        _ summary: String
    ) -> PlanDocument {
        var basis = PlanBasis(cluster: hex(controller.cluster))
        var steps: [String] = []
        var isLeader = false
        var nodes = SortedRecords<NodeID, ForecastView>()
        for plan in plans {
            guard let group = controller.groups[plan.group] else { continue }
            basis.groups.append(state(group, withLeader: false))
            basis.places.append(
                PlanBasis.Place(
                    group: plan.group.rawValue, node: nodeName(plan.node), disk: plan.disk))
            steps.append(
                "group \(plan.group): a new replica on \(nodeName(plan.node)) catches up, then "
                    + (plan.isAddition
                        ? "votes with the others"
                        : "takes the place of the one on \(nodeName(plan.old.node))"))
            let concerned = plan.isAddition ? [plan.node] : [plan.old.node, plan.node]
            for node in concerned where nodes[node] == nil {
                let figures = self.figures(of: node)
                nodes.set(
                    ForecastView(node: nodeName(node), before: figures, after: figures), for: node)
            }
            nodes.update(plan.node) { $0.after.bytes? += plan.bytes }
            nodes.update(plan.old.node) { forecast in
                forecast.after.bytes = forecast.after.bytes.map { $0 - min(plan.bytes, $0) }
            }
            if group.leader.node == plan.old.node {
                isLeader = true
                let load = controller.groupLoads[plan.group]?.operations ?? 0
                nodes.update(plan.old.node) { forecast in
                    forecast.after.operations = forecast.after.operations.map {
                        $0 - min(load, $0)
                    }
                }
            }
        }
        if plans.contains(where: { !$0.isAddition }) {
            steps.append("the old replicas are deleted")
        }
        let bytes = plans.reduce(0) { $0 + $1.bytes }
        return PlanDocument(
            request: PlanRequest(
                plan: PlanDocument.version, verb: verb, arguments: arguments, basis: basis),
            madeAt: wallClock, summary: summary, steps: steps,
            pause: isLeader
                ? "some 10 ms where the leader gives its place; another of the group's nodes leads"
                : "none",
            bytes: bytes, seconds: controller.secondsToCopy(replicaBytes: bytes),
            replacements: replacements(plans),
            groups: [], nodes: Array(nodes.elements), skipped: [])
    }

    private func replacements(_ plans: [Replacement]) -> [ReplacementView] {
        plans.map { plan in
            ReplacementView(
                group: plan.group.rawValue,
                from: plan.isAddition ? nil : nodeName(plan.old.node), to: nodeName(plan.node),
                disk: plan.disk, bytes: plan.bytes, freeBytes: plan.freeBytes,
                skipped: plan.skipped.map {
                    SkippedView(node: nodeName($0.node), reason: $0.reason)
                })
        }
    }

    private func planTransfer(
        of id: GroupID, to node: String
    ) throws(DatabaseError) -> PlanDocument {
        let (leader, next) = try controller.planTransfer(of: id, to: node)
        var arguments = AdminRequest.Arguments()
        arguments.group = id.rawValue
        arguments.node = node
        var basis = PlanBasis(cluster: hex(controller.cluster))
        if let group = controller.groups[id] {
            basis.groups.append(state(group, withLeader: true))
        }
        let load = controller.groupLoads[id]?.operations ?? 0
        var nodes = [leader.node, next.node].map { node in
            let figures = figures(of: node)
            return ForecastView(node: nodeName(node), before: figures, after: figures)
        }
        if leader.node != next.node {
            nodes[0].after.operations = nodes[0].after.operations.map { $0 - min(load, $0) }
            nodes[1].after.operations? += load
        }
        return PlanDocument(
            request: PlanRequest(
                plan: PlanDocument.version, verb: "transfer", arguments: arguments, basis: basis),
            madeAt: wallClock,
            summary: "moves the leader of group \(id) from \(nodeName(leader.node)) to \(node)",
            steps: ["\(nodeName(leader.node)) hands the leadership over once \(node) has its log"],
            pause: "some 10 ms", bytes: 0, seconds: 0, groups: [], nodes: nodes, skipped: [])
    }

    // MARK: Records

    /// Bytes of the groups with a replica there, and requests to those that it leads.
    private func figures(of node: NodeID) -> ForecastView.Figures {
        var figures = ForecastView.Figures(operations: 0, bytes: 0)
        for group in controller.groups.elements {
            if group.record.placements.contains(where: { $0.node == node }) {
                figures.bytes? += controller.bytes(of: group.record.id)
            }
            if group.leader.node == node {
                figures.operations? += controller.groupLoads[group.record.id]?.operations ?? 0
            }
        }
        return figures
    }

    func state(_ shard: Shard) -> PlanBasis.ShardState? {
        guard let table = controller.tables[shard.table] else { return nil }
        return PlanBasis.ShardState(
            id: shard.id.rawValue, table: table.name,
            start: KeyText.bound(shard.range.start, of: table.partitioning),
            end: shard.range.end.map { KeyText.bound($0, of: table.partitioning) },
            group: shard.group.rawValue, epoch: shard.epoch.rawValue, state: "\(shard.state)")
    }

    func state(_ group: GroupStatus, withLeader: Bool) -> PlanBasis.GroupState {
        PlanBasis.GroupState(
            id: group.record.id.rawValue,
            nodes: group.record.placements.map { nodeName($0.node) }.sorted(),
            leader: withLeader && group.hasLeader ? nodeName(group.leader.node) : nil)
    }

    func count(_ count: Int, _ noun: String) -> String {
        "\(count) \(noun)\(count == 1 ? "" : "s")"
    }
}
