// What operations on shards are asked to do, and what they do.

import KVBase
import ShardCore

/// Where a shard is to go.
public enum MoveTarget: Hashable, Sendable {
    /// The controller chooses, and forms a group from the spare pool when none has room.
    case any
    /// A group formed for it.
    case new
    case group(GroupID)
}

/// A split as it is asked for.
public struct SplitRequest: Hashable, Sendable {
    public var table: String
    /// Nil: the shard that holds `at`, or else the busiest, or else the largest.
    public var shard: ShardID?
    /// A routed key; nil: halves the load, or else the bytes.
    public var at: Bytes?
    /// Where one half goes; nil: both stay.
    public var to: MoveTarget?

    public init(table: String, shard: ShardID? = nil, at: Bytes? = nil, to: MoveTarget? = .any) {
        self.table = table
        self.shard = shard
        self.at = at
        self.to = to
    }
}

/// The work of an operation on a shard: a cut, a move, a merge, in this order, each where it is asked
/// for. Where the work stands is told by the operation's step and the shards' records.
public struct ShardWork: Hashable, Sendable {
    public var table: TableID
    /// That is cut, or moves, or takes in its right neighbour.
    public var shard: ShardID
    /// The routed key of the cut; nil for none.
    public var cut: Bytes?
    /// The shard that the cut makes of the keys from `cut` on; `.none` without a cut.
    public var upper: ShardID
    /// The right neighbour that is taken in; `.none` without a merge.
    public var neighbour: ShardID
    /// That moves: `shard`, `upper` or `neighbour`; `.none` when nothing does.
    public var moving: ShardID
    /// Its owner at the beginning.
    public var source: GroupID
    /// Its owner at the end; `.none` when nothing moves, and of a proposal whose group is to be chosen
    /// or formed when it is applied.
    public var target: GroupID
    /// The way back: `source` and `target` have changed places.
    public var isTurned: Bool
    /// Of the records to copy, about, when it was planned; once they are copied, of those that were. 0 when
    /// not known.
    public var bytes: UInt64
    /// Of `shard` and of `neighbour`, when it was planned.
    public var epoch: Epoch
    public var neighbourEpoch: Epoch

    public init(
        table: TableID, shard: ShardID, cut: Bytes? = nil, upper: ShardID = .none,
        neighbour: ShardID = .none, moving: ShardID = .none, source: GroupID,
        target: GroupID = .none, bytes: UInt64 = 0, epoch: Epoch = .none,
        neighbourEpoch: Epoch = .none
    ) {
        self.table = table
        self.shard = shard
        self.cut = cut
        self.upper = upper
        self.neighbour = neighbour
        self.moving = moving
        self.source = source
        self.target = target
        isTurned = false
        self.bytes = bytes
        self.epoch = epoch
        self.neighbourEpoch = neighbourEpoch
    }

    /// Whether the work has to do with the shard.
    public func names(_ id: ShardID) -> Bool {
        id != .none && (id == shard || id == upper || id == neighbour || id == moving)
    }

    func encode(into writer: inout ByteWriter) {
        writer.write(table)
        writer.write(shard)
        writer.write(cut)
        writer.write(upper)
        writer.write(neighbour)
        writer.write(moving)
        writer.write(source)
        writer.write(target)
        writer.write(isTurned)
        writer.write(bytes)
        writer.write(epoch)
        writer.write(neighbourEpoch)
    }

    init(from reader: inout ByteReader) throws(DatabaseError) {
        table = try reader.read()
        shard = try reader.read()
        cut = try reader.readOptionalBytes()
        upper = try reader.read()
        neighbour = try reader.read()
        moving = try reader.read()
        source = try reader.read()
        target = try reader.read()
        isTurned = try reader.readBool()
        bytes = try reader.readUInt64()
        epoch = try reader.read()
        neighbourEpoch = try reader.read()
    }
}
