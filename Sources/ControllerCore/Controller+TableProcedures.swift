// The procedures that create and drop tables, step by step.
//
// Creation: store table and shards as creating (new groups with them) -> each shard's group leader
// puts it through its log -> store all as active -> publish -> answer.
// Removal: store table and shards as dropping, which frees the name -> publish -> answer -> each
// group leader removes its shards -> delete the records.

import KVBase
import ShardCore

extension Controller {
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
            for shard in procedure.shards { forget(shard) }
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
                refuse(
                    waiter, .unavailable,
                    "table \(procedure.table.name) is still being "
                        + (procedure.isDrop ? "dropped" : "created")
                        + "; it goes on without you")
            }
            procedures.update(procedure.table.id) { procedure in
                procedure.waiters.removeAll { $0.deadline <= now }
                procedure.dropWaiters.removeAll { $0.deadline <= now }
            }
        }
    }

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
