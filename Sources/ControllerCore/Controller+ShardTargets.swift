// Which group takes a shard: an existing one with room, or one that is formed for it.

import KVBase
import ShardCore

/// Where a shard goes, and what was passed over.
struct TargetChoice {
    /// `.none`: the group is to be formed on `formsOn`.
    var group: GroupID
    var formsOn: [Placement] = []
    var skipped: [SkippedGroup] = []
    var grounds = ""
}

extension Controller {
    /// Chooses a group for a shard of `bytes` records and `operations` requests/s that leaves
    /// `source`. `isForRelief`: a group that would be as busy as the source is now does not do.
    func choose(
        _ target: MoveTarget, for table: Table, from source: GroupID, bytes: UInt64,
        operations: UInt64, isForRelief: Bool = false, now: Instant
    ) throws(DatabaseError) -> TargetChoice {
        switch target {
        case .group(let id):
            try check(id, takes: table, from: source, bytes: bytes)
            return TargetChoice(group: id)
        case .new:
            return TargetChoice(
                group: .none, formsOn: try placesOfNewGroup(for: table, bytes: bytes))
        case .any:
            return try chooseAny(
                for: table, from: source, bytes: bytes, operations: operations,
                isForRelief: isForRelief)
        }
    }

    private func kind(_ table: Table) -> String {
        "\(table.engine) groups of \(table.replicas) replicas"
    }

    private func fits(_ group: GroupStatus, _ table: Table) -> Bool {
        group.record.engine == table.engine && group.wanted == Int(table.replicas)
    }

    /// Refuses a group that was asked for by name, where it cannot take the shard.
    private func check(
        _ id: GroupID, takes table: Table, from source: GroupID, bytes: UInt64
    ) throws(DatabaseError) {
        let fitting = groups.elements.filter {
            fits($0, table) && $0.record.id != source
        }.map { "\($0.record.id)" }
        let advice =
            fitting.isEmpty
            ? "no other group fits; form one with: --to new"
            : "groups that fit: \(fitting.prefix(20).joined(separator: ", ")), or --to new"
        guard let group = groups[id] else {
            throw DatabaseError(.refused, "there is no group \(id); \(advice)")
        }
        guard id != source else {
            throw DatabaseError(.refused, "the shard is in group \(id) already; \(advice)")
        }
        guard fits(group, table) else {
            throw DatabaseError(
                .refused,
                "group \(id) is a \(group.record.engine) group of "
                    + "\(group.wanted) replicas, table \(table.name) lives on "
                    + "\(kind(table)); \(advice)")
        }
        guard group.record.state == .active else {
            throw DatabaseError(.unavailable, "group \(id) is still being formed; repeat")
        }
        try checkMajority(of: group)
        guard serving(id) != nil else {
            throw DatabaseError(
                .unavailable, "group \(id) has no serving leader now; repeat, or \(advice)")
        }
        if let lack = lackOfRoom(group, bytes: bytes) {
            throw DatabaseError(.refused, "group \(id) has no room: \(lack); \(advice)")
        }
    }

    /// Free space that the shard needs on each disk.
    private func spaceNeeded(_ bytes: UInt64) -> UInt64 { bytes + bytes / 2 + Self.reserveBytes }

    private func lackOfRoom(_ group: GroupStatus, bytes: UInt64) -> String? {
        let count = shardCount(of: group.record.id)
        if count >= Limits.groupShardsMax { return "it holds \(count) shards, the most it may" }
        let needed = spaceNeeded(bytes)
        for placement in group.record.placements {
            guard let node = nodes[placement.node], Int(placement.disk) < node.disks.count else {
                continue
            }
            let free = node.disks[Int(placement.disk)].freeBytes
            if free < needed {
                return "\(node.record.name) has \(quantity(free)) free, \(quantity(needed)) needed"
            }
        }
        return nil
    }

    private func chooseAny(
        for table: Table, from source: GroupID, bytes: UInt64, operations moved: UInt64,
        isForRelief: Bool
    ) throws(DatabaseError) -> TargetChoice {
        let sourceLoad = groupLoads[source]?.operations ?? 0
        var skipped: [SkippedGroup] = []
        var relief: (rank: [UInt64], group: GroupID)?
        var other: (rank: [UInt64], group: GroupID)?
        for group in groups.elements
        where group.record.id != source && fits(group, table) {
            let id = group.record.id
            if let reason = objection(to: group, bytes: bytes) {
                skipped.append(SkippedGroup(group: id, reason: reason))
                continue
            }
            let load = groupLoads[id]?.operations ?? 0
            let isBusy = openOperations.contains { status in
                guard let work = status.record.work, work.moving != .none,
                    status.record.step != .proposed
                else { return false }
                return work.source == id || work.target == id
            }
            let rank: [UInt64] = [
                isBusy ? 1 : 0, load, ownedBytes[id] ?? 0, UInt64(shardCount(of: id)),
                UInt64(id.rawValue),
            ]
            if moved > 0, load + moved >= sourceLoad {
                skipped.append(
                    SkippedGroup(
                        group: id,
                        reason: "would have \(load + moved) requests/s, group \(source) has "
                            + "\(sourceLoad) now"))
                if other.map({ rank.lexicographicallyPrecedes($0.rank) }) ?? true {
                    other = (rank, id)
                }
            } else if relief.map({ rank.lexicographicallyPrecedes($0.rank) }) ?? true {
                relief = (rank, id)
            }
        }
        if let relief {
            return TargetChoice(
                group: relief.group, skipped: skipped,
                grounds: "of the groups with room, group \(relief.group) has least to do: "
                    + "\(groupLoads[relief.group]?.operations ?? 0) requests/s")
        }
        let lack: DatabaseError
        do throws(DatabaseError) {
            return TargetChoice(
                group: .none, formsOn: try placesOfNewGroup(for: table, bytes: bytes),
                skipped: skipped, grounds: "no other group has room")
        } catch {
            lack = error
        }
        if let other, !isForRelief {
            return TargetChoice(
                group: other.group, skipped: skipped.filter { $0.group != other.group },
                grounds: "no group has less to do, and \(lack.message)")
        }
        let reasons = skipped.map { "group \($0.group): \($0.reason)" }
        throw DatabaseError(
            .refused,
            "no other group can take it"
                + (reasons.isEmpty
                    ? " (there are no other \(kind(table)))"
                    : " (\(reasons.joined(separator: ", ")))") + ", and \(lack.message)")
    }

