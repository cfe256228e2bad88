// Creating and dropping tables: durable procedures that survive a change of leader or controller.
//
// Creation: store table and shards as creating (new groups with them) -> each shard's group leader
// puts it through its log -> store all as active -> publish -> answer.
// Removal: store table and shards as dropping, which frees the name -> publish -> answer -> each
// group leader removes its shards -> delete the records.

import KVBase
import ShardCore

extension Controller {
    mutating func handle(
        _ request: RequestID, _ body: TableRequest, now: Instant,
        into effects: inout ControllerEffects
    ) {
        guard isActing else { return answers.append((request, notActing)) }
        let waiter = TableProcedure.Waiter(
            request: request, deadline: now + settings.requestDeadline)
        switch body {
        case .create: create(waiter, body, now: now, into: &effects)
        case .drop(let name): drop(waiter, name, into: &effects)
        // What was acknowledged to anyone was published before this answer goes out.
        case .confirmMap: answers.append((request, nil))
        }
    }

    /// Takes up the procedures that the store shows unfinished.
    mutating func resumeProcedures() {
        for table in tables.elements {
            if table.state != .dropping { names[table.name] = table.id }
            guard table.state != .active else { continue }
            let own = shards.elements.filter { $0.table == table.id }
            procedures.set(
                TableProcedure(
                    table: table, isDrop: table.state == .dropping, phase: .commanding,
                    pending: own.map { TableProcedure.Pending(shard: $0) }, shards: own),
                for: table.id)
        }
    }

    // MARK: Requests

    private mutating func create(
        _ waiter: TableProcedure.Waiter, _ request: TableRequest, now: Instant,
        into effects: inout ControllerEffects
    ) {
        guard
            case .create(
                let name, let partitioning, let engine, let replicas, let splits, let ifMissing) =
                request
        else { return }
        if let objection = TableRules.objection(
            to: request, splitBytesMax: settings.splitBytesMax)
        {
            return answers.append((waiter.request, objection))
        }
        if let id = names[name] {
            if !ifMissing {
                answers.append(
                    (
                        waiter.request,
                        DatabaseError(.tableExists, "there is a table named \(name)")
                    ))
            } else if procedures[id] == nil {
                answers.append((waiter.request, nil))
            } else {
                procedures.update(id) { $0.waiters.append(waiter) }
            }
            return
        }
        guard tables.count < Limits.tablesMax else {
            return answers.append(
                (
                    waiter.request,
                    DatabaseError(.tooLarge, "a cluster holds at most \(Limits.tablesMax) tables")
                ))
        }
        let count = Int(replicas ?? UInt8(settings.replicasDefault))
        var newGroups: [GroupRecord] = []
        if groupIDs(engine: engine, replicas: count).isEmpty {
            let isStarting = now - actingSince < settings.takeOverGrace * 2
            if isStarting, awaitsNodes(now: now), parked.count < settings.requestsWaitingMax {
                return parked.append((waiter, request))
            }
            switch plan(engine: engine, replicas: count) {
            case .success(let records): newGroups = records
            case .failure(let error):
                // Nodes may still be on their way to a controller that just started.
                if isStarting, parked.count < settings.requestsWaitingMax {
                    parked.append((waiter, request))
                } else {
                    answers.append((waiter.request, error))
                }
                return
            }
        }
        begin(
            Table(
                id: IDAllocators.take(&ids.table), name: name, partitioning: partitioning,
                engine: engine, replicas: UInt8(count), state: .creating),
            splits: splits, on: groupIDs(engine: engine, replicas: count), newGroups: newGroups,
            waiter, into: &effects)
    }

