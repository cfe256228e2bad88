// What operators ask for, and how what they name is found.

import KVBase
import ShardCore

extension Controller {
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
                start(plan, request: request, now: now, into: &effects)
            case .addReplica(let group, let node):
                let plan = try planAddition(to: group, on: node, now: now)
                start(plan, request: request, now: now, into: &effects)
            case .drain(let node): try drain(node, request, now: now, into: &effects)
            case .endDrain(let node): try endDrain(node, request, now: now, into: &effects)
            case .transfer(let group, let node):
                try transfer(group, to: node, request, now: now, into: &effects)
            case .rebalance: try beginRebalance(request, now: now, into: &effects)
            case .backup: try beginBackup(.backup, request, now: now, into: &effects)
            case .verifyBackup: try beginBackup(.verifyBackup, request, now: now, into: &effects)
            case .split(let split):
                let plan = try plan(split: split, now: now)
                start(plan, request: request, now: now, into: &effects)
            case .move(let shard, let target):
                let plan = try plan(moveOf: shard, to: target, now: now)
                start(plan, request: request, now: now, into: &effects)
            case .merge(let shard):
                let plan = try plan(mergeOf: shard, now: now)
                start(plan, request: request, now: now, into: &effects)
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

    func find(_ id: OperationID) throws(DatabaseError) -> OperationStatus {
        guard let status = operations[id] else {
            throw DatabaseError(.refused, "there is no operation \(id); see: kvctl ops list")
        }
        return status
    }

    func find(group id: GroupID) throws(DatabaseError) -> GroupStatus {
        guard let group = groups[id] else {
            let known = groups.elements.prefix(20).map { "\($0.record.id)" }
            throw DatabaseError(
                .refused,
                "there is no group \(id); there are \(known.joined(separator: ", "))")
        }
        return group
    }

    /// Refuses what there is not.
    public func checkKnown(
        _ group: GroupID?, _ shard: ShardID?, _ operation: OperationID?
    ) throws(DatabaseError) {
        if let group { _ = try find(group: group) }
        if let shard { _ = try find(shard: shard) }
        if let operation { _ = try find(operation) }
    }

    func checkFree(_ group: GroupID) throws(DatabaseError) {
        guard let running = operation(on: group) else { return }
        throw DatabaseError(
            .refused,
            "operation \(running.record.id) works on group \(group) (\(running.record.step.words)); wait "
                + "for it, or stop it with: kvctl ops cancel \(running.record.id)")
    }
}
