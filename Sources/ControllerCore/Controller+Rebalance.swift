// The rule that evens things out when nothing else is to be done: replicas over nodes by weight, then
// requests and bytes over groups. One step at a time; each must be a clear gain, and what it leaves
// behind is no ground for the step back. (The balance of leaders is in Controller+Leadership.swift.)

import KVBase
import ShardCore

extension Controller {
    private static let rebalanceInterval = Nanoseconds.seconds(10)
    /// Bytes are looked at rarely: that walks over all shards.
    private static let bytesInterval = Nanoseconds.seconds(600)
    /// Nodes tried on either side, and groups of one pair.
    private static let triesMax = 8

    mutating func rebalance(now: Instant, into effects: inout ControllerEffects) {
        guard mode(of: .rebalance) != .off, now >= rules.rebalanceAt else { return }
        rules.rebalanceAt = now + Self.rebalanceInterval
        guard isQuiet(now: now) else {
            rules.unevenSince = nil
            return
        }
        guard !moveReplica(now: now, into: &effects) else { return }
        guard !moveForLoad(now: now, into: &effects) else { return }
        moveForBytes(now: now, into: &effects)
    }

    /// Nothing has happened for a while, nothing is under way, and nothing is amiss.
    private func isQuiet(now: Instant) -> Bool {
        let proposals = openOperations.filter { $0.record.step == .proposed }
        return now - lastUnrest >= runtime.time(.rebalanceQuiet)
            && openOperations.count == proposals.count
            && !proposals.contains { $0.record.origin == RuleName.rebalance.rawValue }
            && obstacleToRebalance() == nil
    }

    /// What is amiss, so that evening out has to wait; nil when all is well.
    func obstacleToRebalance() -> String? {
        for node in nodes.elements where !node.groups.isEmpty {
            if !node.isLive { return "\(node.record.name) is \(node.health.rawValue)" }
            if node.diskFailedSince != nil { return "a disk of \(node.record.name) failed" }
            if node.isIll { return "\(node.record.name) is ill" }
            if node.isInMaintenance { return "\(node.record.name) is in maintenance" }
        }
        for group in groups.elements {
            guard group.record.state == .active, group.stored.isComplete else {
                return "group \(group.record.id) is being formed"
            }
            guard group.hasLeader, group.isServing else {
                return "group \(group.record.id) has no serving leader"
            }
        }
        return nil
    }

    // MARK: Replicas over nodes

    /// Whether a replica on `from` would be better off on `to`: `to` stays the less filled one.
    private func improves(_ from: NodeStatus, _ to: NodeStatus) -> Bool {
        from.replicas > 0 && to.weight > 0
            && (from.replicas - 1) * Int(to.weight) >= (to.replicas + 1) * Int(from.weight)
    }

    private mutating func moveReplica(
        now: Instant, into effects: inout ControllerEffects
    ) -> Bool {
        let rule = RuleName.rebalance
        let found = replicaToMove(now: now) { group in
            stopped(rule, now: now, where: { $0.group == group }) == nil
        }
        guard let (plan, reason) = found else { return false }
        if mode(of: rule) == .propose {
            propose(plan, origin: rule.rawValue, reason: reason, now: now, into: &effects)
        } else {
            start(plan, origin: rule.rawValue, reason: reason, now: now, into: &effects)
        }
        return true
    }

    /// The replica whose move evens out best what nodes hold by their weight; only of allowed groups.
    func replicaToMove(
        now: Instant, isAllowed: (GroupID) -> Bool
    ) -> (plan: Replacement, reason: String)? {
        let usable = nodes.elements.filter {
            $0.isLive && $0.hasReported && !$0.record.isSpare && !$0.isHeld && !$0.isIll
        }
        let full = usable.filter { $0.replicas > 0 }.sorted {
            // replicas / weight, the highest first.
            ($0.replicas * Int($1.weight), $1.record.id)
                > ($1.replicas * Int($0.weight), $0.record.id)
        }
        let empty = usable.filter { $0.weight > 0 }.sorted {
            ($0.replicas * Int($1.weight), $0.record.id)
                < ($1.replicas * Int($0.weight), $1.record.id)
        }
        for to in empty.prefix(Self.triesMax) {
            for from in full.prefix(Self.triesMax) where improves(from, to) {
                guard let plan = planReplicaMove(from, to, now: now, isAllowed) else { continue }
                return (
                    plan,
                    "\(from.record.name) holds \(plural(from.replicas, "replica")) with weight "
                        + "\(from.weight), \(to.record.name) \(to.replicas) with weight "
                        + "\(to.weight)"
                )
            }
        }
        return nil
    }

