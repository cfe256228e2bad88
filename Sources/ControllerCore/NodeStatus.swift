// A node as the controller knows it: the durable record and what was heard of it.

import KVBase
import ShardCore

public struct NodeStatus: Sendable {
    public enum Health: String, Sendable {
        case up
        /// The connection is lost, peers report it unreachable, or it is silent.
        case suspect
        case down
    }

    public static let defaultWeight: UInt8 = 10
    public static let weightMax: UInt8 = 100

    public internal(set) var record: Node
    public internal(set) var health: Health = .suspect
    /// Nil while it is not connected.
    public internal(set) var connection: ConnectionID?
    public internal(set) var incarnation: UInt64 = 0
    /// When it was last heard of (registration or heartbeat).
    public internal(set) var lastHeard: Instant
    public internal(set) var sequence: UInt64 = 0
    public internal(set) var mapRevision: Revision = .none
    public internal(set) var loopDelay: Nanoseconds = .zero
    public internal(set) var disks: [DiskReport] = []
    /// Replicas placed on it and groups it leads.
    public internal(set) var replicas = 0
    public internal(set) var leaders = 0
    /// Whether a heartbeat came since it registered: what it hosts is known.
    public internal(set) var hasReported = false
    /// Given no replicas: an operator drains or replaces it.
    public internal(set) var isHeld = false
    /// Share of replicas in comparison with other nodes; 0...100, 0 takes none.
    public internal(set) var weight: UInt8 = Self.defaultWeight
    /// Wall clock in milliseconds since 1970 until which it is in maintenance; nil when it is not.
    public internal(set) var maintenanceUntil: UInt64?
    /// Since when one of its disks reports a failure; nil while none does.
    var diskFailedSince: Instant?
    /// What ails its event loop, and each of its disks; see `Controller+Illness`.
    public internal(set) var loopIllness: Illness?
    public internal(set) var diskIllnesses: [Illness?] = []
    /// Since when it is down; nil while it is not.
    public internal(set) var downSince: Instant?
    /// Who found it unreachable since the last heartbeat.
    var reporters: [ConnectionID] = []
    /// Nominations under way for replicas here.
    var pledges = 0
    /// Groups with a replica here, sorted.
    var groups: [GroupID] = []

    /// Whether its process has ended, as far as others can tell: it is not connected, and two
    /// connections were refused or reset.
    var isGone: Bool { connection == nil && reporters.count >= 2 }

    public var isLive: Bool { connection != nil && health == .up }

    public var isInMaintenance: Bool { maintenanceUntil != nil }

    /// `up`, `ill`, `suspect`, `down`, `spare`, `draining` or `maintenance`, as operators read it.
    public var stateName: String {
        guard health == .up else { return health.rawValue }
        if isIll { return "ill" }
        if isInMaintenance { return "maintenance" }
        return isHeld ? "draining" : record.isSpare ? "spare" : "up"
    }

    /// Groups it leads or is about to lead.
    var expectedLeaders: Int { leaders + pledges }

    /// Whether new replicas may be placed on it.
    public var isEligible: Bool {
        isLive && !record.isSpare && !isHeld && !isIll && !isInMaintenance && weight > 0
    }
}
