// Who leads: reports, nominations and the balance of leaders.
//
// A group without a leader gets a nominee at a term above every known one: stored first, then told.
// A nominee that does not lead in time is followed by the next. A leader that is heard of is never
// deposed here; safety never depends on any of this, for the nominee must still win its group.

import KVBase
import ShardCore

extension Controller {
    mutating func observe(
        _ report: ReplicaReport, of node: NodeID, now: Instant,
        into effects: inout ControllerEffects
    ) {
        guard let group = groups[report.group],
            let index = group.placementIndex(replica: report.replica),
            group.record.placements[index].node == node
        else { return observeExtra(report, of: node, now: now, into: &effects) }
        groups.update(report.group) { group in
            group.reports[index] = report
            group.reportedAt[index] = now
            group.createdMask |= 1 << index
        }
        let leads = report.role == .leader && report.state == .active
        if leads {
            if report.term > group.leader.term
                || (report.term == group.leader.term && group.leader.node != node)
            {
                install(
                    GroupLeader(group: report.group, term: report.term, node: node), now: now,
                    into: &effects)
            }
            if let known = groups[report.group], known.leader.node == node,
                known.leader.term == report.term, known.isServing != report.isServing
            {
                groups.update(report.group) { $0.isServing = report.isServing }
                touchProcedures(of: report.group)
                touchMoves(of: report.group)
            }
            if groups[report.group]?.leader.node == node {
                observeLags(report, now: now, into: &effects)
            }
        } else if group.leader.node == node, report.term >= group.leader.term {
            // It stepped down: a hand-over may be under way, unless its disk failed.
            loseLeader(report.group, isLost: report.state == .failed, now: now)
        }
        if !leads || group.record.state != .active || group.attempt != nil
            || group.createdMask != group.stored.createdMask
        {
            maybeConsider(report.group, now: now, into: &effects)
        }
    }

    /// Records that nobody leads. `isLost`: the leader's node is gone, so nobody hands over.
    mutating func loseLeader(_ id: GroupID, isLost: Bool, now: Instant) {
        guard let group = groups[id], group.hasLeader else { return }
        nodes.update(group.leader.node) { $0.leaders -= 1 }
        rules.hot.remove(id)
        let gone = GroupLeader(group: id, term: group.leader.term, node: .none)
        groups.update(id) { group in
            group.leader = gone
            group.isServing = false
            group.leaderlessSince = now
            group.isLeaderLost = isLost
        }
        changes.append(.leader(gone))
        attend(id)
    }

    /// Does what the group needs now: replicas, a nomination, an activation.
    mutating func consider(
        _ id: GroupID, now: Instant, into effects: inout ControllerEffects
    ) {
        guard isActing, let group = groups[id] else { return }
        maybeStoreGroup(id, into: &effects)
        createReplicas(of: id, now: now)
        if group.hasLeader {
            let isSettled =
                group.record.state == .active && group.stored.isComplete && !group.isStoring
            if isSettled { attention.removeAll { $0 == id } }
            return
        }
        if let attempt = group.attempt {
            guard attempt.isStored else { return }
            guard now >= attempt.deadline || isBehind(attempt, group) else { return }
        } else if !isDue(group, now: now) {
            return
        }
        nominate(id, now: now)
    }

    mutating func nominated(
        _ list: [(group: GroupID, nomination: Nomination)], now: Instant
    ) {
        for (id, nomination) in list {
            guard let group = groups[id], group.attempt?.nomination == nomination,
                let index = group.placementIndex(replica: nomination.nominee)
            else { continue }
            groups.update(id) { group in
                group.attempt?.isStored = true
                group.attempt?.startedAt = now
                // Rounds in which nobody won take longer and longer: the voters may be bound to a
                // leader that this controller does not hear.
                let rounds = min(group.attempts / max(1, group.record.placements.count), 4)
                group.attempt?.deadline = now + settings.nominationTimeout * (1 << UInt64(rounds))
            }
            let node = group.record.placements[index].node
            guard nodes[node]?.isLive == true else {
                groups.update(id) { $0.attempt?.deadline = now }
                attend(id)
                continue
            }
            nominationCount += 1
            let sent = command(
                node, .nominate(id, nomination.nominee, nomination.term),
                .nominate(id, nomination.term))
            groups.update(id) { $0.attempt?.command = sent }
        }
    }

    mutating func nominationOutcome(
        _ id: GroupID, _ term: Term, _ error: DatabaseError?, now: Instant
    ) {
        guard error != nil, let group = groups[id], group.attempt?.nomination.term == term else {
            return
        }
        // Refused: the next one, but not in a hot circle.
        let deadline = now + settings.commandRetryDelay
        groups.update(id) { $0.attempt?.deadline = deadline }
    }