    private mutating func begin(
        _ table: Table, splits: [Bytes], on eligible: [GroupID], newGroups: [GroupRecord],
        _ waiter: TableProcedure.Waiter, into effects: inout ControllerEffects
    ) {
        let ranges = TableRules.ranges(of: table.partitioning, splits: splits)
        let assignment: [GroupID]
        switch table.partitioning {
        case .range:
            assignment = ShardPlanner.spread(
                count: ranges.count, over: eligible.map { ($0, shardCounts[$0] ?? 0) })
        case .hash:
            assignment = ShardPlanner.assign(virtualRanges: ranges.count, groups: eligible)
        }
        if let objection = lackOfRoom(for: ranges, on: assignment) {
            return answers.append((waiter.request, objection))
        }
        var transaction = MetadataTransaction()
        for record in newGroups { transaction.put(record) }
        transaction.put(table)
        var created: [Shard] = []
        for (range, group) in zip(ranges, assignment) {
            let shard = Shard(
                id: IDAllocators.take(&ids.shard), table: table.id, range: range, group: group,
                epoch: Epoch(1), state: .creating)
            shardCounts[group, default: 0] += 1
            created.append(shard)
            transaction.put(shard)
        }
        transaction.put(ids)
        names[table.name] = table.id
        procedures.set(
            TableProcedure(
                table: table, isDrop: false, phase: .storing,
                pending: created.map { TableProcedure.Pending(shard: $0) }, shards: created,
                newGroups: newGroups, waiters: [waiter]), for: table.id)
        store(transaction, then: .table(table.id), into: &effects)
    }

    /// Why the groups cannot hold these shards besides those that they have, or nil.
    private func lackOfRoom(for ranges: [KeyRange], on assignment: [GroupID]) -> DatabaseError? {
        func bytes(_ range: KeyRange) -> Int { range.start.count + (range.end?.count ?? 0) + 80 }
        // Both for look-up only.
        var counts: [GroupID: Int] = [:]
        var keyBytes: [GroupID: Int] = [:]
        for (range, group) in zip(ranges, assignment) {
            counts[group, default: 0] += 1
            keyBytes[group, default: 0] += bytes(range)
        }
        // Short keys never fill a group before their number does.
        if ranges.contains(where: { bytes($0) > 300 }) {
            for shard in shards.elements where keyBytes[shard.group] != nil {
                keyBytes[shard.group]! += bytes(shard.range)
            }
        }
        for group in assignment {
            let count = (shardCounts[group] ?? 0) + (counts[group] ?? 0)
            if count > Limits.groupShardsMax {
                return DatabaseError(
                    .tooLarge,
                    "group \(group) would hold \(count) shards, at most \(Limits.groupShardsMax) "
                        + "fit; ask for fewer shards, drop tables or add groups")
            }
            if keyBytes[group] ?? 0 > Limits.groupStateBytesMax {
                return DatabaseError(
                    .tooLarge,
                    "the split points of the shards in group \(group) would have "
                        + "\(keyBytes[group] ?? 0) bytes, at most \(Limits.groupStateBytesMax) "
                        + "fit; ask for shorter ones, drop tables or add groups")
            }
        }
        return nil
    }

    private mutating func drop(
        _ waiter: TableProcedure.Waiter, _ name: String, into effects: inout ControllerEffects
    ) {
        guard let id = names[name] else {
            return answers.append(
                (
                    waiter.request,
                    DatabaseError(.tableNotFound, "there is no table named \(name)")
                ))
        }
        guard let procedure = procedures[id] else {
            guard let table = tables[id] else { return }
            if let running = operation(onTable: id) {
                return answers.append((waiter.request, isWorkedOn("table \(name)", running)))
            }
            return beginDrop(
                table, shards: shards.elements.filter { $0.table == id }, [waiter], into: &effects)
        }
        procedures.update(id) { $0.dropWaiters.append(waiter) }
        if procedure.phase == .commanding { abandon(id, into: &effects) }
    }

    /// Turns a creation into a removal because the table was dropped meanwhile.
    private mutating func abandon(_ id: TableID, into effects: inout ControllerEffects) {
        guard let procedure = procedures[id], !procedure.isDrop else { return }
        for waiter in procedure.waiters {
            answers.append(
                (
                    waiter.request,
                    DatabaseError(
                        .tableNotFound, "table \(procedure.table.name) was dropped meanwhile")
                ))
        }
        beginDrop(
            procedure.table, shards: procedure.shards, procedure.dropWaiters, into: &effects)
    }

