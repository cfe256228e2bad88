// What the rules remember between two looks. Durable are only the histories and, roughly,
// for how long seams have been cold.

import KVBase
import ShardCore

/// A key that takes more than half of the requests of a busy shard: no split can part it.
public struct HotKey: Hashable, Sendable {
    public var table: TableID
    public var shard: ShardID
    public var group: GroupID
    /// Routed.
    public var key: Bytes
    /// Share of the shard's requests.
    public var percent: UInt8
    /// Requests per second of the shard.
    public var operations: UInt64
}

struct RuleState: Sendable {
    /// A group above its rating, and since when without a break.
    struct HotGroup: Sendable {
        var group: GroupID
        var since: Instant
    }

    /// What a refusal is about.
    enum Subject: Hashable, Sendable {
        case group(GroupID)
        case shard(ShardID)
        case node(NodeID)
        case cluster
    }

    /// A boundary between two shards that a split has made.
    struct Seam: Hashable, Sendable {
        var lower: ShardID
        var upper: ShardID
    }

    /// Two shards at a seam that are cold. Stored every few minutes, so that another controller counts
    /// on. Wall clock in milliseconds since 1970.
    struct ColdSeam: Hashable, Sendable {
        /// In the key, not in the value.
        var upper: ShardID
        var since: UInt64
        /// The last time when they were known to be cold.
        var seen: UInt64
        /// `seen` as it is in the store; 0 for not there.
        var stored: UInt64 = 0

        func encode(into writer: inout ByteWriter) {
            writer.write(since)
            writer.write(seen)
        }

        init(_ upper: ShardID, since: UInt64) {
            self.upper = upper
            self.since = since
            seen = since
        }

        init(_ upper: ShardID, from reader: inout ByteReader) throws(DatabaseError) {
            self.upper = upper
            since = try reader.readUInt64()
            seen = try reader.readUInt64()
            stored = seen
        }
    }

    struct Refusal: Sendable {
        var rule: RuleName
        var subject: Subject
        var at: Instant
    }

    /// The next look of all rules.
    var checkAt: Instant = .origin
    /// Settings in the store that are not allowed, for the decision log.
    var objections: [String] = []
    /// What shards have been through, for those that any operation has worked on.
    var histories = SortedRecords<ShardID, ShardHistory>()
    /// The histories have changed since `seams` were found.
    var isOrderOld = true
    /// When each node's newest load report came.
    var loadedAt = SortedRecords<NodeID, Instant>()
    var hot = SortedRecords<GroupID, HotGroup>()
    /// Shards above `split.bytes`, sorted.
    var large: [ShardID] = []
    var hotKeys: [HotKey] = []
    /// In order of tables and keys; found anew when `isOrderOld`.
    var seams: [Seam] = []
    /// The seam that was looked at last.
    var seamCursor = 0
    /// Seams of which the two sides are cold without a break, by the upper shard.
    var cold = SortedRecords<ShardID, ColdSeam>()
    /// Followers that are behind their leaders, and groups where most are.
    var lags = SortedRecords<ReplicaID, Lag>()
    var burdened: [GroupID] = []
    var lagCheckAt: Instant = .origin
    /// Since when groups have no shards without a break, and nothing is about to give them any.
    var empty = SortedRecords<GroupID, Instant>()
    var rebalanceAt: Instant = .origin
    var bytesLookAt: Instant = .origin
    /// Since when the load of the groups is far apart.
    var unevenSince: Instant?
    /// What was refused in the last minute, oldest first.
    var refusals: [Refusal] = []
}
