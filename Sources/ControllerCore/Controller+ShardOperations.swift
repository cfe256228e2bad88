// Operations on shards: how they begin, and the steps that concern one group: the cut, the merge.
// The move between two groups is in Controller+ShardMoves.swift.
//
// The stored step and the shards' records say where an operation stands; every command can be
// repeated (docs/internals/migration.md), so a controller that takes over repeats the step's.

import KVBase
import ShardCore

extension Controller {
    // MARK: Who works on what

    /// The unfinished operation that works on the shard; those that are only proposed do not count.
    public func operation(onShard id: ShardID) -> OperationStatus? {
        operations.elements.last { status in
            !status.record.isFinished && status.record.step != .proposed
                && status.record.work?.names(id) == true
        }
    }

    func operation(onTable id: TableID) -> OperationStatus? {
        operations.elements.last { status in
            !status.record.isFinished && status.record.step != .proposed
                && status.record.work?.table == id
        }
    }

    func isWorkedOn(_ what: String, _ running: OperationStatus) -> DatabaseError {
        let id = running.record.id
        return DatabaseError(
            .refused,
            "operation \(id) (\(running.record.kind.words), \(running.record.step.words)) works on \(what); wait "
                + "for it, or stop it with: kvctl ops cancel \(id)")
    }

    // MARK: Starting

    /// Stores what was planned as an operation under way. `isProposal`: it waits to be applied.
    /// Refused when the world moved since it was planned.
    mutating func start(
        _ plan: ShardPlan, origin: String = OperationRecord.operatorOrigin,
        reason: String = OperationRecord.operatorReason, isProposal: Bool = false,
        parent: OperationID = .none, request: RequestID? = nil, now: Instant,
        into effects: inout ControllerEffects
    ) {
        do throws(DatabaseError) {
            try check(plan)
        } catch {
            if let request { operationAnswers.append((request, .failure(error))) }
            return decide(
                "refused \(plan.kind) of shard \(plan.shard.id): \(error.message)",
                shard: plan.shard.id, now: now, into: &effects)
        }
        if isProposal {
            let older = operations.elements.filter { status in
                status.record.step == .proposed && !status.isStoring
            }
            let twins = older.filter { $0.record.work?.shard == plan.shard.id }
            let surplus = older.count - twins.count + 1 - settings.proposalsMax
            for status in twins + older.prefix(max(0, surplus)) {
                finish(
                    OperationChange(record: status.record), as: .cancelled,
                    "gives way to a later proposal", now: now, into: &effects)
            }
        }
        var record = OperationRecord(
            id: IDAllocators.take(&nextOperation), kind: plan.kind,
            step: isProposal ? .proposed : .forming, origin: origin, reason: reason,
            parent: parent, group: plan.work.source, old: .nowhere, new: .nowhere,
            work: plan.work)
        if plan.movesUpper || plan.kind == .split {
            let upper: ShardID = IDAllocators.take(&ids.shard)
            record.work?.upper = upper
            if plan.movesUpper { record.work?.moving = upper }
        }
        var change = OperationChange(record: record, usesIDs: true)
        if !isProposal { form(plan.formsOn, for: &change, engine: plan.table.engine) }
        begin(
            change, request: request,
            (isProposal ? "proposes: it " : "") + describe(plan), now: now, into: &effects)
    }

    /// Adds the group that a plan forms to the transaction that starts it.
    private mutating func form(
        _ places: [Placement], for change: inout OperationChange, engine: EngineKind
    ) {
        guard !places.isEmpty else { return }
        let group = Group(
            id: IDAllocators.take(&ids.group), engine: engine,
            placements: places.map {
                Placement(
                    replica: IDAllocators.take(&ids.replica), node: $0.node, disk: $0.disk)
            }, state: .creating)
        let record = GroupRecord(group: group)
        plannedGroups.append(record)
        change.newGroups = [record]
        for place in places where nodes[place.node]?.record.isSpare == true {
            change.nodes.append(takeFromPool(place.node))
        }
        change.record.work?.target = group.id
    }

