// What replicas of one group say to each other. The shell adds group and addresses, and coalesces
// heartbeats of all groups between two nodes into one frame.

import KVBase

public enum Message: Hashable, Sendable {
    /// `isPreVote`: would you vote for me? Changes nothing at the voter. `leaseReleased`: the leader
    /// gave up its lease for this transfer, so the voter's promise to it does not bind.
    case voteRequest(
        term: Term, lastPosition: LogPosition, isPreVote: Bool, leaseReleased: Bool)
    /// `retryAfter`: what is left of the promise that forbids the vote; zero when something else
    /// forbids it, or when granted.
    case voteResponse(term: Term, isPreVote: Bool, granted: Bool, retryAfter: Nanoseconds)
    /// Entries that follow `previous`; none for a probe.
    case append(term: Term, previous: LogPosition, entries: [LogEntry], commit: LogIndex)
    /// `match`: the highest index known equal to the leader's and durable here. When refused,
    /// `hint` is where the leader should try next: the follower's last position with a term not
    /// above the leader's.
    case appendResponse(term: Term, accepted: Bool, match: LogIndex, hint: LogPosition)
    /// Sent for all groups of a node at once. `sentAt` is the leader's own clock and comes back
    /// untouched. `round` counts quorum-read rounds.
    case heartbeat(term: Term, commit: LogIndex, sentAt: Instant, round: UInt64)
    /// Promises not to vote for another before the lease duration after receipt, when `accepted`.
    case heartbeatResponse(
        term: Term, accepted: Bool, sentAt: Instant, round: UInt64, match: LogIndex)
    /// Start an election at once; the sender has given up its lease for good in this term.
    case timeoutNow(term: Term)
    /// A snapshot as of `position` is complete and durable at the sender, a follower.
    case snapshotInstalled(term: Term, position: LogPosition)

    public var term: Term {
        switch self {
        case .voteRequest(let term, _, _, _), .voteResponse(let term, _, _, _),
            .append(let term, _, _, _), .appendResponse(let term, _, _, _),
            .heartbeat(let term, _, _, _), .heartbeatResponse(let term, _, _, _, _),
            .timeoutNow(let term), .snapshotInstalled(let term, _):
            return term
        }
    }
}
