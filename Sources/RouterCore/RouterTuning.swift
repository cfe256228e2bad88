// The bounds and delays of a router.

import KVBase

/// What a router may hold and how long it tries.
public struct RouterTuning: Hashable, Sendable {
    /// How long an operation is tried before its client gets an error.
    public var requestDeadline = Nanoseconds.seconds(5)
    /// Waits between two attempts of a held operation when nothing tells that the world changed.
    public var backoffMin = Nanoseconds.milliseconds(5)
    public var backoffMax = Nanoseconds.milliseconds(50)
    /// Bytes of operations that are sent to one node and not answered yet.
    public var nodePendingBytesMax = 64 << 20
    /// Bytes of all operations that are sent or held.
    public var pendingBytesMax = 256 << 20
    /// A requests frame is sent off and another one begun above this many bytes. With the largest
    /// operation behind it, it stays below `Limits.frameBytesMax`.
    public var frameBytesTarget = 4 << 20

    public init() {}
}

/// Why an operation was not answered at its first attempt.
public enum RetryReason: Int, Sendable, CaseIterable {
    /// No leader is known, or there is no open connection to it.
    case noLeader = 0
    /// The node answered that it does not lead the group.
    case notLeader = 1
    /// The node answered that it cannot serve the group now.
    case unavailable = 2
    /// The node holds another epoch of the shard.
    case staleEpoch = 3
    /// The connection broke before a read was answered, or before a write left.
    case connectionLost = 4
    /// A read was sent again because its group has a new leader.
    case leaderChanged = 5
    /// An earlier operation of the same client is held.
    case behindHeld = 6

    /// The label of its counter.
    public var name: String {
        switch self {
        case .noLeader: "no_leader"
        case .notLeader: "not_leader"
        case .unavailable: "unavailable"
        case .staleEpoch: "stale_epoch"
        case .connectionLost: "connection_lost"
        case .leaderChanged: "leader_changed"
        case .behindHeld: "behind_held"
        }
    }
}

/// What a router has counted since it started.
public struct RouterCounters: Sendable {
    /// Operations taken over from clients, retries not counted.
    public internal(set) var submitted: UInt64 = 0
    /// Operations put into frames, retries counted.
    public internal(set) var sent: UInt64 = 0
    public internal(set) var frames: UInt64 = 0
    /// Most operations that one frame carried.
    public internal(set) var operationsPerFrameMax: UInt64 = 0
    /// Operations answered with an error by the router itself: deadline, lost connection, overload.
    public internal(set) var failed: UInt64 = 0
    /// Operations not taken over: too much unanswered in the router, or by one node.
    public internal(set) var refusedFull: UInt64 = 0
    public internal(set) var refusedNodeFull: UInt64 = 0
    /// Answers that came after the client had been told something else.
    public internal(set) var lateResponses: UInt64 = 0
    private var byReason: [UInt64] = Array(repeating: 0, count: RetryReason.allCases.count)

    public init() {}

    public subscript(reason: RetryReason) -> UInt64 {
        get { byReason[reason.rawValue] }
        set { byReason[reason.rawValue] = newValue }
    }
}