    /// Why the controller does not choose a group, or nil.
    private func objection(to group: GroupStatus, bytes: UInt64) -> String? {
        guard group.record.state == .active else { return "is being formed" }
        guard serving(group.record.id) != nil else { return "has no serving leader" }
        if group.lacking > 0 {
            return "has \(group.record.placements.count) of \(group.wanted) replicas"
        }
        for placement in group.record.placements where nodes[placement.node]?.isLive != true {
            return "misses its replica on \(name(placement.node))"
        }
        return lackOfRoom(group, bytes: bytes)
    }

    /// Nodes and disks for a group formed for a shard: nodes that are not spares, and spares as far
    /// as enough of them are left.
    private func placesOfNewGroup(
        for table: Table, bytes: UInt64
    ) throws(DatabaseError) -> [Placement] {
        let spares = nodes.elements.filter {
            $0.record.isSpare && $0.isLive && !$0.isHeld && $0.hasReported
                && !$0.isInMaintenance && $0.weight > 0
        }
        let count = Int(table.replicas)
        let needed = spaceNeeded(bytes)
        let usable = spares.prefix(max(0, spares.count - Int(runtime[.sparesReserved]))).map(
            \.record.id)
        var candidates = candidates(spares: usable, freeBytesMin: needed)
        guard let places = ReplicaPlanner.place(count: count, on: &candidates) else {
            let there = candidates.count(where: \.isUsable)
            throw DatabaseError(
                .refused,
                "a new group of \(count) replicas needs \(count) live nodes with "
                    + "\(quantity(needed)) free, \(there) there"
                    + (spares.count > usable.count
                        ? " (\(spares.count - usable.count) of \(spares.count) live spares are kept "
                            + "for repairs)" : "") + "; add a node")
        }
        return places.map { Placement(replica: .none, node: $0.0, disk: $0.disk) }
    }

    // MARK: Forecast

    /// Fills in the load and size of the groups and nodes that take part, before and after.
    /// What is not known to move is left where it is.
    func forecast(_ plan: inout ShardPlan) {
        func group(_ id: GroupID) -> GroupForecast {
            GroupForecast(
                group: id, operations: groupLoads[id]?.operations ?? 0, bytes: ownedBytes[id] ?? 0,
                shards: shardCount(of: id))
        }
        let source = plan.work.source
        plan.groupsBefore = [group(source)]
        if plan.moves, plan.work.target != .none {
            plan.groupsBefore.append(group(plan.work.target))
        }
        var after = plan.groupsBefore
        if plan.kind == .split { after[0].shards += 1 }
        if plan.moves {
            if plan.work.target == .none { after.append(group(.none)) }
            let bytes = min(plan.bytes ?? 0, after[0].bytes)
            let operations = min(plan.operations ?? 0, after[0].operations)
            after[0].shards -= 1
            after[0].bytes -= bytes
            after[0].operations -= operations
            after[1].shards += 1
            after[1].bytes += bytes
            after[1].operations += operations
        }
        if plan.kind == .merge { after[after.count - 1].shards -= 1 }
        plan.groupsAfter = after
        plan.nodesBefore = nodeForecasts(plan.groupsBefore, plan.formsOn)
        plan.nodesAfter = nodeForecasts(plan.groupsAfter, plan.formsOn)
    }

    private func nodeForecasts(
        _ forecasts: [GroupForecast], _ formsOn: [Placement]
    ) -> [NodeForecast] {
        var nodes = SortedRecords<NodeID, NodeForecast>()
        for forecast in forecasts {
            let known = groups[forecast.group]
            for placement in known?.record.placements ?? formsOn {
                var node =
                    nodes[placement.node]
                    ?? NodeForecast(node: placement.node, operations: 0, bytes: 0)
                node.bytes += forecast.bytes
                if known?.leader.node == placement.node { node.operations += forecast.operations }
                nodes.set(node, for: placement.node)
            }
        }
        return Array(nodes.elements)
    }
}
