// The frame of the rules: when they look, what they must leave alone, how they act or propose.

import KVBase
import ShardCore

extension Controller {
    /// Refusals that are remembered, so that each is noted once a minute only.
    private static let refusalsMax = 1_024
    /// A load report older than this says nothing any more; nodes send one about once a second.
    private static let loadAgeMax = Nanoseconds.seconds(5)

    /// Keys that take most of their shard's requests, of groups above their rating.
    public var hotKeys: [HotKey] { rules.hotKeys }

    /// One look of every rule, once a second. What it costs hangs on what is hot, large or proposed,
    /// not on the number of shards; a plan that is made walks over all shards once or twice.
    mutating func applyRules(now: Instant, into effects: inout ControllerEffects) {
        guard now >= rules.checkAt else { return }
        rules.checkAt = now + settings.commandTimeout
        rules.refusals.removeAll { now - $0.at >= .seconds(60) }
        keepMaintenance(now: now, into: &effects)
        withdrawProposals(now: now, into: &effects)
        relieveHotGroups(now: now, into: &effects)
        splitLargeShards(now: now, into: &effects)
        joinColdShards(now: now, into: &effects)
        rebalance(now: now, into: &effects)
        dissolveEmptyGroups(now: now, into: &effects)
    }

    // MARK: Acting

    /// Does what a rule has planned, or proposes it, as its mode says.
    mutating func act(
        _ rule: RuleName, _ plan: ShardPlan, because reason: String, now: Instant,
        into effects: inout ControllerEffects
    ) {
        start(
            plan, origin: rule.rawValue, reason: reason, isProposal: mode(of: rule) == .propose,
            now: now, into: &effects)
    }

    /// Whether rules may start another operation on shards; proposals cost nothing.
    func hasRoomToAct(_ rule: RuleName) -> Bool {
        if mode(of: rule) == .propose { return true }
        return runningShardOperations.count < runtime[.movesMax]
    }

    /// Operations on shards, those that are only proposed left out.
    var runningShardOperations: [OperationStatus] {
        openOperations.filter { $0.record.work != nil && $0.record.step != .proposed }
    }

    /// Whether shards of the group are being worked on, or its members.
    func isBusy(_ id: GroupID) -> Bool {
        operation(on: id) != nil
            || runningShardOperations.contains {
                $0.record.work?.source == id || $0.record.work?.target == id
            }
    }

    func isProposed(_ rule: RuleName, where matches: (OperationRecord) -> Bool) -> Bool {
        openOperations.contains {
            $0.record.step == .proposed && $0.record.origin == rule.rawValue && matches($0.record)
        }
    }

    // MARK: Refusals

    func isRefused(_ rule: RuleName, _ subject: RuleState.Subject) -> Bool {
        rules.refusals.contains { $0.rule == rule && $0.subject == subject }
    }

    /// Notes in the decision log why a rule does nothing. It is looked at again after a minute,
    /// because what it says is the same but for its numbers.
    mutating func refuse(
        _ rule: RuleName, _ subject: RuleState.Subject, _ text: String, now: Instant,
        into effects: inout ControllerEffects
    ) {
        guard rules.refusals.count < Self.refusalsMax, !isRefused(rule, subject) else { return }
        rules.refusals.append(RuleState.Refusal(rule: rule, subject: subject, at: now))
        var group = GroupID.none
        var shard = ShardID.none
        var nodes: [NodeID] = []
        switch subject {
        case .group(let id): group = id
        case .shard(let id):
            shard = id
            group = shards[id]?.group ?? .none
        case .node(let id): nodes = [id]
        case .cluster: break
        }
        decide(
            "\(rule.rawValue) does nothing: \(text)", nodes: nodes, group: group, shard: shard,
            now: now, into: &effects)
    }

    /// The operation for which a rule leaves something alone, because an operator stopped it.
    func stopped(
        _ rule: RuleName, now: Instant, where matches: (OperationRecord) -> Bool
    ) -> OperationID? {
        let hold = runtime.time(.holdAfterCancel)
        return operations.elements.last {
            $0.record.isFinished && $0.record.isStopped && $0.record.origin == rule.rawValue
                && matches($0.record) && age($0, now: now) < hold
        }?.record.id
    }

    /// Time since an operation ended.
    func age(_ status: OperationStatus, now: Instant) -> Nanoseconds {
        let ended = status.record.endedAt
        let passed = wallClock(now)
        guard ended != 0, passed >= ended else { return now - status.reachedAt }
        return .milliseconds(passed - ended)
    }

    // MARK: Load

    /// Since when groups are above their rating. A change of leader begins anew.
    mutating func note(_ load: LoadReport, of node: NodeID, now: Instant) {
        rules.loadedAt.set(now, for: node)
        for report in load.groups where groups[report.group]?.leader.node == node {
            if report.operations <= runtime[.splitRate] {
                rules.hot.remove(report.group)
            } else if rules.hot[report.group] == nil {
                rules.hot.set(
                    RuleState.HotGroup(group: report.group, since: now), for: report.group)
            }
        }
    }

    /// Requests per second of a group; nil when its leader has not told lately.
    func rate(of group: GroupID, now: Instant) -> UInt64? {
        guard let leader = serving(group), let at = rules.loadedAt[leader],
            now - at <= Self.loadAgeMax
        else { return nil }
        return groupLoads[group]?.operations ?? 0
    }

    /// The shards of a group that its leader named, busiest first. Empty when the report is old.
    func reportedShards(of group: GroupID, now: Instant) -> [(load: ShardLoad, shard: Shard)] {
        guard rate(of: group, now: now) != nil, let leader = serving(group) else { return [] }
        return (loadedShards[leader] ?? []).compactMap { id in
            guard let load = shardLoads[id], let shard = shards[id], shard.group == group,
                shard.epoch == load.epoch
            else { return nil }
            return (load, shard)
        }
    }

    // MARK: Words

    /// `5,210`.
    static func counted(_ number: UInt64) -> String {
        let digits = Array("\(number)")
        var text = ""
        for (index, digit) in digits.enumerated() {
            if index > 0, (digits.count - index) % 3 == 0 { text.append(",") }
            text.append(digit)
        }
        return text
    }

    func title(of shard: Shard) -> String {
        "shard \(shard.id) of table \(tables[shard.table]?.name ?? "\(shard.table)")"
    }
}
