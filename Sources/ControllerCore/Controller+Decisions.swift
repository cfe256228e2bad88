// The durable log of decisions: what `kvctl why` reads.

import KVBase
import ShardCore

extension Controller {
    /// Decisions kept; the oldest go first.
    static let decisionsMax = 1_000

    /// What may be told of. The others may never reach the store; then their numbers go to other decisions.
    public var storedDecisions: ArraySlice<Decision> {
        decisions.prefix { $0.number <= storedDecision }
    }

    /// Notes a decision for the log and for operators. It goes to the store with the next transaction, at
    /// the end of the step at the latest: what is decided and that it was decided are never apart.
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

    /// Stores the decisions of this step that no transaction took along.
    mutating func storeDecisions(into effects: inout ControllerEffects) {
        guard isActing, !newDecisions.isEmpty else { return }
        store(MetadataTransaction(), then: .nothing, into: &effects)
    }

    mutating func addDecisions(to transaction: inout MetadataTransaction) {
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
    }

    /// Milliseconds since 1970, as far as the shell told; 0 when it did not.
    func wallClock(_ now: Instant) -> UInt64 {
        guard let clock else { return 0 }
        return clock.milliseconds + (now - clock.at).count / 1_000_000
    }
}