    /// A group of `from` that may live on `to`: not there yet, its zones stay apart, and there is
    /// room. Groups that `from` does not lead come first.
    private func planReplicaMove(
        _ from: NodeStatus, _ to: NodeStatus, now: Instant, _ isAllowed: (GroupID) -> Bool
    ) -> Replacement? {
        let id = from.record.id
        let own = from.groups.compactMap { groups[$0] }.filter { group in
            group.placementIndex(node: to.record.id) == nil
                && keepsZones(group, from: id, to: to) && isAllowed(group.record.id)
        }
        let order =
            own.filter { $0.leader.node != id } + own.filter { $0.leader.node == id }
        for group in order.prefix(Self.triesMax) {
            guard let index = group.placementIndex(node: id) else { continue }
            let choice = choose(
                group.record.id, replacing: group.record.placements[index], with: to.record.id,
                prefersSpares: false, now: now)
            if case .success(let plan) = choice { return plan }
        }
        return nil
    }

    private func keepsZones(_ group: GroupStatus, from: NodeID, to: NodeStatus) -> Bool {
        let others = group.record.placements.filter { $0.node != from }
            .compactMap { nodes[$0.node]?.record.zone }.filter { !$0.isEmpty }
        let before = nodes[from]?.record.zone ?? ""
        return others.count { $0 == to.record.zone } <= others.count { $0 == before }
    }

    /// Whether a proposed move of a replica would still be a gain.
    func isReplicaMoveDue(_ record: OperationRecord) -> Bool {
        guard let from = nodes[record.old.node], let to = nodes[record.new.node] else {
            return false
        }
        return improves(from, to)
    }

    // MARK: Shards over groups

    /// Two groups of a kind that are so far apart that a move between them may be worth it.
    struct Gap {
        var fullest: (group: GroupID, amount: UInt64)
        var emptiest: (group: GroupID, amount: UInt64)
    }

    /// Moves the shard that evens out best the busiest and the least busy group of a kind, when they
    /// have been more than half of the rating apart for a while.
    private mutating func moveForLoad(
        now: Instant, into effects: inout ControllerEffects
    ) -> Bool {
        guard let gap = loadGap(now: now),
            gap.fullest.amount <= runtime[.splitRate] || mode(of: .hotShard) == .off
        else {
            rules.unevenSince = nil
            return false
        }
        let since = rules.unevenSince ?? now
        rules.unevenSince = since
        guard now - since >= runtime.time(.rebalanceSustain),
            let (shard, reason) = shardToMove(
                forLoad: gap, now: now, isAllowed: { isLeftToRule($0, now: now) })
        else { return false }
        rules.unevenSince = nil
        return move(shard, to: gap.emptiest.group, because: reason, now: now, into: &effects)
    }

    /// Likewise for bytes: more than half of `split.bytes` apart.
    private mutating func moveForBytes(now: Instant, into effects: inout ControllerEffects) {
        guard now >= rules.bytesLookAt else { return }
        rules.bytesLookAt = now + Self.bytesInterval
        guard let gap = bytesGap(),
            let (shard, reason) = shardToMove(
                forBytes: gap, isAllowed: { isLeftToRule($0, now: now) })
        else { return }
        _ = move(shard, to: gap.emptiest.group, because: reason, now: now, into: &effects)
    }

    /// Not changed lately, and no operator has stopped the rule from moving it.
    private func isLeftToRule(_ shard: Shard, now: Instant) -> Bool {
        isPast(
            rules.histories[shard.id]?.lastChange ?? 0, by: runtime.time(.splitQuiet), now: now)
            && stopped(.rebalance, now: now, where: { $0.work?.names(shard.id) == true }) == nil
    }