    private mutating func beginDrop(
        _ table: Table, shards own: [Shard], _ waiters: [TableProcedure.Waiter],
        into effects: inout ControllerEffects
    ) {
        var dropped = table
        dropped.state = .dropping
        var marked = own
        for index in marked.indices { marked[index].state = .dropping }
        var transaction = MetadataTransaction()
        transaction.put(dropped)
        for shard in marked { transaction.put(shard) }
        names[table.name] = nil
        procedures.set(
            TableProcedure(
                table: dropped, isDrop: true, phase: .storing,
                pending: marked.map { TableProcedure.Pending(shard: $0) }, shards: marked,
                dropWaiters: waiters), for: table.id)
        store(transaction, then: .table(table.id), into: &effects)
    }

    // MARK: Progress

    mutating func tableStored(
        _ id: TableID, now: Instant, into effects: inout ControllerEffects
    ) {
        guard let procedure = procedures[id] else { return }
        switch (procedure.isDrop, procedure.phase) {
        case (false, .storing):
            keep(procedure.table, procedure.shards)
            formed(procedure.newGroups, now: now)
            procedures.update(id) { $0.phase = .commanding }
            touch(id)
        case (false, .finishing):
            keep(procedure.table, procedure.shards)
            for shard in procedure.shards { changes.append(.shard(shard)) }
            changes.append(.table(procedure.table))
            for waiter in procedure.waiters { answers.append((waiter.request, nil)) }
            procedures.remove(id)
            effects.append(
                .decided(
                    "created table \(procedure.table.name) (\(id)) with "
                        + "\(procedure.shards.count) shards"))
        case (true, .storing):
            let wasVisible = tables[id]?.state == .active
            keep(procedure.table, procedure.shards)
            if wasVisible {
                for shard in procedure.shards { changes.append(.shardRemoved(shard.id, id)) }
                changes.append(.tableRemoved(id))
            }
            for waiter in procedure.dropWaiters { answers.append((waiter.request, nil)) }
            procedures.update(id) { procedure in
                procedure.dropWaiters = []
                procedure.phase = .commanding
            }
            touch(id)
        case (true, .finishing):
            tables.remove(id)
            for shard in procedure.shards {
                shards.remove(shard.id)
                shardReports.remove(shard.id)
                shardLoads.remove(shard.id)
                copyReports.remove(shard.id)
                digests.remove(shard.id)
                shardCounts[shard.group, default: 0] -= 1
            }
            procedures.remove(id)
            effects.append(.decided("dropped table \(procedure.table.name) (\(id))"))
        case (_, .commanding): preconditionFailure("nothing is stored while commands are out")
        }
        guard !procedure.isDrop, !procedure.dropWaiters.isEmpty else { return }
        if procedure.phase == .storing {
            abandon(id, into: &effects)
        } else {
            beginDrop(
                procedure.table, shards: procedure.shards, procedure.dropWaiters, into: &effects)
        }
    }

    mutating func shardOutcome(
        _ table: TableID, _ shard: ShardID, _ outcome: CommandOutcome, now: Instant,
        into effects: inout ControllerEffects
    ) {
        let retryAt = now + settings.commandRetryDelay
        var problem: String?
        // Changed in place: there may be thousands of shards.
        procedures.update(table) { procedure in
            // A removal that overtook the creation's commands does not count their outcomes.
            guard procedure.phase == .commanding,
                let index = procedure.pending.firstIndex(where: { $0.command == outcome.id })
            else { return }
            guard let error = outcome.error else {
                procedure.pending.remove(at: index)
                return
            }
            if error.code != .notLeader, error.code != .unavailable {
                problem =
                    "\(procedure.isDrop ? "dropShard" : "createShard") of shard \(shard) at node "
                    + "\(procedure.pending[index].sentTo): \(error)"
            }
            procedure.pending[index].command = 0
            procedure.pending[index].sendAgainAt = retryAt
        }
        if let problem { effects.append(.decided(problem)) }
        touch(table)
    }

