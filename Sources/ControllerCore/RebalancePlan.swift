// What evening out the cluster would do.

import KVBase
import ShardCore

/// One step of it, each a clear gain.
public enum RebalanceStep: Sendable {
    case replica(Replacement, reason: String)
    case shard(ShardPlan, reason: String)
    /// The leadership of a group goes from one of its replicas to another.
    case leader(GroupID, from: Placement, to: Placement, reason: String)
}

/// What a node has; bytes of the groups with a replica there, requests to those that it leads.
public struct NodeBalance: Hashable, Sendable {
    public var node: NodeID
    public var weight: UInt8
    public var replicas: Int
    public var leaders: Int
    /// Requests per second.
    public var operations: UInt64
    public var bytes: UInt64
}

/// The state of balance.
public struct ClusterBalance: Hashable, Sendable {
    /// That are no spares, in order of id.
    public var nodes: [NodeBalance]
    /// In order of id.
    public var groups: [GroupForecast]
}

public struct RebalancePlan: Sendable {
    /// In order; each rests on those before it having gone as forecast.
    public var steps: [RebalanceStep]
    /// There may be more of them than a plan holds.
    public var isCut: Bool
    public var before: ClusterBalance
    public var after: ClusterBalance
    /// To copy.
    public var bytes: UInt64
}

/// What a look for the next step leaves alone.
struct RebalanceLimits {
    /// Groups whose replicas stay.
    var groups: [GroupID] = []
    /// Groups whose leaders stay.
    var leaders: [GroupID] = []
    var shards: [ShardID] = []
    /// Shards that moved since stay where they are; wall clock in milliseconds since 1970.
    var since: UInt64
}
