// Commands that split a shard or move it between groups. Each goes through the log of one group.

import KVBase

/// One step of a split or a move, as a group's log holds it.
///
/// Every command names the shard and the epoch it starts from, so that a repeated, late or
/// reordered one is either without effect or refused (docs/internals/migration.md).
public enum ShardCommand: Hashable, Sendable {
    /// Cuts the shard of this epoch in two at a routed key: it keeps the keys below, the new shard
    /// `into` gets the others. Both have the next epoch; no record moves.
    case split(ShardID, Epoch, at: Bytes, into: ShardID)
    /// From here on the group refuses writes and plain reads of the shard: `to` takes over with the
    /// next epoch.
    case fence(ShardID, Epoch, to: GroupID)
    /// The group takes the shard over with the shard's epoch. `from`: the group whose records are
    /// still to be copied; `.none` when there are none. `floor`: the highest sequencer that the
    /// former owner issued.
    case activate(Shard, Partitioning, from: GroupID, floor: Sequencer)
    /// Every record of the former owner below routed key `to` (nil: all) is here, given that this
    /// already held up to `from`.
    case advance(ShardID, Epoch, from: Bytes, to: Bytes?)
    /// The copy is complete and verified: the shard is owned like any other, with the next epoch.
    case finish(ShardID, Epoch)
    /// The former owner, fenced two epochs below this one, gives the shard up with its records: the
    /// new owner has finished. No dual read is answered from here on.
    case release(ShardID, Epoch)
    /// The group, which does not hold the shard, will not take it with this epoch or one below: a
    /// move is given up before its activation.
    case decline(ShardID, Epoch)
    /// Every replica digests what it holds of the shard at this place of the log and reports it.
    case verify(ShardID, Epoch)
    /// The shard, of this epoch, takes in its right neighbour `with` of epoch `at`, which is owned by
    /// the same group: it has the epoch above both, the neighbour is given up through that epoch. No
    /// record moves.
    case merge(ShardID, Epoch, with: ShardID, at: Epoch)

    public var shard: ShardID {
        switch self {
        case .split(let shard, _, _, _), .fence(let shard, _, _), .advance(let shard, _, _, _),
            .finish(let shard, _), .release(let shard, _), .decline(let shard, _),
            .verify(let shard, _), .merge(let shard, _, _, _):
            shard
        case .activate(let shard, _, _, _): shard.id
        }
    }

    public var epoch: Epoch {
        switch self {
        case .split(_, let epoch, _, _), .fence(_, let epoch, _), .advance(_, let epoch, _, _),
            .finish(_, let epoch), .release(_, let epoch), .decline(_, let epoch),
            .verify(_, let epoch), .merge(_, let epoch, _, _):
            epoch
        case .activate(let shard, _, _, _): shard.epoch
        }
    }

    public func encode(into writer: inout ByteWriter) {
        switch self {
        case .split(let shard, let epoch, let key, let right):
            Self.head(1, shard, epoch, &writer)
            writer.write(key)
            writer.write(right)
        case .fence(let shard, let epoch, let group):
            Self.head(2, shard, epoch, &writer)
            writer.write(group)
        case .activate(let shard, let partitioning, let group, let floor):
            writer.write(UInt8(3))
            shard.encode(into: &writer)
            partitioning.encode(into: &writer)
            writer.write(group)
            writer.write(floor)
        case .advance(let shard, let epoch, let from, let to):
            Self.head(4, shard, epoch, &writer)
            writer.write(from)
            writer.write(to)
        case .finish(let shard, let epoch): Self.head(5, shard, epoch, &writer)
        case .release(let shard, let epoch): Self.head(6, shard, epoch, &writer)
        case .decline(let shard, let epoch): Self.head(7, shard, epoch, &writer)
        case .verify(let shard, let epoch): Self.head(8, shard, epoch, &writer)
        case .merge(let shard, let epoch, let neighbour, let other):
            Self.head(9, shard, epoch, &writer)
            writer.write(neighbour)
            writer.write(other)
        }
    }

    public init(from reader: inout ByteReader) throws(DatabaseError) {
        switch try reader.readUInt8() {
        case 1:
            self = .split(
                try reader.read(), try reader.read(), at: try reader.readBytes(),
                into: try reader.read())
        case 2: self = .fence(try reader.read(), try reader.read(), to: try reader.read())
        case 3:
            self = .activate(
                try Shard(from: &reader), try Partitioning(from: &reader),
                from: try reader.read(), floor: try reader.readSequencer())
        case 4:
            self = .advance(
                try reader.read(), try reader.read(), from: try reader.readBytes(),
                to: try reader.readOptionalBytes())
        case 5: self = .finish(try reader.read(), try reader.read())
        case 6: self = .release(try reader.read(), try reader.read())
        case 7: self = .decline(try reader.read(), try reader.read())
        case 8: self = .verify(try reader.read(), try reader.read())
        case 9:
            self = .merge(
                try reader.read(), try reader.read(), with: try reader.read(),
                at: try reader.read())
        case let kind: throw DatabaseError(.malformed, "shard command of kind \(kind)")
        }
    }

    private static func head(
        _ kind: UInt8, _ shard: ShardID, _ epoch: Epoch, _ writer: inout ByteWriter
    ) {
        writer.write(kind)
        writer.write(shard)
        writer.write(epoch)
    }
}