    /// Sends the commands that are due and finishes the procedure when none is left.
    mutating func pump(_ id: TableID, now: Instant, into effects: inout ControllerEffects) {
        guard let procedure = procedures[id], procedure.phase == .commanding else { return }
        if procedure.pending.isEmpty { return finish(procedure, into: &effects) }
        // Both for look-up only.
        var leaders: [GroupID: NodeID] = [:]
        var underWay: [GroupID: Int] = [:]
        for pending in procedure.pending {
            let group = pending.shard.group
            if leaders[group] == nil {
                let leader = groups[group]?.leader.node ?? .none
                leaders[group] = nodes[leader]?.isLive == true ? leader : NodeID.none
            }
            if isUnderWay(pending, leader: leaders[group], now: now) {
                underWay[group, default: 0] += 1
            }
        }
        for (index, pending) in procedure.pending.enumerated() where pending.sendAgainAt <= now {
            let groupID = pending.shard.group
            guard let leader = leaders[groupID], leader != .none,
                underWay[groupID, default: 0] < settings.shardCommandsMax
            else { continue }
            underWay[groupID, default: 0] += 1
            if pending.command != 0 { commands[pending.command] = nil }
            let sent = command(
                leader,
                procedure.isDrop
                    ? .dropShard(pending.shard)
                    : .createShard(pending.shard, procedure.table.partitioning),
                .shard(id, pending.shard.id))
            procedures.update(id) { procedure in
                procedure.pending[index].command = sent
                procedure.pending[index].sentTo = leader
                procedure.pending[index].sendAgainAt = now + settings.commandTimeout
            }
        }
    }

    /// A leader changed or began to serve: procedures that wait for it look again.
    mutating func touchProcedures(of group: GroupID) {
        for procedure in procedures.elements
        where procedure.pending.contains(where: { $0.shard.group == group }) {
            touch(procedure.table.id)
        }
    }

    mutating func expireWaiters(now: Instant) {
        for procedure in procedures.elements {
            let expired = (procedure.waiters + procedure.dropWaiters).filter { $0.deadline <= now }
            guard !expired.isEmpty else { continue }
            for waiter in expired {
                answers.append(
                    (
                        waiter.request,
                        DatabaseError(
                            .unavailable,
                            "table \(procedure.table.name) is still being "
                                + (procedure.isDrop ? "dropped" : "created")
                                + "; it goes on without you")
                    ))
            }
            procedures.update(procedure.table.id) { procedure in
                procedure.waiters.removeAll { $0.deadline <= now }
                procedure.dropWaiters.removeAll { $0.deadline <= now }
            }
        }
    }

    mutating func retryParked(now: Instant, into effects: inout ControllerEffects) {
        guard !parked.isEmpty else { return }
        let waiting = parked
        parked.removeAll()
        for (waiter, request) in waiting { create(waiter, request, now: now, into: &effects) }
    }

    // MARK: Helpers

    private mutating func finish(
        _ procedure: TableProcedure, into effects: inout ControllerEffects
    ) {
        let id = procedure.table.id
        var transaction = MetadataTransaction()
        if procedure.isDrop {
            transaction.changes.append(.delete(key: StoreKey.table(id)))
            for shard in procedure.shards {
                transaction.changes.append(.delete(key: StoreKey.shard(shard.id)))
                forgetHistory(of: shard.id, in: &transaction)
            }
            procedures.update(id) { $0.phase = .finishing }
        } else {
            var table = procedure.table
            table.state = .active
            var active = procedure.shards
            for index in active.indices { active[index].state = .active }
            transaction.put(table)
            for shard in active { transaction.put(shard) }
            procedures.update(id) { procedure in
                procedure.table = table
                procedure.shards = active
                procedure.phase = .finishing
            }
        }
        store(transaction, then: .table(id), into: &effects)
    }

    private mutating func keep(_ table: Table, _ own: [Shard]) {
        tables.set(table, for: table.id)
        for shard in own { shards.set(shard, for: shard.id) }
    }

    /// Sent to the present leader and not yet overdue.
    private func isUnderWay(
        _ pending: TableProcedure.Pending, leader: NodeID?, now: Instant
    ) -> Bool {
        pending.command != 0 && pending.sendAgainAt > now && leader == pending.sentTo
    }
}
