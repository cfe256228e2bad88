// The rule for groups with more requests than they are rated for: split the busy shard where its load
// halves and move one half, or move a shard that is small enough, or name the key that is to blame.
//
// Each step must lower the larger of the two groups' loads by a tenth of the rating at least, so no
// load, however it falls, makes the rule go on for ever.

import KVBase
import ShardCore

extension Controller {
    /// A share of a shard's requests above which one key is to blame, in percent.
    private static let hotKeyPercent: UInt8 = 50
    private static let looksMax = 8

    mutating func relieveHotGroups(now: Instant, into effects: inout ControllerEffects) {
        let sustain = runtime.time(.splitSustain)
        let due = rules.hot.elements.filter { now - $0.since >= sustain }
        rules.hotKeys.removeAll { key in !due.contains { $0.group == key.group } }
        guard mode(of: .hotShard) != .off else {
            rules.hotKeys = []
            return
        }
        var looks = 0
        for hot in due where looks < Self.looksMax {
            let id = hot.group
            guard let rate = rate(of: id, now: now), rate > runtime[.splitRate],
                !isRefused(.hotShard, .group(id)), hasRoomToAct(.hotShard), !isBusy(id),
                !isProposed(.hotShard, where: { $0.group == id })
            else { continue }
            looks += 1
            // One plan in a look: each walks over all shards.
            if relieve(hot, rate, now: now, into: &effects) { return }
        }
    }

    /// Whether something was planned.
    private mutating func relieve(
        _ hot: RuleState.HotGroup, _ rate: UInt64, now: Instant,
        into effects: inout ControllerEffects
    ) -> Bool {
        let id = hot.group
        var text =
            "group \(id) serves \(Self.counted(rate)) requests/s for "
            + "\((now - hot.since).count / 1_000_000_000) s, rated \(Self.counted(runtime[.splitRate]))"
        let loads = reportedShards(of: id, now: now)
        nameHotKeys(of: id, loads)
        guard let busiest = loads.first else {
            refuse(
                .hotShard, .group(id), text + "; its leader names no shard", now: now,
                into: &effects)
            return false
        }
        text +=
            "; \(title(of: busiest.shard)) has \(Self.counted(busiest.load.operations)) of them"
        var obstacles: [String] = []
        if let key = rules.hotKeys.first(where: { $0.shard == busiest.shard.id }) {
            obstacles.append(
                "the key \(keyText(key.key, of: key.table)) alone takes \(key.percent) % of those: "
                    + "no split parts it")
        } else if busiest.load.operations > rate / 2 {
            if let plan = planSplit(of: busiest, in: id, rate, &obstacles, now: now) {
                act(.hotShard, plan, because: text, now: now, into: &effects)
                return true
            }
        }
        if let (plan, moved) = planMove(from: id, loads, rate, &obstacles, now: now) {
            if moved.shard.id != busiest.shard.id {
                text +=
                    "; \(title(of: moved.shard)) with \(Self.counted(moved.load.operations)) is the "
                    + "one that evens it out best"
            }
            act(.hotShard, plan, because: text, now: now, into: &effects)
            return true
        }
        refuse(
            .hotShard, .group(id), text + "; " + obstacles.joined(separator: "; "), now: now,
            into: &effects)
        return false
    }

    private mutating func nameHotKeys(
        of group: GroupID, _ loads: [(load: ShardLoad, shard: Shard)]
    ) {
        rules.hotKeys.removeAll { $0.group == group }
        for (load, shard) in loads where load.operations >= runtime[.splitRate] / 4 {
            guard load.hottestPercent > Self.hotKeyPercent, let key = load.hottest else { continue }
            rules.hotKeys.append(
                HotKey(
                    table: shard.table, shard: shard.id, group: group, key: key,
                    percent: load.hottestPercent, operations: load.operations))
        }
    }

    // MARK: Split

    private func planSplit(
        of busiest: (load: ShardLoad, shard: Shard), in group: GroupID, _ rate: UInt64,
        _ obstacles: inout [String], now: Instant
    ) -> ShardPlan? {
        let shard = busiest.shard
        guard let table = tables[shard.table], isLeftAlone(shard, &obstacles, now: now) == false
        else { return nil }
        guard busiest.load.median != nil || table.partitioning != .range else {
            obstacles.append("too few of its requests were sampled to tell where to cut it")
            return nil
        }
        let half = busiest.load.operations / 2
        let targets = targets(
            for: table, from: group, rate, moved: half, &obstacles, now: now)
        for target in targets {
            do throws(DatabaseError) {
                return try plan(
                    split: SplitRequest(table: table.name, shard: shard.id, to: target), now: now)
            } catch {
                if !obstacles.contains(error.message) { obstacles.append(error.message) }
            }
        }
        return nil
    }

