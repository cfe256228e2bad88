// What the rules remember between two looks. Only the histories are durable.

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
    /// The next look of all rules.
    var checkAt: Instant = .origin
    /// Settings in the store that are not allowed, for the decision log.
    var objections: [String] = []
    /// What shards have been through, for those that any operation has worked on.
    var histories = SortedRecords<ShardID, ShardHistory>()
    /// The histories' shards in order of table and keys were changed since they were last sorted.
    var isOrderOld = true
    /// Since when each group is above its rating without a break.
    var hotSince = SortedRecords<GroupID, Instant>()
    /// Shards above `split.bytes`, sorted.
    var large: [ShardID] = []
    var hotKeys: [HotKey] = []
    /// What was refused in the last minute, oldest first.
    var refusals: [Refusal] = []

    struct Refusal: Sendable {
        var rule: RuleName
        /// Of the group, shard or node that it is about.
        var subject: UInt32
        var at: Instant
    }
}