    /// The busiest group, and the least busy one of its kind, when they are more than half of the
    /// rating apart.
    func loadGap(now: Instant) -> Gap? {
        var busiest: (rate: UInt64, group: GroupID)?
        for group in groups.elements {
            guard let rate = rate(of: group.record.id, now: now) else { continue }
            if rate > busiest?.rate ?? 0 { busiest = (rate, group.record.id) }
        }
        guard let busiest, shardCount(of: busiest.group) > 1,
            let first = reportedShards(of: busiest.group, now: now).first,
            let table = tables[first.shard.table],
            let least = leastLoaded(for: table, besides: busiest.group, now: now),
            busiest.rate > least.rate + runtime[.splitRate] / 2
        else { return nil }
        return Gap(
            fullest: (busiest.group, busiest.rate), emptiest: (least.group, least.rate))
    }

    /// The shard whose move leaves the larger of the two loads lowest, and a quarter of the rating
    /// lower at least; only allowed ones.
    func shardToMove(
        forLoad gap: Gap, now: Instant, isAllowed: (Shard) -> Bool
    ) -> (shard: Shard, reason: String)? {
        let (busiest, least) = (gap.fullest.amount, gap.emptiest.amount)
        var best: (rest: UInt64, item: (load: ShardLoad, shard: Shard))?
        for item in reportedShards(of: gap.fullest.group, now: now)
        where item.load.operations < busiest {
            let moved = UInt64(item.load.operations)
            let rest = max(busiest - moved, least + moved)
            guard rest + runtime[.splitRate] / 4 <= busiest, best.map({ rest < $0.rest }) ?? true,
                isAllowed(item.shard)
            else { continue }
            best = (rest, item)
        }
        guard let best else { return nil }
        return (
            best.item.shard,
            "group \(gap.fullest.group) serves \(Self.counted(busiest)) requests/s, group "
                + "\(gap.emptiest.group) \(Self.counted(least)); \(title(of: best.item.shard)) has "
                + Self.counted(UInt64(best.item.load.operations))
        )
    }

    /// The group with most bytes, and the one of its kind with fewest, when they are more than half
    /// of `split.bytes` apart.
    func bytesGap() -> Gap? {
        let all = groups.elements.map { (bytes: ownedBytes[$0.record.id] ?? 0, group: $0) }
        guard let full = all.max(by: { $0.bytes < $1.bytes }) else { return nil }
        let alike = all.filter {
            $0.group.record.id != full.group.record.id && $0.group.lacking == 0
                && $0.group.record.engine == full.group.record.engine
                && $0.group.wanted == full.group.wanted
        }
        guard let least = alike.min(by: { $0.bytes < $1.bytes }),
            full.bytes > least.bytes + runtime[.splitBytes] / 2
        else { return nil }
        return Gap(
            fullest: (full.group.record.id, full.bytes),
            emptiest: (least.group.record.id, least.bytes))
    }

    /// Likewise, with an eighth of `split.bytes`.
    func shardToMove(
        forBytes gap: Gap, isAllowed: (Shard) -> Bool
    ) -> (shard: Shard, reason: String)? {
        let (full, least) = (gap.fullest.amount, gap.emptiest.amount)
        var best: (rest: UInt64, bytes: UInt64, shard: Shard)?
        for shard in shards.elements where shard.group == gap.fullest.group {
            guard let bytes = shardReports[shard.id]?.bytes else { continue }
            let rest = max(full - min(bytes, full), least + bytes)
            guard rest + runtime[.splitBytes] / 8 <= full, best.map({ rest < $0.rest }) ?? true,
                isAllowed(shard)
            else { continue }
            best = (rest, bytes, shard)
        }
        guard let best else { return nil }
        return (
            best.shard,
            "group \(gap.fullest.group) holds \(quantity(full)), group \(gap.emptiest.group) "
                + "\(quantity(least)); \(title(of: best.shard)) has \(quantity(best.bytes))"
        )
    }

    private mutating func move(
        _ shard: Shard, to group: GroupID, because text: String, now: Instant,
        into effects: inout ControllerEffects
    ) -> Bool {
        do throws(DatabaseError) {
            let plan = try plan(moveOf: shard.id, to: .group(group), now: now)
            act(.rebalance, plan, because: text, now: now, into: &effects)
            return true
        } catch {
            refuse(
                .rebalance, .shard(shard.id), text + "; \(error.message)", now: now,
                into: &effects)
            return false
        }
    }
}
