// Leader leases (Ongaro 2014, section 6.4.1; Gray and Cheriton 1989), by explicit promises.
//
// A follower that accepts a heartbeat promises for `leaseDuration` after receipt, on its own clock,
// to vote for no one else. The leader counts from the moment it sent that heartbeat, on its own
// clock, and stops `clockDriftPermille` earlier: sent is before received, so the lease ends before
// a majority of promises can.

import KVBase

struct Lease: Sendable {
    /// The newest instant at which heartbeats that a majority accepted were sent; nil: none yet.
    /// `distantFuture` when the leader is a majority by itself.
    var basis: Instant?
    /// The lease was given up for the rest of the term, for a transfer.
    var isForfeited = false
}

extension Replica {
    /// Until when no other leader can exist, as far as this leader knows; `origin` when it has no
    /// lease. `now` counts as the leader's own acknowledgement.
    public func leaseExpiry(at now: Instant) -> Instant {
        guard !lease.isForfeited else { return .origin }
        return promisedExpiry(at: now)
    }

    /// Whether a read may be served from the local state machine at `now`: leader, an entry of the
    /// own term applied, lease valid.
    public func canServeReads(at now: Instant) -> Bool {
        role == .leader && applied >= termStart && now < leaseExpiry(at: now)
    }

    /// As `leaseExpiry`, but promises stand even when the lease is forfeited: a transfer that fails
    /// must not let third parties depose a healthy leader.
    func promisedExpiry(at now: Instant) -> Instant {
        guard role == .leader, let basis = lease.basis else { return .origin }
        let drift = tuning.leaseDuration.count / 1_000 * tuning.clockDriftPermille
        return min(basis, now) + (tuning.leaseDuration - Nanoseconds(drift))
    }

    mutating func recomputeLease() {
        // Optional instants do not compare; `origin` stands for "never".
        let reached = Quorum.reached(membership) { replica -> Instant in
            if replica == id { return .distantFuture }
            guard let place = followerPlace(replica) else { return .origin }
            return followers[place].acknowledgedAt.map { $0 + Nanoseconds(1) } ?? .origin
        }
        switch reached {
        case nil, .some(.origin): lease.basis = nil
        case .some(.distantFuture): lease.basis = .distantFuture
        case .some(let instant): lease.basis = Instant(nanoseconds: instant.nanoseconds - 1)
        }
    }

    /// What is left of the promise that forbids a vote for `candidate`; zero when none does.
    ///
    /// The lease that a promise serves belongs to the leader of some term below the request's. When
    /// that leader released it for this very election, or is itself the candidate, nothing is left
    /// to protect.
    func promiseLeft(
        against candidate: ReplicaID, leaseReleased: Bool, now: Instant
    ) -> Nanoseconds {
        if leaseReleased { return .zero }
        var left: Nanoseconds = .zero
        if candidate != promisedTo || promisedTo == .none { left = promiseUntil - now }
        if role == .leader { left = max(left, promisedExpiry(at: now) - now) }
        return left
    }
}
