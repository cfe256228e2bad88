// Changes of membership: learners one at a time, voters by joint consensus (Ongaro 2014, chapter 4).

import KVBase

/// A change that this leader appended and has not seen committed.
struct PendingChange: Sendable {
    /// Who to answer; nil for a joint membership inherited from an earlier leader.
    var token: UInt64?
}

extension Replica {
    mutating func changeMembership(
        _ change: MembershipChange, token: UInt64, now: Instant, into effects: inout Effects
    ) {
        do throws(DatabaseError) {
            guard let next = try membership(after: change) else {
                effects.membershipOutcomes.append((token, nil))
                return
            }
            pendingChange = PendingChange(token: token)
            appendMembership(next, now: now, into: &effects)
        } catch {
            effects.membershipOutcomes.append((token, error))
        }
    }

    /// What to append for a change; nil when it is in force already.
    private func membership(after change: MembershipChange) throws(DatabaseError) -> Membership? {
        guard role == .leader else { throw DatabaseError(.notLeader, "leader is \(leader)") }
        if transfer != nil {
            throw DatabaseError(.refused, "a leadership transfer is under way; repeat after it")
        }
        // Until an entry of the own term is committed an older leader's change may still win
        // (Ongaro 2014, section 4.1, as corrected in 2015).
        guard commit >= termStart else {
            throw DatabaseError(.unavailable, "the new leader's first entry is not committed yet")
        }
        var next = membership
        if next.isJoint || memberships.currentIndex > commit {
            throw DatabaseError(.refused, "another membership change is in flight; repeat after it")
        }
        switch change {
        case .addLearner(let member):
            if next.learners.contains(member) { return nil }
            if next.contains(member.replica) {
                throw DatabaseError(
                    .refused, "replica \(member.replica) is a member in another place or role")
            }
            if next.all.contains(where: { $0.node == member.node }) {
                throw DatabaseError(.refused, "node \(member.node) holds a replica of the group")
            }
            next = Membership(voters: next.voters, learners: next.learners + [member])
        case .removeLearner(let replica):
            if next.isVoter(replica) {
                throw DatabaseError(
                    .refused, "replica \(replica) is a voter; replace the voters instead")
            }
            if !next.contains(replica) { return nil }
            next.learners.removeAll { $0.replica == replica }
        case .replaceVoters(let voters):
            next = try joint(to: voters)
            if next.voters == membership.voters { return nil }
        }
        return next
    }

    private func joint(to voters: [Member]) throws(DatabaseError) -> Membership {
        let current = membership
        let next = Membership(
            voters: voters, outgoing: current.voters,
            learners: current.learners.filter { !voters.contains($0) })
        guard !voters.isEmpty else { throw DatabaseError(.refused, "no voters given") }
        for (place, member) in next.voters.enumerated() {
            for other in next.voters[..<place]
            where other.replica == member.replica || other.node == member.node {
                throw DatabaseError(
                    .refused, "replica \(member.replica) or its node is named twice")
            }
            guard current.voters.contains(member) || current.learners.contains(member) else {
                throw DatabaseError(
                    .refused, "replica \(member.replica) is unknown here; add it as learner first")
            }
            guard member.replica != id, let place = followerPlace(member.replica) else { continue }
            let lag = log.lastIndex.rawValue - followers[place].match.rawValue
            if lag > tuning.caughtUpEntriesMax, !current.voters.contains(member) {
                throw DatabaseError(
                    .refused,
                    "replica \(member.replica) is \(lag) entries behind;"
                        + " wait until it is within \(tuning.caughtUpEntriesMax)")
            }
        }
        return next
    }

    private mutating func appendMembership(
        _ next: Membership, now: Instant, into effects: inout Effects
    ) {
        let index = appendOwn(kind: .membership, payload: next.encoded())
        memberships.append(index: index, membership: next)
        rebuildFollowers(now: now)
        sendAppendsToAll(now: now, into: &effects)
    }

    /// Call after commit rose: leaves a joint membership, answers a finished change, retires a
    /// leader that is no voter any more.
    mutating func membershipCommitted(now: Instant, into effects: inout Effects) {
        guard memberships.currentIndex <= commit else { return }
        if membership.isJoint {
            let next = Membership(voters: membership.voters, learners: membership.learners)
            appendMembership(next, now: now, into: &effects)
            return
        }
        if let token = pendingChange?.token { effects.membershipOutcomes.append((token, nil)) }
        pendingChange = nil
        if !membership.isVoter(id) { retire(now: now, into: &effects) }
    }
}
