// Operations: asked for by operators or rules, stored step by step, driven until they end.

import KVBase
import ShardCore

/// What one step of an operation changes, in one transaction.
struct OperationChange: Sendable {
    var record: OperationRecord
    var group: GroupRecord?
    var nodes: [Node] = []
    var retired: [RetiredReplica] = []
    /// What a finished move leaves in the group that the shard came from.
    var former: FormerShard?
    /// Nodes to which no replica is given any more, or again.
    var held: NodeID = .none
    var released: NodeID = .none
    /// Shards as they are from now on, and those that are no more.
    var shards: [Shard] = []
    var removedShards: [Shard] = []
    var newGroups: [GroupRecord] = []
    var usesIDs = false
}

extension Controller {
    /// Finished operations kept for operators.
    static let finishedOperationsMax = 200

    public var openOperations: [OperationStatus] {
        operations.elements.filter { !$0.record.isFinished }
    }

    /// The operation that works on the members or the leader of a group, if any. Those on its shards
    /// go on beside it.
    func operation(on group: GroupID) -> OperationStatus? {
        operations.elements.last {
            !$0.record.isFinished && $0.record.step != .proposed && $0.record.group == group
                && $0.record.work == nil
        }
    }

    // MARK: Requests

    mutating func handle(
        _ request: RequestID, _ body: OperationRequest, now: Instant,
        into effects: inout ControllerEffects
    ) {
        guard isActing else {
            return operationAnswers.append((request, .failure(notActing)))
        }
        do throws(DatabaseError) {
            switch body {
            case .replace(let node, nil, let with):
                try replaceNode(node, with: with, request, now: now, into: &effects)
            case .replace(let node, let group?, let with):
                let plan = try planReplacement(of: node, in: group, with: with, now: now)
                start(
                    plan, origin: "operator", reason: "asked for by the operator",
                    request: request, now: now, into: &effects)
            case .addReplica(let group, let node):
                let plan = try planAddition(to: group, on: node, now: now)
                start(
                    plan, origin: "operator", reason: "asked for by the operator",
                    request: request, now: now, into: &effects)
            case .drain(let node): try drain(node, request, now: now, into: &effects)
            case .endDrain(let node): try endDrain(node, request, now: now, into: &effects)
            case .transfer(let group, let node):
                try transfer(group, to: node, request, now: now, into: &effects)
            case .rebalance: try beginRebalance(request, now: now, into: &effects)
            case .split(let split):
                let plan = try plan(split: split, now: now)
                start(
                    plan, origin: "operator", reason: "asked for by the operator",
                    request: request, now: now, into: &effects)
            case .move(let shard, let target):
                let plan = try plan(moveOf: shard, to: target, now: now)
                start(
                    plan, origin: "operator", reason: "asked for by the operator",
                    request: request, now: now, into: &effects)
            case .merge(let shard):
                let plan = try plan(mergeOf: shard, now: now)
                start(
                    plan, origin: "operator", reason: "asked for by the operator",
                    request: request, now: now, into: &effects)
            case .cancel(let id): try cancel(id, request)
            case .pause(let id): try pause(id, true, request)
            case .resume(let id): try pause(id, false, request)
            case .reverse(let id): try reverse(id, request, now: now, into: &effects)
            case .apply(let id): try apply(id, request, now: now, into: &effects)
            case .configure(let name, let value):
                try configure(name, value, request, now: now, into: &effects)
            case .setWeight(let node, let weight):
                try setWeight(of: node, to: weight, request, now: now, into: &effects)
            case .setSpare(let node, let isSpare):
                try setSpare(node, isSpare, request, now: now, into: &effects)
            case .removeNode(let node):
                try removeNode(node, request, now: now, into: &effects)
            case .maintenance(let node, let time):
                try beginMaintenance(of: node, for: time, request, now: now, into: &effects)
            case .endMaintenance(let node):
                try endMaintenance(of: node, request, now: now, into: &effects)
            }
        } catch {
            operationAnswers.append((request, .failure(error)))
            decide("refused \(body.words): \(error.message)", now: now, into: &effects)
        }
    }

    func find(node name: String) throws(DatabaseError) -> NodeStatus {
        guard let node = nodes.elements.first(where: { $0.record.name == name }) else {
            let known = nodes.elements.prefix(20).map(\.record.name).joined(separator: ", ")
            throw DatabaseError(.refused, "there is no node named \(name); there are \(known)")
        }
        return node
    }

    func checkFree(_ group: GroupID) throws(DatabaseError) {
        guard let running = operation(on: group) else { return }
        throw DatabaseError(
            .refused,
            "operation \(running.record.id) works on group \(group) (\(running.record.step)); wait "
                + "for it, or stop it with: kvctl ops cancel \(running.record.id)")
    }

