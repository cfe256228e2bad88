// The plan of evening out the cluster.

import ControllerCore
import KVBase
import ShardCore

extension ClusterViews {
    func document(_ plan: RebalancePlan) -> PlanDocument {
        var basis = PlanBasis(cluster: hex(controller.cluster))
        for group in controller.groups.elements {
            let isAboutLeader = plan.steps.contains { step in
                guard case .leader(group.record.id, _, _, _) = step else { return false }
                return true
            }
            basis.groups.append(state(group, withLeader: isAboutLeader))
        }
        var steps: [String] = []
        for step in plan.steps {
            switch step {
            case .replica(let replacement, let reason):
                basis.places.append(
                    PlanBasis.Place(
                        group: replacement.group.rawValue, node: nodeName(replacement.node),
                        disk: replacement.disk))
                steps.append(
                    "the replica of group \(replacement.group) on "
                        + "\(nodeName(replacement.old.node)) moves to "
                        + "\(nodeName(replacement.node)): \(reason)")
            case .shard(let move, let reason):
                if let state = state(move.shard) { basis.shards.append(state) }
                steps.append(
                    "shard \(move.work.moving) of \(move.table.name) moves from group "
                        + "\(move.work.source) to group \(move.work.target): \(reason)")
            case .leader(let group, let from, let to, let reason):
                steps.append(
                    "the leader of group \(group) moves from \(nodeName(from.node)) to "
                        + "\(nodeName(to.node)): \(reason)")
            }
        }
        if plan.isCut { steps.append("and more") }
        return PlanDocument(
            request: PlanRequest(
                plan: PlanDocument.version, verb: "rebalance",
                arguments: AdminRequest.Arguments(), basis: basis),
            madeAt: wallClock,
            summary: "evens out the cluster in \(count(plan.steps.count, "step"))"
                + (plan.isCut ? " or more" : ""),
            grounds: "after each step the next one is chosen anew, by what is reported then",
            steps: steps,
            pause: "some 10 ms for a group whose leader moves, under 50 ms for the keys of a shard "
                + "that moves",
            bytes: plan.bytes, seconds: seconds(plan), groups: groups(plan), nodes: nodes(plan),
            skipped: [])
    }

    private func seconds(_ plan: RebalancePlan) -> UInt64? {
        var total: UInt64 = 0
        for step in plan.steps {
            var part: UInt64? = 0
            switch step {
            case .replica(let replacement, _):
                part = controller.secondsToCopy(replicaBytes: replacement.bytes)
            case .shard(let move, _):
                part = move.bytes.flatMap { controller.secondsToCopy(shardBytes: $0) }
            case .leader: break
            }
            guard let part else { return nil }
            total += part
        }
        return total
    }

    private func groups(_ plan: RebalancePlan) -> [ForecastView] {
        func figures(_ group: GroupForecast) -> ForecastView.Figures {
            ForecastView.Figures(
                operations: group.operations, bytes: group.bytes, shards: group.shards)
        }
        return zip(plan.before.groups, plan.after.groups).map { before, after in
            ForecastView(
                group: before.group.rawValue, before: figures(before), after: figures(after))
        }
    }

    private func nodes(_ plan: RebalancePlan) -> [ForecastView] {
        func figures(_ node: NodeBalance) -> ForecastView.Figures {
            ForecastView.Figures(
                operations: node.operations, bytes: node.bytes, replicas: node.replicas,
                leaders: node.leaders)
        }
        return plan.before.nodes.map { before in
            let after = plan.after.nodes.first { $0.node == before.node }
            return ForecastView(
                node: nodeName(before.node), before: figures(before),
                after: figures(after ?? before))
        }
    }
}
