// The timing and the bounds of a replica.

import KVBase

/// Precondition of safety for lease reads: `leaseDuration` here at the leader, shortened by
/// `clockDriftPermille`, ends before any follower's promise of `leaseDuration` does. All replicas of
/// a cluster use the same values.
public struct Tuning: Hashable, Sendable {
    public var tickInterval: Nanoseconds = .milliseconds(10)
    public var heartbeatInterval: Nanoseconds = .milliseconds(50)
    public var leaseDuration: Nanoseconds = .milliseconds(250)
    /// Most that two monotonic clocks may drift apart, in thousandths.
    public var clockDriftPermille: UInt64 = 20
    /// A follower that heard neither leader nor nomination for this long, plus up to as much again
    /// at random, nominates itself (after a pre-vote).
    public var fallbackElectionTimeout: Nanoseconds = .milliseconds(1_500)
    /// A candidate asks again for missing votes after this, and gives up after `electionTimeout`.
    public var voteRetryInterval: Nanoseconds = .milliseconds(50)
    public var electionTimeout: Nanoseconds = .milliseconds(1_000)
    /// A leader that had no majority for this long steps down.
    public var quorumLossTimeout: Nanoseconds = .milliseconds(1_000)
    /// A hand-over that did not succeed by then is given up.
    public var transferTimeout: Nanoseconds = .milliseconds(500)
    /// Before it hands over, a leader waits this long at most until everything that it was given is
    /// applied, so that whoever proposed it gets the answer. Below `transferTimeout`.
    public var transferDrainTimeout: Nanoseconds = .milliseconds(250)
    /// Most bytes and entries in one append message, and most append messages on their way to one follower.
    public var appendBytesMax = 1 << 20
    public var appendEntriesMax = 1_024
    public var appendsInFlightMax = 64
    /// Payload bytes kept behind the compaction point for followers that lag a little.
    public var retainedBytesMax = 16 << 20
    /// The same while a follower gets a snapshot, for what it will ask for afterwards: without it a large
    /// group that is written to would send one snapshot after the other.
    public var restoreBytesMax = 256 << 20
    /// Nothing more is kept so for a follower that is silent for longer.
    public var restorePatience: Nanoseconds = .seconds(10)
    /// Payload bytes appended and not yet committed beyond which proposals are refused.
    public var uncommittedBytesMax = 64 << 20
    /// A learner may become a voter when it is at most this many entries behind.
    public var caughtUpEntriesMax: UInt64 = 1_024
    /// Most quorum reads that wait for a majority at a time.
    public var quorumReadsMax = 4_096

    public init() {}
}