    // MARK: Balance

    /// Moves one leader from a node that leads more than the least to one of its followers.
    mutating func maybeRebalance(now: Instant, into effects: inout ControllerEffects) {
        guard now >= rebalanceAt, now - lastUnrest >= settings.rebalanceAfter else { return }
        rebalanceAt = now + settings.rebalanceInterval
        if let transfer { commands[transfer.command] = nil }
        transfer = nil
        let kept = transferred(now: now)
        let best = leaderToMove { leader in !kept.contains(leader) }
        guard let best, let leader = groups[best.group]?.leader.node else { return }
        let sent = command(
            leader, .transferLeadership(best.group, to: best.placement.replica),
            .transfer(best.group))
        transfer = (best.group, best.placement.node, sent)
        effects.append(
            .decided(
                "moves the leader of group \(best.group) from node \(leader) to node "
                    + "\(best.placement.node): it leads \(best.gain) groups more"))
    }

    /// The leadership whose hand-over to a caught-up follower evens out best how many groups nodes
    /// lead; only where it is allowed for that leader (without its term).
    func leaderToMove(
        isAllowed: (GroupLeader) -> Bool
    ) -> (gain: Int, group: GroupID, placement: Placement)? {
        var best: (gain: Int, group: GroupID, placement: Placement)?
        for group in groups.elements where group.hasLeader && group.isServing {
            guard
                isAllowed(
                    GroupLeader(group: group.record.id, term: .none, node: group.leader.node)),
                let from = nodes[group.leader.node],
                let leaderIndex = group.placementIndex(node: group.leader.node),
                let leading = group.reports[leaderIndex]
            else { continue }
            for (index, placement) in group.record.placements.enumerated()
            where index != leaderIndex {
                guard let to = nodes[placement.node], to.isFit(disk: placement.disk), !to.isHeld,
                    !to.isInMaintenance,
                    let report = group.reports[index],
                    report.role == .follower, report.state == .active,
                    report.lastIndex >= leading.commit
                else { continue }
                let gain = from.leaders - to.leaders
                if gain > 1, gain > best?.gain ?? 1 {
                    best = (gain, group.record.id, placement)
                }
            }
        }
        return best
    }

    /// Leaders that an operator has put where they are, a short while ago; without terms. A group
    /// that lost that leader since is balanced like the others.
    private func transferred(now: Instant) -> [GroupLeader] {
        let hold = runtime.time(.holdAfterTransfer)
        return operations.elements.filter {
            $0.record.kind == .transfer && $0.record.step == .done && age($0, now: now) < hold
        }.map { GroupLeader(group: $0.record.group, term: .none, node: $0.record.new.node) }
    }

    // MARK: Helpers

    private mutating func install(
        _ leader: GroupLeader, now: Instant, into effects: inout ControllerEffects
    ) {
        guard let group = groups[leader.group] else { return }
        if group.hasLeader { nodes.update(group.leader.node) { $0.leaders -= 1 } }
        nodes.update(leader.node) { $0.leaders += 1 }
        endAttempt(leader.group)
        rules.hot.remove(leader.group)
        groups.update(leader.group) { group in
            group.leader = leader
            group.isServing = false
            group.leaderlessSince = nil
            group.isLeaderLost = false
            group.attempts = 0
        }
        leaderChangeCount += 1
        changes.append(.leader(leader))
        if let transfer, transfer.group == leader.group, transfer.to == leader.node {
            self.transfer = nil
        } else {
            lastUnrest = now
        }
        effects.append(
            .decided("node \(leader.node) leads group \(leader.group) in term \(leader.term)"))
        attend(leader.group)
        touchProcedures(of: leader.group)
        touchMoves(of: leader.group)
    }

    private mutating func maybeConsider(
        _ id: GroupID, now: Instant, into effects: inout ControllerEffects
    ) {
        guard let group = groups[id] else { return }
        let isSettled =
            group.hasLeader && group.record.state == .active && group.stored.isComplete
        if !isSettled { consider(id, now: now, into: &effects) }
    }

