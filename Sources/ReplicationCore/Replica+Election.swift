// Elections (Ongaro 2014, sections 3.4, 3.6, 9.6): by nomination at a given term, by a leader's
// transfer, or, when neither leader nor controller was heard for long, by a pre-vote first.

import KVBase

/// One other voter, as a candidate sees it.
struct Ballot: Sendable {
    enum State: Sendable { case open, granted, refused }
    let replica: ReplicaID
    var state: State = .open
    /// When to ask (again).
    var askAt: Instant
}

struct VoteRequest {
    var term: Term
    var last: LogPosition
    var isPreVote: Bool
    var leaseReleased: Bool
}

struct VoteResponse {
    var term: Term
    var isPreVote: Bool
    var granted: Bool
    var retryAfter: Nanoseconds
}

extension Replica {
    // MARK: Candidates

    mutating func nominate(_ term: Term, now: Instant, into effects: inout Effects) {
        guard term > hardState.term, role != .leader, isElectable else { return }
        resetFallback(now)
        nomination = (term, now + tuning.electionTimeout)
        maybeStartNominated(now: now, into: &effects)
    }

    /// A nominee, like any voter, first keeps the promise it gave itself: so a mistaken nomination
    /// does not touch a leader that the nominee still hears.
    mutating func maybeStartNominated(now: Instant, into effects: inout Effects) {
        guard let pending = nomination else { return }
        if pending.term <= hardState.term || now > pending.until {
            nomination = nil
        } else if now >= promiseUntil {
            nomination = nil
            campaign(term: pending.term, because: .nominated, now: now, into: &effects)
        }
    }

    mutating func tickFollower(now: Instant, into effects: inout Effects) {
        maybeStartNominated(now: now, into: &effects)
        if role == .follower, now >= fallbackDeadline, now >= promiseUntil {
            preCampaign(now: now, into: &effects)
        }
    }

    mutating func tickCandidate(now: Instant, into effects: inout Effects) {
        if now >= electionDeadline {
            becomeFollower(term: hardState.term, leader: .none, now: now, into: &effects)
        } else {
            maybeStartNominated(now: now, into: &effects)
            askForVotes(now: now, into: &effects)
        }
    }

    private mutating func preCampaign(now: Instant, into effects: inout Effects) {
        startElection(as: .preCandidate, now: now, into: &effects)
        askForVotes(now: now, into: &effects)
        maybeWin(now: now, into: &effects)
    }

    /// Starts a real election at `term`. Precondition: above the own term.
    mutating func campaign(
        term: Term, because reason: LeadershipReason, now: Instant, into effects: inout Effects
    ) {
        precondition(term > hardState.term)
        if role == .leader { abandonLeadership(because: reason, into: &effects) }
        hardState = HardState(term: term, vote: id)
        durability.hardStateChanged = true
        matched = commit
        nomination = nil
        startElection(as: .candidate, now: now, into: &effects)
        candidacy = reason
        askForVotes(now: now, into: &effects)
    }

    private mutating func startElection(
        as newRole: Role, now: Instant, into effects: inout Effects
    ) {
        role = newRole
        leader = .none
        effects.roleChanged = true
        electionDeadline = now + tuning.electionTimeout
        ballots.removeAll(keepingCapacity: true)
        for member in membership.all
        where member.replica != id && membership.isVoter(member.replica) {
            ballots.append(Ballot(replica: member.replica, askAt: now))
        }
    }

    /// Asks every open voter whose time has come. A real request leaves only when the own term and
    /// vote are durable, and with them every entry that its last position speaks of.
    private mutating func askForVotes(now: Instant, into effects: inout Effects) {
        let isPreVote = role == .preCandidate
        let request = Message.voteRequest(
            term: isPreVote ? hardState.term.next() : hardState.term, lastPosition: log.last,
            isPreVote: isPreVote, leaseReleased: !isPreVote && candidacy == .transfer)
        for place in ballots.indices
        where ballots[place].state == .open && now >= ballots[place].askAt {
            ballots[place].askAt = now + tuning.voteRetryInterval
            if isPreVote {
                effects.messages.append((ballots[place].replica, request))
            } else {
                sendWhenDurable(request, to: ballots[place].replica)
            }
        }
    }

    mutating func receive(
        _ response: VoteResponse, from: ReplicaID, now: Instant, into effects: inout Effects
    ) {
        guard let place = ballots.firstIndex(where: { $0.replica == from }),
            response.isPreVote == (role == .preCandidate)
        else { return }
        if !response.granted, response.term > hardState.term {
            becomeFollower(term: response.term, leader: .none, now: now, into: &effects)
            return
        }
        if response.granted {
            let asked = role == .preCandidate ? hardState.term.next() : hardState.term
            guard response.term == asked else { return }
            ballots[place].state = .granted
            maybeWin(now: now, into: &effects)
        } else if response.retryAfter > .zero {
            // The voter's term may be lower: bound by its promise it did not take up ours.
            if ballots[place].state == .open { ballots[place].askAt = now + response.retryAfter }
        } else if response.term == hardState.term, ballots[place].state == .open {
            ballots[place].state = .refused
            let canWin = Quorum.isReached(membership) { replica in
                !ballots.contains { $0.replica == replica && $0.state == .refused }
            }
            if !canWin {
                becomeFollower(term: hardState.term, leader: .none, now: now, into: &effects)
            }
        }
    }

    /// The own vote counts like any other: when it is durable.
    mutating func maybeWin(now: Instant, into effects: inout Effects) {
        let isPreVote = role == .preCandidate
        let ownVote = isPreVote || durability.term == hardState.term
        let won = Quorum.isReached(membership) { replica in
            replica == id
                ? ownVote : ballots.contains { $0.replica == replica && $0.state == .granted }
        }
        guard won else { return }
        if isPreVote {
            campaign(
                term: hardState.term.next(), because: .silence, now: now, into: &effects)
        } else if ownVote {
            becomeLeader(now: now, into: &effects)
        }
    }

    // MARK: Voters

    mutating func receive(
        _ request: VoteRequest, from: ReplicaID, now: Instant, into effects: inout Effects
    ) {
        let left = promiseLeft(against: from, leaseReleased: request.leaseReleased, now: now)
        let isUpToDate = request.last.isUpToDate(with: log.last)
        if request.isPreVote {
            let granted = request.term > hardState.term && isUpToDate && left == .zero
            let response = Message.voteResponse(
                term: granted ? request.term : hardState.term, isPreVote: true, granted: granted,
                retryAfter: granted || !isUpToDate ? .zero : left)
            effects.messages.append((from, response))
            return
        }
        // While the promise runs not even the term is taken up: that would cut off the leader it
        // was given to.
        if request.term < hardState.term || (left > .zero && request.term > hardState.term) {
            let response = Message.voteResponse(
                term: hardState.term, isPreVote: false, granted: false, retryAfter: left)
            effects.messages.append((from, response))
            return
        }
        if request.term > hardState.term {
            becomeFollower(term: request.term, leader: .none, now: now, into: &effects)
        }
        let isFree =
            hardState.vote == from || (hardState.vote == .none && leader == .none)
        guard isFree, isUpToDate, left == .zero else {
            let response = Message.voteResponse(
                term: hardState.term, isPreVote: false, granted: false,
                retryAfter: isFree && isUpToDate ? left : .zero)
            effects.messages.append((from, response))
            return
        }
        if hardState.vote != from {
            hardState.vote = from
            durability.hardStateChanged = true
        }
        resetFallback(now)
        sendWhenDurable(
            .voteResponse(
                term: hardState.term, isPreVote: false, granted: true, retryAfter: .zero),
            to: from)
    }
}
