// What nodes tell of shards on the move.

import KVBase

/// How far the copy of a shard has come, from the leader of the group that takes it over. In every
/// heartbeat until the copy is finished.
public struct CopyReport: Hashable, Sendable {
    public var shard: ShardID
    /// With which the group activated the shard.
    public var epoch: Epoch
    /// All records are here: the cursor reached the end.
    public var isWhole: Bool
    /// Copied since this node leads the copy, keys and values.
    public var bytes: UInt64
    public var records: UInt64
    /// The copy rests because requests on the nodes involved take too long.
    public var isThrottled: Bool

    public init(
        shard: ShardID, epoch: Epoch, isWhole: Bool, bytes: UInt64, records: UInt64,
        isThrottled: Bool
    ) {
        self.shard = shard
        self.epoch = epoch
        self.isWhole = isWhole
        self.bytes = bytes
        self.records = records
        self.isThrottled = isThrottled
    }

    func encode(into writer: inout ByteWriter) {
        writer.write(shard)
        writer.write(epoch)
        writer.write(isWhole)
        writer.write(bytes)
        writer.write(records)
        writer.write(isThrottled)
    }

    init(from reader: inout ByteReader) throws(DatabaseError) {
        shard = try reader.read()
        epoch = try reader.read()
        isWhole = try reader.readBool()
        bytes = try reader.readUInt64()
        records = try reader.readUInt64()
        isThrottled = try reader.readBool()
    }
}

/// What one replica holds of a shard at one place of the group's log, after a `verify` command. In
/// every heartbeat until the shard has another epoch or the replica has forgotten it.
public struct ShardDigest: Hashable, Sendable {
    public var group: GroupID
    public var replica: ReplicaID
    public var shard: ShardID
    public var epoch: Epoch
    /// Of the `verify` command: digests of the same index are comparable.
    public var index: LogIndex
    /// Over keys, sequencers, tombstones and values in order of keys.
    public var digest: UInt64
    public var records: UInt64

    public init(
        group: GroupID, replica: ReplicaID, shard: ShardID, epoch: Epoch, index: LogIndex,
        digest: UInt64, records: UInt64
    ) {
        self.group = group
        self.replica = replica
        self.shard = shard
        self.epoch = epoch
        self.index = index
        self.digest = digest
        self.records = records
    }

    func encode(into writer: inout ByteWriter) {
        writer.write(group)
        writer.write(replica)
        writer.write(shard)
        writer.write(epoch)
        writer.write(index)
        writer.write(digest)
        writer.write(records)
    }

    init(from reader: inout ByteReader) throws(DatabaseError) {
        group = try reader.read()
        replica = try reader.read()
        shard = try reader.read()
        epoch = try reader.read()
        index = try reader.read()
        digest = try reader.readUInt64()
        records = try reader.readUInt64()
    }
}