    /// Who leads the group and who would, or why that is refused.
    public func planTransfer(
        of id: GroupID, to name: String
    ) throws(DatabaseError) -> (leader: Placement, next: Placement) {
        let node = try find(node: name)
        guard let group = groups[id] else {
            throw DatabaseError(.refused, "there is no group \(id)")
        }
        let places = group.record.placements
        guard let index = group.placementIndex(node: node.record.id) else {
            let names = places.map { self.name($0.node) }.joined(separator: ", ")
            throw DatabaseError(
                .refused, "\(name) holds no replica of group \(id); \(names) do")
        }
        try checkFree(id)
        guard let leader = places.first(where: { $0.node == group.leader.node }) else {
            throw DatabaseError(.unavailable, "group \(id) has no leader now; repeat")
        }
        guard node.isLive, group.reports[index]?.state == .active else {
            throw DatabaseError(.refused, "the replica of group \(id) on \(name) is not active")
        }
        return (leader, places[index])
    }

    private mutating func transfer(
        _ id: GroupID, to name: String, _ request: RequestID, now: Instant,
        into effects: inout ControllerEffects
    ) throws(DatabaseError) {
        let (leader, next) = try planTransfer(of: id, to: name)
        let record = OperationRecord(
            id: IDAllocators.take(&nextOperation), kind: .transfer, step: .moving,
            origin: "operator", reason: "asked for by the operator", group: id, old: leader,
            new: next)
        begin(
            OperationChange(record: record, usesIDs: true), request: request,
            "moves the leader of group \(id) from \(self.name(leader.node)) to \(name)", now: now,
            into: &effects)
    }

    func find(_ id: OperationID) throws(DatabaseError) -> OperationStatus {
        guard let status = operations[id] else {
            throw DatabaseError(.refused, "there is no operation \(id); see: kvctl ops list")
        }
        return status
    }

    mutating func cancel(_ id: OperationID, _ request: RequestID) throws(DatabaseError) {
        let status = try find(id)
        guard !status.record.isFinished else {
            throw DatabaseError(.refused, "operation \(id) has ended: \(status.record.step)")
        }
        guard status.cancellations.count < 16 else {
            throw DatabaseError(.overloaded, "too many cancellations of operation \(id) wait")
        }
        operations.update(id) { $0.cancellations.append(request) }
        touchedOperations.append(id)
    }

    // MARK: Storing

    /// Stores a new operation and takes it up once it is there.
    mutating func begin(
        _ change: OperationChange, request: RequestID?, _ decision: String, now: Instant,
        into effects: inout ControllerEffects
    ) {
        var change = change
        let at = wallClock(now)
        change.record.startedAt = at
        change.record.changedAt = at
        var status = OperationStatus(record: change.record, reachedAt: now)
        if let request { status.requests = [request] }
        operations.set(status, for: change.record.id)
        decide(
            "operation \(change.record.id) \(decision), because \(change.record.reason)",
            nodes: [change.record.old.node, change.record.new.node].filter { $0 != .none },
            group: change.record.group, operation: change.record.id,
            shard: change.record.work?.shard ?? .none, now: now, into: &effects)
        save(change, now: now, into: &effects)
    }

    /// Stores the next state of an operation. Nothing is done for it before that is durable.
    mutating func save(
        _ change: OperationChange, now: Instant, into effects: inout ControllerEffects
    ) {
        var change = change
        let id = change.record.id
        change.record.changedAt = wallClock(now)
        if change.record.isFinished { change.record.endedAt = change.record.changedAt }
        var transaction = MetadataTransaction()
        transaction.put(StoreKey.operation(id)) { change.record.encode(into: &$0) }
        keepHistory(of: change.record, now: now, in: &transaction)
        if change.usesIDs {
            transaction.put(ids)
            transaction.put(StoreKey.nextOperation) { $0.write(nextOperation) }
        }
        if let group = change.group {
            transaction.put(group)
            groups.update(group.group.id) { $0.isStoring = true }
        }
        for node in change.nodes { transaction.put(node) }
        for shard in change.shards { transaction.put(shard) }
        for shard in change.removedShards {
            transaction.changes.append(.delete(key: StoreKey.shard(shard.id)))
        }
        for group in change.newGroups { transaction.put(group) }
        for replica in change.retired {
            transaction.put(StoreKey.retired(replica.replica)) { replica.encode(into: &$0) }
        }
        if let former = change.former {
            transaction.put(StoreKey.former(id)) { former.encode(into: &$0) }
        }
        if change.held != .none { transaction.put(StoreKey.held(change.held)) { _ in } }
        if change.released != .none {
            transaction.changes.append(.delete(key: StoreKey.held(change.released)))
        }
        if change.record.isFinished {
            let finished = operations.elements.filter(\.record.isFinished).map(\.record.id)
            for old in finished.dropLast(Self.finishedOperationsMax - 1) {
                operations.remove(old)
                transaction.changes.append(.delete(key: StoreKey.operation(old)))
            }
        }
        operations.update(id) { status in
            status.isStoring = true
            status.storing = change.record.step
            // The outcome of a command of the same step still counts.
            guard status.record.step != change.record.step else { return }
            commands[status.command] = nil
            for command in status.progress.sent { commands[command] = nil }
        }
        store(transaction, then: .operation(change), into: &effects)
    }