    /// Refuses a plan when what it rests on has changed.
    private func check(_ plan: ShardPlan) throws(DatabaseError) {
        for planned in [plan.shard, plan.neighbour].compactMap({ $0 }) {
            guard let present = shards[planned.id] else {
                throw worldMoved("there is no shard \(planned.id) any more")
            }
            guard present == planned else {
                throw worldMoved(
                    "shard \(planned.id) is in group \(present.group) with epoch \(present.epoch), "
                        + "the plan is for group \(planned.group) and epoch \(planned.epoch)")
            }
            if let running = operation(onShard: planned.id) {
                throw isWorkedOn("shard \(planned.id)", running)
            }
        }
        guard tables[plan.work.table]?.state == .active, procedures[plan.work.table] == nil else {
            throw worldMoved("table \(plan.table.name) is being dropped")
        }
        for place in plan.formsOn {
            guard let node = nodes[place.node], node.isLive, !node.isHeld else {
                throw worldMoved("\(name(place.node)) cannot take a replica any more")
            }
        }
    }

    func worldMoved(_ text: String) -> DatabaseError {
        DatabaseError(.refused, "the world moved: \(text)")
    }

    // MARK: Proposals

    /// Starts what was proposed. When the shards are not as they were, it ends as failed.
    mutating func apply(
        _ id: OperationID, _ request: RequestID, now: Instant,
        into effects: inout ControllerEffects
    ) throws(DatabaseError) {
        let status = try find(id)
        if status.record.step == .proposed, status.record.kind.bringsReplica {
            return try applyReplacement(status, request, now: now, into: &effects)
        }
        guard status.record.step == .proposed, let work = status.record.work else {
            throw DatabaseError(
                .refused,
                "operation \(id) is \(status.record.step.words), not proposed: there is nothing to "
                    + "apply")
        }
        guard !status.isStoring else {
            throw DatabaseError(.unavailable, "operation \(id) is being stored; repeat")
        }
        var record = status.record
        if let change = whatMoved(since: work) {
            let error = worldMoved(change)
            finish(
                OperationChange(record: record), as: .failed, error.message, now: now,
                into: &effects)
            throw error
        }
        for shard in [work.shard, work.neighbour] {
            guard let running = operation(onShard: shard) else { continue }
            throw isWorkedOn("shard \(shard)", running)
        }
        let choice = try target(ofProposed: work, now: now)
        record.work?.target = choice.group
        record.step = .forming
        var change = OperationChange(record: record, usesIDs: true)
        if let engine = tables[work.table]?.engine {
            form(choice.formsOn, for: &change, engine: engine)
        }
        operations.update(id) { $0.requests.append(request) }
        decide(
            "operation \(id) is applied by the operator", group: record.group, operation: id,
            shard: work.shard, now: now, into: &effects)
        save(change, now: now, into: &effects)
    }

    /// What is not any more as it was when the work was planned, or nil.
    func whatMoved(since work: ShardWork) -> String? {
        guard tables[work.table]?.state == .active, procedures[work.table] == nil else {
            return "its table was dropped"
        }
        for (id, epoch) in [(work.shard, work.epoch), (work.neighbour, work.neighbourEpoch)]
        where id != .none {
            guard let shard = shards[id] else { return "there is no shard \(id) any more" }
            guard shard.epoch == epoch else {
                return "shard \(id) has epoch \(shard.epoch), the plan is for epoch \(epoch)"
            }
        }
        let owner = work.neighbour == .none ? work.shard : work.neighbour
        guard work.moving == .none || shards[owner]?.group == work.source else {
            return "shard \(owner) is not in group \(work.source) any more"
        }
        return nil
    }

    /// The group that was planned, or another one where that does not take the shard now and it
    /// need not be that one.
    private func target(
        ofProposed work: ShardWork, now: Instant
    ) throws(DatabaseError) -> TargetChoice {
        guard work.moving != .none, let table = tables[work.table] else {
            return TargetChoice(group: .none)
        }
        do throws(DatabaseError) {
            return try choose(
                work.target == .none ? .any : .group(work.target), for: table, from: work.source,
                bytes: work.bytes, operations: 0, now: now)
        } catch {
            guard work.neighbour == .none, work.target != .none else { throw error }
            return try choose(
                .any, for: table, from: work.source, bytes: work.bytes, operations: 0, now: now)
        }
    }

    // MARK: Driving

    mutating func pumpShards(
        _ status: OperationStatus, now: Instant, into effects: inout ControllerEffects
    ) {
        guard let work = status.record.work else { return }
        switch status.record.step {
        case .forming: pumpForming(status, work, now: now, into: &effects)
        case .splitting: pumpSplitting(status, work, now: now, into: &effects)
        case .merging: pumpMerging(status, work, now: now, into: &effects)
        case .switching, .declining, .copying, .verifying, .finishing:
            pumpMove(status, work, now: now, into: &effects)
        default: break
        }
    }

