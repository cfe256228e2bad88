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
            && nodes.elements.allSatisfy {
                $0.groups.isEmpty
                    || $0.isLive && $0.diskFailedSince == nil && !$0.isIll && !$0.isInMaintenance
            }
            && groups.elements.allSatisfy {
                $0.record.state == .active && $0.stored.isComplete && $0.hasLeader && $0.isServing
            }
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
                guard let plan = planReplicaMove(from, to, now: now) else { continue }
                let reason =
                    "\(from.record.name) holds \(from.replicas) replicas with weight \(from.weight), "
                    + "\(to.record.name) \(to.replicas) with weight \(to.weight)"
                let rule = RuleName.rebalance
                if mode(of: rule) == .propose {
                    propose(plan, origin: rule.rawValue, reason: reason, now: now, into: &effects)
                } else {
                    start(plan, origin: rule.rawValue, reason: reason, now: now, into: &effects)
                }
                return true
            }
        }
        return false
    }

    /// A group of `from` that may live on `to`: not there yet, its zones stay apart, and there is
    /// room. Groups that `from` does not lead come first.
    private func planReplicaMove(
        _ from: NodeStatus, _ to: NodeStatus, now: Instant
    ) -> Replacement? {
        let id = from.record.id
        let own = from.groups.compactMap { groups[$0] }.filter { group in
            group.placementIndex(node: to.record.id) == nil
                && keepsZones(group, from: id, to: to)
                && stopped(.rebalance, now: now, where: { $0.group == group.record.id }) == nil
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

    /// Moves the shard that evens out best the busiest and the least busy group of a kind, when they
    /// have been more than half of the rating apart for a while.
    private mutating func moveForLoad(
        now: Instant, into effects: inout ControllerEffects
    ) -> Bool {
        let rated = runtime[.splitRate]
        var busiest: (rate: UInt64, group: Group)?
        for group in groups.elements {
            guard let rate = rate(of: group.record.id, now: now) else { continue }
            if rate > busiest?.rate ?? 0 { busiest = (rate, group.record) }
        }
        guard let busiest, busiest.rate <= rated || mode(of: .hotShard) == .off else {
            rules.unevenSince = nil
            return false
        }
        let loads = reportedShards(of: busiest.group.id, now: now)
        guard let table = loads.first.flatMap({ tables[$0.shard.table] }),
            let least = leastLoaded(for: table, besides: busiest.group.id, now: now),
            busiest.rate > least.rate + rated / 2, shardCount(of: busiest.group.id) > 1
        else {
            rules.unevenSince = nil
            return false
        }
        let since = rules.unevenSince ?? now
        rules.unevenSince = since
        guard now - since >= runtime.time(.rebalanceSustain) else { return false }
        let quiet = runtime.time(.splitQuiet)
        var best: (rest: UInt64, item: (load: ShardLoad, shard: Shard))?
        for item in loads where item.load.operations < busiest.rate {
            let moved = item.load.operations
            let rest = max(busiest.rate - moved, least.rate + moved)
            guard rest + rated / 4 <= busiest.rate,
                isPast(rules.histories[item.shard.id]?.lastChange ?? 0, by: quiet, now: now),
                stopped(.rebalance, now: now, where: { $0.work?.names(item.shard.id) == true })
                    == nil
            else { continue }
            if best.map({ rest < $0.rest }) ?? true { best = (rest, item) }
        }
        guard let best else { return false }
        let text =
            "group \(busiest.group.id) serves \(Self.counted(busiest.rate)) requests/s, group "
            + "\(least.group) \(Self.counted(least.rate)); \(title(of: best.item.shard)) has "
            + "\(Self.counted(best.item.load.operations))"
        rules.unevenSince = nil
        return move(best.item.shard, to: least.group, because: text, now: now, into: &effects)
    }

    /// Likewise for bytes: more than half of `split.bytes` apart.
    private mutating func moveForBytes(now: Instant, into effects: inout ControllerEffects) {
        guard now >= rules.bytesLookAt else { return }
        rules.bytesLookAt = now + Self.bytesInterval
        let limit = runtime[.splitBytes]
        let held = heldBytes()
        let all = groups.elements.map { (bytes: held[$0.record.id] ?? 0, group: $0.record) }
        guard let full = all.max(by: { $0.bytes < $1.bytes }) else { return }
        let alike = all.filter {
            $0.group.id != full.group.id && $0.group.engine == full.group.engine
                && $0.group.placements.count == full.group.placements.count
        }
        guard let least = alike.min(by: { $0.bytes < $1.bytes }),
            full.bytes > least.bytes + limit / 2
        else { return }
        let quiet = runtime.time(.splitQuiet)
        var best: (rest: UInt64, bytes: UInt64, shard: Shard)?
        for shard in shards.elements where shard.group == full.group.id {
            guard let bytes = shardReports[shard.id]?.bytes else { continue }
            let rest = max(full.bytes - min(bytes, full.bytes), least.bytes + bytes)
            guard rest + limit / 8 <= full.bytes, best.map({ rest < $0.rest }) ?? true,
                isPast(rules.histories[shard.id]?.lastChange ?? 0, by: quiet, now: now),
                stopped(.rebalance, now: now, where: { $0.work?.names(shard.id) == true }) == nil
            else { continue }
            best = (rest, bytes, shard)
        }
        guard let best else { return }
        let text =
            "group \(full.group.id) holds \(quantity(full.bytes)), group \(least.group.id) "
            + "\(quantity(least.bytes)); \(title(of: best.shard)) has \(quantity(best.bytes))"
        _ = move(best.shard, to: least.group.id, because: text, now: now, into: &effects)
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
