// Requests to create and drop tables. Each begins a durable procedure, which survives a change of
// leader or controller (Controller+TableProcedures.swift).

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
                refuse(waiter, .tableExists, "there is a table named \(name)")
            } else if procedures[id] == nil {
                answers.append((waiter.request, nil))
            } else {
                procedures.update(id) { $0.waiters.append(waiter) }
            }
            return
        }
        guard tables.count < Limits.tablesMax else {
            return refuse(waiter, .tooLarge, "a cluster holds at most \(Limits.tablesMax) tables")
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

    mutating func refuse(_ waiter: TableProcedure.Waiter, _ code: ErrorCode, _ message: String) {
        answers.append((waiter.request, DatabaseError(code, message)))
    }

    private mutating func drop(
        _ waiter: TableProcedure.Waiter, _ name: String, into effects: inout ControllerEffects
    ) {
        guard let id = names[name] else {
            return refuse(waiter, .tableNotFound, "there is no table named \(name)")
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
    mutating func abandon(_ id: TableID, into effects: inout ControllerEffects) {
        guard let procedure = procedures[id], !procedure.isDrop else { return }
        for waiter in procedure.waiters {
            refuse(waiter, .tableNotFound, "table \(procedure.table.name) was dropped meanwhile")
        }
        beginDrop(
            procedure.table, shards: procedure.shards, procedure.dropWaiters, into: &effects)
    }

    mutating func beginDrop(
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

    mutating func retryParked(now: Instant, into effects: inout ControllerEffects) {
        guard !parked.isEmpty else { return }
        let waiting = parked
        parked.removeAll()
        for (waiter, request) in waiting { create(waiter, request, now: now, into: &effects) }
    }
}
