// What a group still holds of a shard that has moved to another group.

import KVBase
import ShardCore

/// A shard that has left a group: fenced there, with the records that it had then. They are of no use
/// to anybody, but for the time in which a mistake might show; then the group is told to delete them.
public struct FormerShard: Hashable, Sendable {
    /// That moved the shard.
    public var operation: OperationID
    public var shard: ShardID
    public var table: TableID
    /// Of the shard when it left; it may have been cut or joined since.
    public var range: KeyRange
    /// That holds the records.
    public var group: GroupID
    /// With which the new owner finished the move, and with which the group gives them up.
    public var epoch: Epoch
    /// Wall clock in milliseconds since 1970 of the end of the move.
    public var since: UInt64
    /// Of its records, as counted last before it left; 0 when nothing was known.
    public var bytes: UInt64

    func encode(into writer: inout ByteWriter) {
        writer.write(operation)
        writer.write(shard)
        writer.write(table)
        writer.write(range)
        writer.write(group)
        writer.write(epoch)
        writer.write(since)
        writer.write(bytes)
    }

    init(
        operation: OperationID, shard: ShardID, table: TableID, range: KeyRange, group: GroupID,
        epoch: Epoch, since: UInt64, bytes: UInt64
    ) {
        self.operation = operation
        self.shard = shard
        self.table = table
        self.range = range
        self.group = group
        self.epoch = epoch
        self.since = since
        self.bytes = bytes
    }

    init(from reader: inout ByteReader) throws(DatabaseError) {
        operation = try reader.read()
        shard = try reader.read()
        table = try reader.read()
        range = try reader.readKeyRange()
        group = try reader.read()
        epoch = try reader.read()
        since = try reader.readUInt64()
        bytes = try reader.readUInt64()
    }
}

/// A former shard as the acting controller deals with it; all but the record is lost with it.
public struct FormerShardStatus: Sendable {
    public internal(set) var record: FormerShard
    /// Why it is there although its time has come; empty before.
    public internal(set) var note = ""
    /// Replicas of the present owner were found to differ.
    public internal(set) var isDisputed = false
    /// The shards that have its keys now, when the proof began; nil before.
    var owners: [Shard]?
    /// So many of them, from the first on, were proven.
    var provenCount = 0
    /// What the proof found, for the decision log.
    var findings: [String] = []
    /// The newest command is the release, not a part of the proof.
    var isReleasing = false
    /// The newest command; 0 for none.
    var command: UInt64 = 0
    var sendAgainAt: Instant = .origin
    /// `verify` was answered with success: digests come.
    var isConfirmed = false
    /// Digests count that were made above this place of the log.
    var verifiedAbove: LogIndex?
    /// How often digests of the present owner were asked for.
    var verifications: UInt64 = 0
    var verifyAgainAt: Instant = .origin

    init(record: FormerShard) { self.record = record }

    /// The shard whose owner was asked for digests.
    var provesOwner: ShardID? {
        guard !isReleasing, isConfirmed || command != 0, let owners, provenCount < owners.count
        else { return nil }
        return owners[provenCount].id
    }

    /// The proof, or what is left of it, begins anew.
    mutating func restart() {
        owners = nil
        provenCount = 0
        findings = []
        next()
    }

    /// Nothing is known of the next owner.
    mutating func next() {
        command = 0
        sendAgainAt = .origin
        isConfirmed = false
        isReleasing = false
        verifiedAbove = nil
        verifications = 0
    }
}
