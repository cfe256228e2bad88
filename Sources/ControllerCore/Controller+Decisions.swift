// The durable log of decisions: what `kvctl why` reads.

import KVBase
import ShardCore

extension Controller {
    /// Decisions kept; the oldest go first.
    static let decisionsMax = 1_000

    /// Notes a decision for the log and for operators. It is stored with the end of the step.
    mutating func decide(
        _ text: String, nodes: [NodeID] = [], group: GroupID = .none,
        operation: OperationID = .none, shard: ShardID = .none, now: Instant,
        into effects: inout ControllerEffects
    ) {
        effects.append(.decided(text))
        let decision = Decision(
            number: nextDecision, at: wallClock(now), nodes: nodes, group: group,
            operation: operation, shard: shard, text: text)
        nextDecision += 1
        newDecisions.append(decision)
    }

    /// Stores the decisions of this step in one transaction.
    mutating func storeDecisions(into effects: inout ControllerEffects) {
        guard isActing, !newDecisions.isEmpty else { return }
        var transaction = MetadataTransaction()
        for decision in newDecisions {
            transaction.put(StoreKey.decision(decision.number)) { decision.encode(into: &$0) }
        }
        decisions += newDecisions
        newDecisions.removeAll()
        let surplus = decisions.count - Self.decisionsMax
        if surplus > 0 {
            for decision in decisions[..<surplus] {
                transaction.changes.append(.delete(key: StoreKey.decision(decision.number)))
            }
            decisions.removeFirst(surplus)
        }
        store(transaction, then: .nothing, into: &effects)
    }

    /// Milliseconds since 1970, as far as the shell told; 0 when it did not.
    func wallClock(_ now: Instant) -> UInt64 {
        guard let clock else { return 0 }
        return clock.milliseconds + (now - clock.at).count / 1_000_000
    }
}