    /// Ends an operation.
    mutating func finish(
        _ change: OperationChange, as step: OperationRecord.Step, _ outcome: String, now: Instant,
        into effects: inout ControllerEffects
    ) {
        var change = change
        change.record.step = step
        change.record.outcome = outcome
        decide(
            "operation \(change.record.id) is \(step): \(outcome)",
            nodes: [change.record.old.node, change.record.new.node].filter { $0 != .none },
            group: change.record.group, operation: change.record.id,
            shard: change.record.work?.shard ?? .none, now: now, into: &effects)
        save(change, now: now, into: &effects)
    }

    mutating func operationStored(
        _ change: OperationChange, now: Instant, into effects: inout ControllerEffects
    ) {
        let id = change.record.id
        let isNewStep =
            operations[id]?.record.step != change.record.step
            || operations[id]?.record.new != change.record.new
        var requests: [RequestID] = []
        operations.update(id) { status in
            status.record = change.record
            status.isStoring = false
            requests = status.requests
            status.requests = []
            if isNewStep {
                status.command = 0
                status.sendAgainAt = .origin
                status.isConfirmed = false
                status.note = ""
                status.reached = 0
                status.reachedAt = now
                status.progress = ShardProgress(mayHaveSent: false)
            }
        }
        for node in change.nodes {
            nodes.update(node.id) { $0.record.isSpare = node.isSpare }
            if let record = nodes[node.id]?.record { changes.append(.node(record)) }
        }
        for replica in change.retired { retired.set(replica, for: replica.replica) }
        if let record = change.former {
            former.set(FormerShardStatus(record: record), for: id)
        }
        if change.held != .none { nodes.update(change.held) { $0.isHeld = true } }
        if change.released != .none { nodes.update(change.released) { $0.isHeld = false } }
        take(change.shards, removed: change.removedShards)
        formed(change.newGroups, now: now)
        if let group = change.group {
            takeOver(placementsOf: group, now: now)
            consider(group.group.id, now: now, into: &effects)
        }
        if change.record.isFinished, let work = change.record.work {
            // What was measured before says nothing about the groups as they are now.
            rules.hot.remove(work.source)
            rules.hot.remove(work.target)
        }
        for request in requests { operationAnswers.append((request, .success(id))) }
        pump(id, now: now, into: &effects)
        if change.record.isFinished, change.record.parent != .none {
            operations.update(change.record.parent) { $0.sendAgainAt = .origin }
            pump(change.record.parent, now: now, into: &effects)
        }
    }

    // MARK: Driving

    /// Takes an operation as far as it goes now.
    mutating func pump(
        _ id: OperationID, now: Instant, into effects: inout ControllerEffects
    ) {
        guard isActing, let status = operations[id], !status.isStoring else { return }
        guard !status.record.isFinished else {
            let ended = DatabaseError(
                .refused, "operation \(id) has ended: \(status.record.step)")
            for request in status.cancellations + status.pauses.map(\.request) {
                operationAnswers.append((request, .failure(ended)))
            }
            operations.update(id) { status in
                status.cancellations = []
                status.pauses = []
            }
            return
        }
        if !status.pauses.isEmpty { return storePause(status, now: now, into: &effects) }
        if !status.cancellations.isEmpty || wantsCancel(status) {
            if let obstacle = obstacleToCancel(status.record) {
                for request in status.cancellations {
                    operationAnswers.append((request, .failure(obstacle)))
                    decide(
                        "refused cancel of operation \(id): \(obstacle.message)",
                        operation: id, now: now, into: &effects)
                }
                operations.update(id) { $0.cancellations = [] }
            } else {
                return startCancel(status, now: now, into: &effects)
            }
        }
        switch status.record.kind {
        case .replaceReplica, .addReplica:
            guard status.record.step != .proposed else { break }
            pumpReplacement(status, now: now, into: &effects)
        case .replaceNode, .drain: pumpNode(status, now: now, into: &effects)
        case .rebalance: pumpRebalance(status, now: now, into: &effects)
        case .transfer: pumpTransfer(status, now: now, into: &effects)
        case .split, .move, .merge: pumpShards(status, now: now, into: &effects)
        }
    }

