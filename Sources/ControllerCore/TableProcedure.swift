// The creation or removal of one table on its way.

import KVBase
import ShardCore

struct TableProcedure: Sendable {
    enum Phase: Sendable {
        /// Table and shards, in their first state, are on their way to the store.
        case storing
        /// Group leaders are told, shard by shard.
        case commanding
        /// The last state is on its way to the store.
        case finishing
    }

    struct Waiter: Sendable {
        var request: RequestID
        var deadline: Instant
    }

    /// A shard whose group has yet to confirm.
    struct Pending: Sendable {
        var shard: Shard
        /// The command under way; 0 for none.
        var command: UInt64 = 0
        var sentTo: NodeID = .none
        var sendAgainAt: Instant = .origin
    }

    var table: Table
    var isDrop: Bool
    var phase: Phase
    /// In order of shard id.
    var pending: [Pending]
    /// All shards of the table, for a creation (a removal keeps them in the committed records).
    var shards: [Shard]
    /// Groups formed for this table, stored with it.
    var newGroups: [GroupRecord] = []
    /// Who waits for a creation.
    var waiters: [Waiter] = []
    /// A removal was asked for during the creation; who waits for it.
    var dropWaiters: [Waiter] = []
}