    /// Whether a leaderless group without an attempt should get a nominee now.
    private func isDue(_ group: GroupStatus, now: Instant) -> Bool {
        if group.isLeaderLost { return true }
        let leaderless = now - (group.leaderlessSince ?? now)
        let count = group.record.placements.count
        if group.highestTerm == .none {
            // A new group: all its replicas, or a majority after a while.
            let created = group.createdMask.nonzeroBitCount
            return created == count
                || (created > count / 2 && leaderless >= settings.commandTimeout)
        }
        guard leaderless >= settings.leaderlessGrace else { return false }
        let areAllKnown = group.record.placements.allSatisfy {
            nodes[$0.node].map { ($0.isLive && $0.hasReported) || $0.isGone } ?? false
        }
        return areAllKnown || now - actingSince >= settings.takeOverGrace
    }

    /// Whether reports that came after the nomination show another replica ahead of the nominee, so
    /// that it cannot win: logs of a leaderless group stand still. An entry of the nominee's own
    /// term is the contrary: it has won, and others tell of it first.
    private func isBehind(_ attempt: GroupStatus.Attempt, _ group: GroupStatus) -> Bool {
        guard let nominee = group.placementIndex(replica: attempt.nomination.nominee),
            let own = group.reports[nominee], group.reportedAt[nominee] > attempt.startedAt
        else { return false }
        return electablePlaces(of: group.record).contains { index in
            guard let report = group.reports[index], group.reportedAt[index] > attempt.startedAt,
                report.term >= attempt.nomination.term,
                report.lastTerm < attempt.nomination.term
            else { return false }
            return (report.lastTerm, report.lastIndex) > (own.lastTerm, own.lastIndex)
        }
    }

    private struct Nominee {
        var index: Int
        var lastTerm: Term
        var lastIndex: LogIndex
        /// Its node is in maintenance.
        var isAway: Bool
        var leaders: Int
        var node: NodeID
        /// It has so much left to apply (it has just been started) that it could not serve at once.
        var isLagging: Bool

        static func isBetter(_ left: Nominee, _ right: Nominee) -> Bool {
            if left.isLagging != right.isLagging { return right.isLagging }
            if (left.lastTerm, left.lastIndex) != (right.lastTerm, right.lastIndex) {
                return (left.lastTerm, left.lastIndex) > (right.lastTerm, right.lastIndex)
            }
            return (left.isAway ? 1 : 0, left.leaders, left.node)
                < (right.isAway ? 1 : 0, right.leaders, right.node)
        }
    }

    mutating func nominate(_ id: GroupID, now: Instant) {
        guard let group = groups[id] else { return }
        let isNew = group.highestTerm == .none
        let last = group.attempt
        let wasBehind = last.map { isBehind($0, group) } ?? false
        endAttempt(id)
        attend(id)
        var nominees: [Nominee] = []
        for index in electablePlaces(of: group.record) {
            let placement = group.record.placements[index]
            let report = group.reports[index]
            guard report != nil || (isNew && group.createdMask & (1 << index) != 0) else {
                continue
            }
            if let report, report.state != .active || report.role == .learner { continue }
            // Reports of just before the failure tell nothing sure about whose log is longer; once
            // that is known it decides.
            let unapplied = report.map {
                $0.lastIndex.rawValue - min($0.applied, $0.lastIndex).rawValue
            }
            nominees.append(
                Nominee(
                    index: index, lastTerm: report?.lastTerm ?? .none,
                    lastIndex: report?.lastIndex ?? .none,
                    isAway: nodes[placement.node]?.isInMaintenance == true,
                    leaders: nodes[placement.node]?.expectedLeaders ?? 0, node: placement.node,
                    isLagging: !wasBehind && (unapplied ?? 0) > settings.unappliedMax))
        }
        // Without a majority nobody can win; terms are not burnt for nothing.
        guard nominees.count > group.record.placements.count / 2 else { return }
        nominees.sort(by: Nominee.isBetter)
        let attempts = last == nil || wasBehind ? 0 : group.attempts + 1
        let chosen = nominees[attempts % nominees.count]
        let nomination = Nomination(
            term: group.highestTerm.next(),
            nominee: group.record.placements[chosen.index].replica)
        groups.update(id) { group in
            group.attempts = attempts
            group.nomination = nomination
            group.attempt = GroupStatus.Attempt(
                nomination: nomination, startedAt: now, deadline: .distantFuture)
        }
        nodes.update(chosen.node) { $0.pledges += 1 }
        nominations.append((id, nomination))
    }

    mutating func endAttempt(_ id: GroupID) {
        guard let group = groups[id], let attempt = group.attempt else { return }
        if let index = group.placementIndex(replica: attempt.nomination.nominee) {
            nodes.update(group.record.placements[index].node) { $0.pledges -= 1 }
        }
        commands[attempt.command] = nil
        groups.update(id) { $0.attempt = nil }
    }
}
