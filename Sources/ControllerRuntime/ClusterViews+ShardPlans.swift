// Plans of operations on shards.

import ControllerCore
import KVBase
import ShardCore

extension ClusterViews {
    func document(_ plan: ShardPlan) -> PlanDocument {
        var basis = PlanBasis(cluster: hex(controller.cluster))
        basis.shards = [plan.shard, plan.neighbour].compactMap { $0 }.compactMap(state)
        for id in [plan.work.source, plan.work.target] {
            guard let group = controller.groups[id],
                !basis.groups.contains(where: { $0.id == id.rawValue })
            else { continue }
            basis.groups.append(state(group, withLeader: false))
        }
        basis.places = plan.formsOn.map {
            PlanBasis.Place(node: nodeName($0.node), disk: $0.disk)
        }
        return PlanDocument(
            request: PlanRequest(
                plan: PlanDocument.version, verb: "\(plan.kind)", arguments: arguments(plan),
                basis: basis),
            madeAt: wallClock, summary: summary(plan),
            grounds: plan.grounds.isEmpty ? nil : plan.grounds, steps: steps(plan),
            pause: plan.moves
                ? "under 50 ms at the hand-over, for requests to the keys that move" : "none",
            bytes: plan.bytes, records: plan.records,
            seconds: plan.bytes.flatMap { controller.secondsToCopy(shardBytes: $0) },
            groups: forecasts(plan.groupsBefore, plan.groupsAfter, plan),
            nodes: forecasts(plan.nodesBefore, plan.nodesAfter, plan),
            skipped: plan.skipped.map {
                SkippedView(group: $0.group.rawValue, reason: $0.reason)
            })
    }

    /// The request with everything chosen.
    private func arguments(_ plan: ShardPlan) -> AdminRequest.Arguments {
        var arguments = AdminRequest.Arguments()
        arguments.shard = plan.work.shard.rawValue
        if plan.kind == .split {
            arguments.table = plan.table.name
            arguments.at = plan.work.cut.map { KeyText.bound($0, of: plan.table.partitioning) }
        }
        if plan.kind != .merge {
            arguments.to =
                !plan.moves ? "none" : plan.formsOn.isEmpty ? "\(plan.work.target)" : "new"
        }
        return arguments
    }

    private func summary(_ plan: ShardPlan) -> String {
        let work = plan.work
        let shard = "shard \(work.shard) of \(plan.table.name)"
        let target = plan.formsOn.isEmpty ? "group \(work.target)" : "a new group"
        switch plan.kind {
        case .split:
            let key = work.cut.map { KeyText.bound($0, of: plan.table.partitioning) } ?? ""
            let half = plan.movesUpper ? "upper" : "lower"
            return "cuts \(shard) at \(key)"
                + (plan.moves
                    ? " and moves the \(half) half from group \(work.source) to \(target)"
                    : "; both halves stay in group \(work.source)")
        case .merge:
            return "joins \(shard) with its right neighbour, shard \(work.neighbour)"
                + (plan.moves ? ", which moves from group \(work.source) to \(target) first" : "")
        default: return "moves \(shard) from group \(work.source) to \(target)"
        }
    }

    private func steps(_ plan: ShardPlan) -> [String] {
        let work = plan.work
        var steps: [String] = []
        if !plan.formsOn.isEmpty {
            let nodes = plan.formsOn.map { nodeName($0.node) }.joined(separator: ", ")
            steps.append("a group is formed on \(nodes)")
        }
        if work.cut != nil {
            steps.append("group \(plan.shard.group) cuts the shard; no record moves")
        }
        if plan.moves {
            let target = plan.formsOn.isEmpty ? "group \(work.target)" : "the new group"
            steps += [
                "group \(work.source) hands reads and writes over to \(target)",
                "the records are copied; reads ask both groups meanwhile",
                "the replicas of \(target) compare what they hold",
                "group \(work.source) deletes its copy",
            ]
        }
        if plan.kind == .merge { steps.append("group \(plan.shard.group) joins the two shards") }
        return steps
    }

    /// After a move of what is not known, nothing is known of those that take part.
    private func figures(
        after plan: ShardPlan, operations: UInt64, bytes: UInt64, shards: Int? = nil
    ) -> ForecastView.Figures {
        ForecastView.Figures(
            operations: plan.operations == nil ? nil : operations,
            bytes: plan.bytes == nil ? nil : bytes, shards: shards)
    }

    private func forecasts(
        _ before: [GroupForecast], _ after: [GroupForecast], _ plan: ShardPlan
    ) -> [ForecastView] {
        let groups = Set(before.map(\.group)).union(after.map(\.group)).sorted()
        // The group to be formed has no number yet, and comes last.
        return (groups.filter { $0 != .none } + groups.filter { $0 == .none }).map { id in
            let (now, then) = (before.first { $0.group == id }, after.first { $0.group == id })
            return ForecastView(
                group: id == .none ? nil : id.rawValue,
                before: ForecastView.Figures(
                    operations: now?.operations ?? 0, bytes: now?.bytes ?? 0,
                    shards: now?.shards ?? 0),
                after: figures(
                    after: plan, operations: then?.operations ?? 0, bytes: then?.bytes ?? 0,
                    shards: then?.shards ?? 0))
        }
    }

    private func forecasts(
        _ before: [NodeForecast], _ after: [NodeForecast], _ plan: ShardPlan
    ) -> [ForecastView] {
        Set(before.map(\.node)).union(after.map(\.node)).sorted().map { id in
            let (now, then) = (before.first { $0.node == id }, after.first { $0.node == id })
            return ForecastView(
                node: nodeName(id),
                before: ForecastView.Figures(
                    operations: now?.operations ?? 0, bytes: now?.bytes ?? 0),
                after: figures(
                    after: plan, operations: then?.operations ?? 0, bytes: then?.bytes ?? 0))
        }
    }
}
