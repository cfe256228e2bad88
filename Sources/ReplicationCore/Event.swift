// What can happen to a replica: the one door in.

import KVBase

/// How a read is made safe.
public enum ReadMode: UInt8, Hashable, Sendable {
    /// By the leader's lease: no message, trusts that monotonic clocks drift by less than the bound.
    case lease = 0
    /// By a heartbeat round to a majority after the request arrived: trusts no clock.
    case quorum = 1
}

public enum Event: Sendable {
    case message(from: ReplicaID, Message)
    /// Time passed: the shell calls at least every `Tuning.tickInterval` for groups that are not
    /// quiet (see `Replica.nextDeadline`).
    case tick
    /// The disk holds this state durably. Persist effects complete in the order they were issued.
    case persisted(PersistTicket)
    /// Payloads for the state machine, in order. Refused (effect `.proposalsRefused`) when not leader.
    case propose([Bytes])
    case changeMembership(MembershipChange, token: UInt64)
    /// The controller names this replica candidate for `term`. Ignored when not above its own term.
    case nominate(Term)
    case transferLeadership(to: ReplicaID)
    /// The shell finds this replica unfit to lead (its disk does not answer): a leader gives up at
    /// once, without a successor. Others have no use for it.
    case stepDown
    case read(token: UInt64, ReadMode)
    /// The state machine has applied everything up to here.
    case applied(LogIndex)
    /// Entries up to here are durable in the engine and need not be kept. The core keeps what a
    /// caught-up follower may still need and reports the new floor (`Replica.compacted`).
    case compact(upTo: LogIndex)
    /// A snapshot from a leader is completely in the engine, durably, and replaces the whole log.
    case snapshotInstalled(position: LogPosition, membership: Membership, from: ReplicaID)
    /// A connection to the replica's node broke or was refused.
    case unreachable(ReplicaID)
    /// The shell gave up (or finished) sending a snapshot to this replica.
    case snapshotSent(to: ReplicaID, position: LogPosition, succeeded: Bool)
}

/// Names one `persist` effect; rises by one with each.
public struct PersistTicket: Hashable, Comparable, Sendable {
    public var number: UInt64
    public init(_ number: UInt64) { self.number = number }
    public static func < (left: PersistTicket, right: PersistTicket) -> Bool {
        left.number < right.number
    }
}
