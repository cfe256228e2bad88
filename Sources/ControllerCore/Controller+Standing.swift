// How a controller comes to act, and how it resigns.

import KVBase
import ShardCore

extension Controller {
    mutating func takeOver(into effects: inout ControllerEffects) {
        precondition(standing == .idle)
        if let actingBefore, actingBefore.holder != settings.name {
            effects.append(.standBy(holder: actingBefore.holder))
            return
        }
        standing = .takingOver
        term = term.next()
        var transaction = MetadataTransaction()
        transaction.comparisons = [
            .init(key: StoreKey.term, modRevision: termRevision),
            .init(key: StoreKey.acting, modRevision: actingBefore?.revision ?? .none),
        ]
        if isFounding {
            transaction.comparisons.append(.init(key: StoreKey.cluster, modRevision: .none))
            transaction.put(StoreKey.cluster) { $0.write(cluster) }
            transaction.put(ids)
        }
        transaction.put(StoreKey.term) {
            $0.write(term)
            $0.write(settings.name)
        }
        transaction.changes.append(
            .put(key: StoreKey.acting, value: Bytes(settings.name.utf8), lease: lease))
        issue(transaction, .takenOver, into: &effects)
    }

    mutating func tookOver(now: Instant, into effects: inout ControllerEffects) {
        standing = .acting
        termRevision = revision
        actingSince = now
        lastUnrest = now
        map.begin(term: term)
        for group in groups.elements {
            groups.update(group.record.id) { $0.leaderlessSince = now }
            attend(group.record.id)
        }
        for node in nodes.elements {
            nodes.update(node.record.id) { $0.lastHeard = now }
        }
        for operation in openOperations {
            operations.update(operation.record.id) { $0.reachedAt = now }
        }
        for procedure in procedures.elements { touch(procedure.table.id) }
        for objection in rules.objections { decide(objection, now: now, into: &effects) }
        effects.append(.acting(term))
        decide(
            "acts in term \(term) for cluster \(hex(cluster)): \(settings.name)", now: now,
            into: &effects)
    }

    mutating func resign(_ error: DatabaseError, into effects: inout ControllerEffects) {
        standing = .resigned
        for procedure in procedures.elements {
            for waiter in procedure.waiters + procedure.dropWaiters {
                effects.append(.answer(waiter.request, notActing))
            }
        }
        for (waiter, _) in parked { effects.append(.answer(waiter.request, notActing)) }
        for (request, error) in answers { effects.append(.answer(request, error ?? notActing)) }
        for operation in operations.elements {
            for request in operation.requests + operation.cancellations
                + operation.pauses.map(\.request)
            {
                effects.append(.operationAnswer(request, .failure(notActing)))
            }
        }
        for (request, _) in operationAnswers {
            effects.append(.operationAnswer(request, .failure(notActing)))
        }
        effects.append(.resign(error))
    }

    var notActing: DatabaseError {
        DatabaseError(.unavailable, "this controller does not act; ask again")
    }
}