    /// The first step that the work still asks for; nil when all is done.
    func nextStep(of work: ShardWork) -> OperationRecord.Step? {
        if work.cut != nil, shards[work.upper] == nil { return .splitting }
        if let moving = shards[work.moving], moving.group != work.target { return .switching }
        if work.neighbour != .none, shards[work.neighbour] != nil { return .merging }
        return nil
    }

    /// Waits until both groups serve and have their turn.
    private mutating func pumpForming(
        _ status: OperationStatus, _ work: ShardWork, now: Instant,
        into effects: inout ControllerEffects
    ) {
        let record = status.record
        guard !isHeldBack(record) else {
            operations.update(record.id) { $0.reachedAt = now }
            return
        }
        guard let step = nextStep(of: work) else {
            return finish(
                OperationChange(record: record), as: .done, "nothing was left to do", now: now,
                into: &effects)
        }
        if work.moving != .none, let target = groups[work.target], target.record.state != .active,
            now - status.reachedAt > settings.stallTimeout
        {
            let lost = target.record.placements.enumerated().filter { index, placement in
                target.createdMask & (1 << index) == 0 || nodes[placement.node]?.isLive != true
            }
            let names = lost.map { name($0.element.node) }.joined(separator: ", ")
            return finish(
                OperationChange(record: record), as: .failed,
                "group \(work.target) did not come up in "
                    + "\(settings.stallTimeout.count / 1_000_000_000) s"
                    + (names.isEmpty ? "" : ": no replica on \(names)")
                    + "; it stays, and takes shards once it serves", now: now, into: &effects)
        }
        if let obstacle = obstacle(to: record, work) {
            return note(obstacle, of: record.id)
        }
        var next = record
        next.step = step
        effects.append(.decided("operation \(record.id) goes on: \(step.words)"))
        save(OperationChange(record: next), now: now, into: &effects)
    }

    private mutating func pumpSplitting(
        _ status: OperationStatus, _ work: ShardWork, now: Instant,
        into effects: inout ControllerEffects
    ) {
        let record = status.record
        guard let shard = shards[work.shard], let cut = work.cut else { return }
        guard status.isConfirmed else {
            return tell(
                status, shard.group,
                .split(shard.id, shard.epoch, at: cut, into: work.upper), now: now)
        }
        var lower = shard
        var upper = shard
        lower.epoch = shard.epoch.next()
        lower.range.end = cut
        upper.id = work.upper
        upper.epoch = lower.epoch
        upper.range.start = cut
        var change = OperationChange(record: record)
        change.shards = [lower, upper]
        let done =
            "shard \(shard.id) was cut at \(keyText(cut, of: work.table)): shard \(upper.id) has the "
            + "keys from there on"
        if record.isCancelled {
            return finish(
                change, as: .cancelled, "stopped by the operator; the cut stays: \(done)",
                now: now, into: &effects)
        }
        guard work.moving != .none else {
            return finish(change, as: .done, done, now: now, into: &effects)
        }
        change.record.step = isHeldBack(record) ? .forming : .switching
        if serving(work.target) == nil { change.record.step = .forming }
        change.record.outcome = done
        decide(
            "operation \(record.id): \(done)", group: shard.group, operation: record.id,
            shard: shard.id, now: now, into: &effects)
        save(change, now: now, into: &effects)
    }

    private mutating func pumpMerging(
        _ status: OperationStatus, _ work: ShardWork, now: Instant,
        into effects: inout ControllerEffects
    ) {
        guard let left = shards[work.shard], let right = shards[work.neighbour] else { return }
        guard status.isConfirmed else {
            return tell(
                status, left.group,
                .merge(left.id, left.epoch, with: right.id, at: right.epoch), now: now)
        }
        var whole = left
        whole.range.end = right.range.end
        whole.epoch = max(left.epoch, right.epoch).next()
        var change = OperationChange(record: status.record)
        change.shards = [whole]
        change.removedShards = [right]
        finish(
            change, as: .done,
            "shard \(left.id) has taken in shard \(right.id); to undo: "
                + splitAdvice(right.range.start, of: work.table) + " --to none", now: now,
            into: &effects)
    }
}