    /// Whether an operator has stopped work on it, or it was joined a short while ago.
    private func isLeftAlone(
        _ shard: Shard, _ obstacles: inout [String], now: Instant
    ) -> Bool {
        if let id = stopped(.hotShard, now: now, where: { $0.work?.names(shard.id) == true }) {
            obstacles.append("the operator stopped operation \(id) on it")
            return true
        }
        let quiet = runtime.time(.splitQuiet)
        guard let history = rules.histories[shard.id],
            !isPast(history.joinedAt, by: quiet, now: now)
        else { return false }
        obstacles.append(
            "it was joined less than \(RuntimeSetting.splitQuiet.write(quiet.count)) ago")
        return true
    }

    // MARK: Move

    /// The shard whose move leaves the larger of the two groups' loads lowest.
    private func planMove(
        from group: GroupID, _ loads: [(load: ShardLoad, shard: Shard)], _ rate: UInt64,
        _ obstacles: inout [String], now: Instant
    ) -> (ShardPlan, moved: (load: ShardLoad, shard: Shard))? {
        guard shardCount(of: group) > 1 else {
            obstacles.append("it has no other shard to move")
            return nil
        }
        let least = loads.first.flatMap { tables[$0.shard.table] }
            .flatMap { leastLoaded(for: $0, besides: group, now: now)?.rate }
        let quiet = runtime.time(.splitQuiet)
        var best: (rest: UInt64, item: (load: ShardLoad, shard: Shard))?
        for item in loads where operation(onShard: item.shard.id) == nil {
            let moved = item.load.operations
            guard moved < rate else { continue }
            let history = rules.histories[item.shard.id]
            guard isPast(history?.movedAt ?? 0, by: quiet, now: now),
                stopped(.hotShard, now: now, where: { $0.work?.names(item.shard.id) == true })
                    == nil
            else { continue }
            let rest = max(rate - moved, (least ?? 0) + moved)
            if best.map({ rest < $0.rest }) ?? true { best = (rest, item) }
        }
        guard let best, let table = tables[best.item.shard.table],
            best.rest + margin(rate) <= rate
        else {
            obstacles.append(
                "no shard can be moved that would lower the load by a tenth"
                    + (least.map { ": the least busy group has \(Self.counted($0)) requests/s" }
                        ?? ""))
            return nil
        }
        let moved = best.item.load.operations
        for target in targets(
            for: table, from: group, rate, moved: moved, &obstacles, now: now)
        {
            do throws(DatabaseError) {
                return (
                    try plan(moveOf: best.item.shard.id, to: target, now: now), best.item
                )
            } catch {
                if !obstacles.contains(error.message) { obstacles.append(error.message) }
            }
        }
        return nil
    }

    // MARK: Targets

    /// What a step must gain at least, in requests/s.
    private func margin(_ rate: UInt64) -> UInt64 { max(runtime[.splitRate] / 10, rate / 20, 1) }

    /// Where `moved` requests/s could go, best first: a group that stays within its rating, a new
    /// one, a group that is at least less busy afterwards than the source is now.
    private func targets(
        for table: Table, from source: GroupID, _ rate: UInt64, moved: UInt64,
        _ obstacles: inout [String], now: Instant
    ) -> [MoveTarget] {
        guard let least = leastLoaded(for: table, besides: source, now: now) else { return [.new] }
        let after = max(rate - min(rate, moved), least.rate + moved)
        guard after + margin(rate) <= rate else {
            obstacles.append(
                "the least busy other group, \(least.group), has \(Self.counted(least.rate)) "
                    + "requests/s: nothing would be gained there")
            return [.new]
        }
        let rated = runtime[.splitRate]
        // A group that has nearly nothing to do is as good as a new one.
        let hasRoom = least.rate + moved <= rated || least.rate <= rated / 10
        return hasRoom ? [.group(least.group), .new] : [.new, .group(least.group)]
    }

    /// The group of the table's kind with the fewest requests; of about equal ones the one whose
    /// leader's node has the fewest.
    func leastLoaded(
        for table: Table, besides source: GroupID, now: Instant
    ) -> (group: GroupID, rate: UInt64)? {
        let step = max(1, runtime[.splitRate] / 10)
        var best: (rank: [UInt64], group: GroupID, rate: UInt64)?
        for group in groups.elements
        where group.record.id != source && group.record.state == .active
            && group.record.engine == table.engine
            && group.wanted == Int(table.replicas)
        {
            let id = group.record.id
            guard let rate = rate(of: id, now: now), !isBusy(id),
                group.record.placements.allSatisfy({
                    nodes[$0.node]?.isFit(disk: $0.disk) == true
                })
            else { continue }
            let rank = [rate / step, self.rate(ofNode: group.leader.node), UInt64(id.rawValue)]
            if best.map({ rank.lexicographicallyPrecedes($0.rank) }) ?? true {
                best = (rank, id, rate)
            }
        }
        return best.map { ($0.group, $0.rate) }
    }

    /// Requests per second of the groups that a node leads.
    private func rate(ofNode id: NodeID) -> UInt64 {
        (nodes[id]?.groups ?? []).reduce(0) { total, group in
            groups[group]?.leader.node == id
                ? total + (groupLoads[group]?.operations ?? 0) : total
        }
    }
}
