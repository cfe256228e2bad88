// Transactions on their way to the store, and what follows once they are durable.

import KVBase
import ShardCore

extension Controller {
    /// Stores a transaction under this controller's term, together with what was decided in this step.
    mutating func store(
        _ transaction: MetadataTransaction, then continuation: Continuation,
        into effects: inout ControllerEffects
    ) {
        precondition(isActing)
        var fenced = transaction
        addDecisions(to: &fenced)
        fenced.comparisons.append(.init(key: StoreKey.term, modRevision: termRevision))
        issue(fenced, continuation, into: &effects)
    }

    mutating func issue(
        _ transaction: MetadataTransaction, _ continuation: Continuation,
        into effects: inout ControllerEffects
    ) {
        ticketsIssued += 1
        let ticket = StoreTicket(ticketsIssued)
        continuations.append((ticket, continuation, decisions.last?.number ?? 0))
        effects.append(.store(transaction, ticket))
    }

    mutating func stored(
        _ ticket: StoreTicket, at revision: Revision, now: Instant,
        into effects: inout ControllerEffects
    ) {
        precondition(
            continuations.first?.ticket == ticket, "the store answers in order, once each")
        let (_, continuation, decision) = continuations.removeFirst()
        storedDecision = max(storedDecision, decision)
        self.revision = max(self.revision, revision)
        switch continuation {
        case .takenOver: tookOver(now: now, into: &effects)
        case .admission(let admission): admitted(admission, now: now, into: &effects)
        case .groupsFormed(let records): formed(records, now: now)
        case .groupChanged(let record): changed(record, now: now)
        case .nominated(let list): nominated(list, now: now)
        case .table(let id): tableStored(id, now: now, into: &effects)
        case .operation(let change): operationStored(change, now: now, into: &effects)
        case .released(let node, let request, let operation):
            nodes.update(node) { $0.isHeld = false }
            operationAnswers.append((request, .success(operation)))
        case .configured(let settings, let request): configurationStored(settings, request)
        case .nodeChanged(let change, let request): nodeChanged(change, request, into: &effects)
        case .dissolved(let group, let replicas, let leader):
            dissolved(group, replicas, leader: leader, now: now)
        case .nothing: break
        }
    }
}
