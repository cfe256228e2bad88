// The frame of the rules: when they look, what they must leave alone, how they act or propose.

import KVBase
import ShardCore

extension Controller {
    /// Refusals that are remembered, so that each is noted once a minute only.
    private static let refusalsMax = 1_024

    /// Keys that take most of their shard's requests, of groups above their rating.
    public var hotKeys: [HotKey] { rules.hotKeys }

    /// One look of every rule, once a second.
    mutating func applyRules(now: Instant, into effects: inout ControllerEffects) {
        guard now >= rules.checkAt else { return }
        rules.checkAt = now + settings.commandTimeout
        keepMaintenance(now: now, into: &effects)
    }

    /// Notes in the decision log why a rule does nothing; once a minute for each subject, because
    /// what it says is the same but for its numbers.
    mutating func refuse(
        _ rule: RuleName, _ subject: UInt32, _ text: String, group: GroupID = .none, now: Instant,
        into effects: inout ControllerEffects
    ) {
        rules.refusals.removeAll { now - $0.at >= .seconds(60) }
        guard rules.refusals.count < Self.refusalsMax,
            !rules.refusals.contains(where: { $0.rule == rule && $0.subject == subject })
        else { return }
        rules.refusals.append(RuleState.Refusal(rule: rule, subject: subject, at: now))
        decide("\(rule.rawValue): \(text)", group: group, now: now, into: &effects)
    }

    // MARK: What was stopped

    /// Until when a rule leaves something alone because an operator stopped it there; the operation
    /// that was stopped.
    func stopped(
        _ rule: RuleName, now: Instant, where matches: (OperationRecord) -> Bool
    ) -> OperationID? {
        let hold = runtime.time(.holdAfterCancel)
        return operations.elements.last {
            $0.record.isFinished && $0.record.isStopped && $0.record.origin == rule.rawValue
                && matches($0.record) && age($0, now: now) < hold
        }?.record.id
    }

    /// Time since an operation ended.
    func age(_ status: OperationStatus, now: Instant) -> Nanoseconds {
        let ended = status.record.endedAt
        let passed = wallClock(now)
        guard ended != 0, passed >= ended else { return now - status.reachedAt }
        return .milliseconds(passed - ended)
    }
}