    /// A part of a cancelled operation is cancelled too.
    private func wantsCancel(_ status: OperationStatus) -> Bool {
        guard !status.record.isCancelled, status.record.parent != .none,
            let parent = operations[status.record.parent]
        else { return false }
        return parent.record.isCancelled
    }

    private mutating func startCancel(
        _ status: OperationStatus, now: Instant, into effects: inout ControllerEffects
    ) {
        let id = status.record.id
        var record = status.record
        operations.update(id) { status in
            status.requests += status.cancellations
            status.cancellations = []
        }
        if record.isCancelled {
            // Asked for before: whoever asks again is answered at once.
            for request in operations[id]?.requests ?? [] {
                operationAnswers.append((request, .success(id)))
            }
            operations.update(id) { $0.requests = [] }
            return
        }
        record.isCancelled = true
        record.isPaused = false
        record.isStopped = !status.cancellations.isEmpty
        if record.isStopped, let rule = RuleName(rawValue: record.origin) {
            let setting = RuntimeSetting.holdAfterCancel
            decide(
                "\(rule.rawValue) leaves this alone for \(setting.write(runtime[setting])): the "
                    + "operator stopped operation \(id)",
                nodes: [record.old.node].filter { $0 != .none },
                group: record.group, operation: id, now: now, into: &effects)
        }
        switch record.kind {
        case .transfer:
            finish(
                OperationChange(record: record), as: .cancelled, "stopped by the operator",
                now: now, into: &effects)
        case .replaceReplica where record.step == .proposed,
            .addReplica where record.step == .proposed:
            finish(
                OperationChange(record: record), as: .cancelled, "the proposal was withdrawn",
                now: now, into: &effects)
        case .replaceReplica where record.step == .creating,
            .addReplica where record.step == .creating:
            endReplacement(record, as: .cancelled, "stopped before it began", now: now, &effects)
        case .replaceReplica, .addReplica:
            record.step = .retracting
            decide(
                "operation \(id) is being cancelled: takes \(name(record.new.node)) out of group "
                    + "\(record.group) again",
                nodes: [record.new.node], group: record.group, operation: id, now: now,
                into: &effects)
            save(OperationChange(record: record), now: now, into: &effects)
        case .replaceNode, .drain:
            save(
                OperationChange(record: record, released: record.old.node), now: now,
                into: &effects)
        case .rebalance: save(OperationChange(record: record), now: now, into: &effects)
        case .split, .move, .merge:
            cancelShards(status, record, now: now, into: &effects)
        }
    }

    private mutating func pumpTransfer(
        _ status: OperationStatus, now: Instant, into effects: inout ControllerEffects
    ) {
        let record = status.record
        guard let group = groups[record.group] else { return }
        if group.leader.node == record.new.node {
            return finish(
                OperationChange(record: record), as: .done, "\(name(record.new.node)) leads",
                now: now, into: &effects)
        }
        guard now - status.reachedAt < settings.requestDeadline else {
            return finish(
                OperationChange(record: record), as: .failed,
                "\(name(record.new.node)) did not take over within "
                    + "\(settings.requestDeadline.count / 1_000_000_000) s", now: now,
                into: &effects)
        }
        guard group.hasLeader, now >= status.sendAgainAt else { return }
        send(
            record.id, to: group.leader.node,
            .transferLeadership(record.group, to: record.new.replica), now: now)
    }

    /// Sends a step's command; repeated until the step is seen to be done.
    mutating func send(
        _ id: OperationID, to node: NodeID, _ action: NodeCommand.Action, now: Instant
    ) {
        guard nodes[node]?.isLive == true else { return }
        let sent = command(node, action, .operation(id))
        operations.update(id) { status in
            commands[status.command] = nil
            status.command = sent
            status.sendAgainAt = now + settings.commandTimeout
        }
    }

    mutating func operationOutcome(
        _ id: OperationID, _ outcome: CommandOutcome, now: Instant,
        into effects: inout ControllerEffects
    ) {
        guard let status = operations[id] else { return }
        if status.record.work != nil {
            return shardsOutcome(status, outcome, now: now, into: &effects)
        }
        guard status.command == outcome.id else { return }
        let error = outcome.error
        operations.update(id) { status in
            status.command = 0
            if let error {
                status.note = error.message
                status.sendAgainAt = now + settings.commandRetryDelay * 4
            } else {
                status.isConfirmed = true
                status.note = ""
            }
        }
        if let error, status.record.step == .creating, error.code != .unavailable {
            return retarget(
                status.record, "\(name(status.record.new.node)) refused: \(error.message)",
                now: now, into: &effects)
        }
        pump(id, now: now, into: &effects)
    }
}
