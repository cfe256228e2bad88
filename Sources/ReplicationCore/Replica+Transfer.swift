// Handing leadership to a chosen voter (Ongaro 2014, section 3.10).

import KVBase

struct Transfer: Sendable {
    var target: ReplicaID
    /// Proposals are refused until then at most.
    var deadline: Instant
}

extension Replica {
    mutating func startTransfer(
        to target: ReplicaID, now: Instant, into effects: inout Effects
    ) {
        guard role == .leader, transfer == nil, target != id,
            membership.voters.contains(where: { $0.replica == target })
        else { return }
        transfer = Transfer(target: target, deadline: now + tuning.transferTimeout)
        maybeHandOver(now: now, into: &effects)
    }

    /// Once the target holds everything: gives up the lease, for good in this term, because from
    /// here on the target may win without waiting for it; then tells the target.
    mutating func maybeHandOver(now: Instant, into effects: inout Effects) {
        guard let transfer, let place = followerPlace(transfer.target),
            followers[place].match == log.lastIndex
        else { return }
        lease.isForfeited = true
        effects.messages.append((transfer.target, .timeoutNow(term: term)))
    }

    mutating func tickTransfer(now: Instant, into effects: inout Effects) {
        guard let pending = transfer else { return }
        if now < pending.deadline {
            if now >= heartbeatDue { maybeHandOver(now: now, into: &effects) }
            return
        }
        transfer = nil
        // Without a lease this term is of little use, and no promise stands in the way of the next.
        if lease.isForfeited {
            campaign(term: term.next(), leaseReleased: true, now: now, into: &effects)
        }
    }

    mutating func receiveTimeoutNow(
        term: Term, from: ReplicaID, now: Instant, into effects: inout Effects
    ) {
        guard term == hardState.term, role == .follower, leader == from || leader == .none else {
            return
        }
        campaign(term: term.next(), leaseReleased: true, now: now, into: &effects)
    }
}
