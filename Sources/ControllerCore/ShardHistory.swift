// What a shard has been through: the memory that keeps rules from undoing each other. Stored with the
// end of each operation on a shard, so that it survives a change of controller.

import KVBase
import ShardCore

/// Wall clock in milliseconds since 1970; 0 for never.
struct ShardHistory: Hashable, Sendable {
    /// In the key, not in the value.
    var shard: ShardID
    /// A split made it; shards that their table was created with are never joined by a rule.
    var isCut = false
    var cutAt: UInt64 = 0
    var joinedAt: UInt64 = 0
    var movedAt: UInt64 = 0

    var lastChange: UInt64 { max(cutAt, joinedAt, movedAt) }

    init(_ shard: ShardID) { self.shard = shard }

    func encode(into writer: inout ByteWriter) {
        writer.write(isCut)
        writer.write(cutAt)
        writer.write(joinedAt)
        writer.write(movedAt)
    }

    init(_ shard: ShardID, from reader: inout ByteReader) throws(DatabaseError) {
        self.shard = shard
        isCut = try reader.readBool()
        cutAt = try reader.readUInt64()
        joinedAt = try reader.readUInt64()
        movedAt = try reader.readUInt64()
    }
}

extension Controller {
    /// Notes in `transaction`, which ends an operation on shards, what it did to them.
    mutating func keepHistory(
        of record: OperationRecord, now: Instant, in transaction: inout MetadataTransaction
    ) {
        // What was only proposed did nothing.
        guard record.isFinished, let work = record.work,
            operations[record.id]?.record.step != .proposed
        else { return }
        let at = max(1, wallClock(now))
        let isDone = record.step == .done
        // Cancelled too late, it moved the neighbour and left it at that.
        let isJoined = isDone && work.neighbour != .none && !record.isCancelled
        // The transaction that ends a split may be the one that makes the upper shard.
        if work.cut != nil, isDone || shards[work.upper] != nil {
            note(work.shard, in: &transaction) { $0.cutAt = at }
            note(work.upper, madeNow: work.moving == .none ? work.upper : .none, in: &transaction) {
                history in
                history.isCut = true
                history.cutAt = at
            }
        }
        if work.moving != .none, shards[work.moving] != nil || isDone,
            !(isJoined && work.moving == work.neighbour)
        {
            note(work.moving, in: &transaction) { $0.movedAt = at }
        }
        if isJoined {
            note(work.shard, in: &transaction) { $0.joinedAt = at }
            forgetHistory(of: work.neighbour, in: &transaction)
        }
    }

    mutating func forgetHistory(of shard: ShardID, in transaction: inout MetadataTransaction) {
        guard rules.histories.remove(shard) != nil else { return }
        rules.isOrderOld = true
        transaction.changes.removeAll { $0.key == StoreKey.history(shard) }
        transaction.changes.append(.delete(key: StoreKey.history(shard)))
    }

    private mutating func note(
        _ shard: ShardID, madeNow made: ShardID = .none,
        in transaction: inout MetadataTransaction, _ body: (inout ShardHistory) -> Void
    ) {
        // A table may have been dropped meanwhile: nothing is kept of shards that are gone.
        guard shards[shard] != nil || shard == made else { return }
        var history = rules.histories[shard] ?? ShardHistory(shard)
        body(&history)
        rules.histories.set(history, for: shard)
        rules.isOrderOld = true
        transaction.changes.removeAll { $0.key == StoreKey.history(shard) }
        transaction.put(StoreKey.history(shard)) { history.encode(into: &$0) }
    }

    /// Whether at least `time` has passed since the moment `at` of the wall clock. False while the
    /// wall clock is not known.
    func isPast(_ at: UInt64, by time: Nanoseconds, now: Instant) -> Bool {
        if at == 0 { return true }
        guard clock != nil else { return false }
        let passed = wallClock(now)
        return passed >= at && passed - at >= time.count / 1_000_000
    }
}
