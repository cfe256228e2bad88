// A step of an operation, before it is stored.

import KVBase
import ShardCore

/// What one step of an operation changes, in one transaction.
struct OperationChange: Sendable {
    var record: OperationRecord
    var group: GroupRecord?
    var nodes: [Node] = []
    var retired: [RetiredReplica] = []
    /// What a finished move leaves in the group that the shard came from.
    var former: FormerShard?
    /// Nodes to which no replica is given any more, or again.
    var held: NodeID = .none
    var released: NodeID = .none
    /// Shards as they are from now on, and those that are no more.
    var shards: [Shard] = []
    var removedShards: [Shard] = []
    var newGroups: [GroupRecord] = []
    var usesIDs = false

    /// Adds all but the operation itself and the counters of ids.
    func write(into transaction: inout MetadataTransaction) {
        if let group { transaction.put(group) }
        for node in nodes { transaction.put(node) }
        for shard in shards { transaction.put(shard) }
        for shard in removedShards {
            transaction.changes.append(.delete(key: StoreKey.shard(shard.id)))
        }
        for group in newGroups { transaction.put(group) }
        for replica in retired {
            transaction.put(StoreKey.retired(replica.replica)) { replica.encode(into: &$0) }
        }
        if let former {
            transaction.put(StoreKey.former(record.id)) { former.encode(into: &$0) }
        }
        if held != .none { transaction.put(StoreKey.held(held)) { _ in } }
        if released != .none {
            transaction.changes.append(.delete(key: StoreKey.held(released)))
        }
    }
}
