// Handing leadership to a chosen voter (Ongaro 2014, section 3.10), or to any once this leader is no
// voter any more.
//
// Deviation: a leader that hands over takes no more proposals and first waits until all earlier ones
// are applied, so that a planned change of leaders costs their proposers time and never the answer.

import KVBase

struct Transfer: Sendable {
    /// Nil: whoever is furthest, for this leader is no voter any more.
    var target: ReplicaID?
    /// Until then at most it waits for what was proposed to be applied.
    var drainDeadline: Instant
    /// Proposals are refused until then at most.
    var deadline: Instant

    init(target: ReplicaID?, tuning: Tuning, now: Instant) {
        self.target = target
        drainDeadline = now + tuning.transferDrainTimeout
        deadline = now + tuning.transferTimeout
    }
}

extension Replica {
    mutating func startTransfer(
        to target: ReplicaID, now: Instant, into effects: inout Effects
    ) {
        guard role == .leader, transfer == nil, target != id,
            membership.voters.contains(where: { $0.replica == target })
        else { return }
        transfer = Transfer(target: target, tuning: tuning, now: now)
        maybeHandOver(now: now, into: &effects)
    }

    /// A membership without this leader is committed: hands over to the voter that is furthest.
    mutating func retire(now: Instant, into effects: inout Effects) {
        transfer = Transfer(target: nil, tuning: tuning, now: now)
        // Tells followers that their own removal or promotion is committed.
        sendHeartbeats(now: now, into: &effects)
        maybeHandOver(now: now, into: &effects)
    }

    /// Once everything proposed is applied, or was waited for long enough, and the target holds
    /// everything: gives up the lease, for good in this term, because from here on the target may
    /// win without waiting for it; then tells the target.
    mutating func maybeHandOver(now: Instant, into effects: inout Effects) {
        guard let transfer, applied == log.lastIndex || now >= transfer.drainDeadline else {
            return
        }
        guard let target = transfer.target else {
            return handOverToFurthest(now: now, into: &effects)
        }
        guard let place = followerPlace(target), followers[place].match == log.lastIndex else {
            return
        }
        lease.isForfeited = true
        effects.messages.append((target, .timeoutNow(term: term)))
    }

    private mutating func handOverToFurthest(now: Instant, into effects: inout Effects) {
        var successor: FollowerProgress?
        for follower in followers where membership.isVoter(follower.member.replica) {
            if successor.map({ $0.match < follower.match }) ?? true { successor = follower }
        }
        sendHeartbeats(now: now, into: &effects)
        if let successor {
            effects.messages.append((successor.member.replica, .timeoutNow(term: term)))
        }
        becomeFollower(term: term, leader: .none, because: .transfer, now: now, into: &effects)
    }

    mutating func tickTransfer(now: Instant, into effects: inout Effects) {
        guard let pending = transfer else { return }
        // One without a target always ends in `maybeHandOver`.
        if now < pending.deadline || pending.target == nil {
            if now >= heartbeatDue { maybeHandOver(now: now, into: &effects) }
            return
        }
        transfer = nil
        // Without a lease this term is of little use, and no promise stands in the way of the next.
        if lease.isForfeited {
            campaign(term: term.next(), because: .transfer, now: now, into: &effects)
        }
    }

    mutating func receiveTimeoutNow(
        term: Term, from: ReplicaID, now: Instant, into effects: inout Effects
    ) {
        guard term == hardState.term, role == .follower, leader == from || leader == .none else {
            return
        }
        campaign(term: term.next(), because: .transfer, now: now, into: &effects)
    }
}
