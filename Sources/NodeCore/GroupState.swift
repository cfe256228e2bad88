// The replicated state of a group besides its records: which shards it owns, and its members.

import KVBase
import ReplicationCore
import ShardCore

/// Changes only by applying log entries in order, so it is the same on every replica at the same
/// index. Decides whether an operation may touch a record; reads and writes no record itself.
public struct GroupState: Sendable {
    /// Everything up to here is applied.
    public var applied: LogPosition
    /// In force at `applied`.
    public var membership: Membership
    /// The highest sequencer applied; a new leader's clock starts above it.
    public var floor: Sequencer
    public internal(set) var shards = SortedRecords<ShardID, OwnedShard>()
    /// Shards that were given up, with the epoch up to which this group will not take them again:
    /// a command that comes late must not bring one back.
    var released = SortedRecords<ShardID, ReleasedShard>()

    struct ReleasedShard: Hashable, Sendable {
        var shard: ShardID
        var epoch: Epoch
        /// The neighbour that took it in; `.none` when another group took it over.
        var into = ShardID.none
    }

    public init(membership: Membership) {
        applied = LogPosition()
        self.membership = membership
        floor = .zero
    }

    /// The shard that `id` and `epoch` name, or why it may not be touched.
    @inlinable
    public func owned(_ id: ShardID, _ epoch: Epoch) throws(DatabaseError) -> OwnedShard {
        guard let owned = shards[id] else {
            throw DatabaseError(.staleEpoch, "shard \(id) is not in this group")
        }
        guard epoch <= owned.shard.epoch, epoch >= owned.lowestEpoch else {
            throw DatabaseError(
                .staleEpoch, "shard \(id) has epoch \(owned.shard.epoch), not \(epoch)")
        }
        if case .fenced(let target, _, _) = owned.phase {
            throw DatabaseError(
                .staleEpoch,
                "shard \(id) moved to group \(target), epoch \(owned.shard.epoch.next())")
        }
        return owned
    }

    /// As `owned`, for whoever asks both groups of a shard in migration: the former owner answers
    /// what carries the epoch of the new one.
    public func readable(_ id: ShardID, _ epoch: Epoch) throws(DatabaseError) -> OwnedShard {
        if let held = shards[id], case .fenced = held.phase, epoch == held.shard.epoch.next() {
            return held
        }
        return try owned(id, epoch)
    }

    /// Creates or drops a shard. Returns the shard whose records are garbage from here on.
    /// Repeating a command changes nothing.
    public mutating func apply(
        _ code: OperationCode, _ value: UnsafeRawBufferPointer
    ) throws(DatabaseError) -> OwnedShard? {
        var reader = ByteReader(value)
        let command = try OwnedShard(from: &reader)
        let id = command.shard.id
        switch code {
        case .createShard:
            guard command.phase == .owned else {
                throw DatabaseError(.malformed, "shard \(id) is created in \(command.phase)")
            }
            if let present = shards[id] {
                guard present.shard.epoch == command.shard.epoch else {
                    throw DatabaseError(
                        .fenced, "shard \(id) is here with epoch \(present.shard.epoch)")
                }
                return nil
            }
            if let gone = released[id], command.shard.epoch <= gone.epoch {
                throw DatabaseError(
                    .fenced, "shard \(id) was given up here through epoch \(gone.epoch)")
            }
            try checkRoom(for: command.shard.range)
            shards.set(command, for: id)
            return nil
        case .dropShard:
            guard let present = shards[id] else { return nil }
            guard present.shard.epoch <= command.shard.epoch else {
                throw DatabaseError(
                    .fenced, "shard \(id) is here with epoch \(present.shard.epoch)")
            }
            // A repeated command of the split or move that brought it here may still be on its way.
            if present.shard.epoch > Epoch(1) { bar(id, through: command.shard.epoch) }
            return shards.remove(id)
        case .get, .put, .delete, .list, .importRecord, .shardCommand:
            throw DatabaseError(.malformed, "\(code) does not create or drop a shard")
        }
    }

    /// Throws when one more shard would make the state larger than what a frame carries.
    func checkRoom(for range: KeyRange) throws(DatabaseError) {
        guard shards.count < Limits.groupShardsMax else {
            throw DatabaseError(
                .tooLarge, "the group holds \(shards.count) shards, the most it may")
        }
        func bytes(_ range: KeyRange) -> Int { range.start.count + (range.end?.count ?? 0) }
        let own = bytes(range)
        // Groups full of shards with short keys stay far below the bound.
        guard own > Self.shortKeysBytes else { return }
        let held = shards.elements.reduce(0) { $0 + Self.shardBytes + bytes($1.shard.range) }
        let total = held + released.count * Self.releasedBytes + own
        guard total <= Limits.groupStateBytesMax else {
            throw DatabaseError(
                .tooLarge,
                "the shards of the group have keys of \(held) bytes; another \(own) do not fit")
        }
    }

    private static let shortKeysBytes = 256
    private static let shardBytes = 80
    private static let releasedBytes = 12

    /// Membership and shards; position and floor are kept in the applied record instead, which is
    /// written with every batch.
    public func encode(into writer: inout ByteWriter) {
        membership.encode(into: &writer)
        writer.write(list: shards.elements) { writer, owned in owned.encode(into: &writer) }
        writer.write(list: released.elements) { writer, entry in
            writer.write(entry.shard)
            writer.write(entry.epoch)
            writer.write(entry.into)
        }
    }

    /// How far each copy has come, on its own: it changes with every chunk, and the whole state of
    /// a group with many shards is large.
    public func encodeCursors(into writer: inout ByteWriter) {
        writer.write(list: shards.elements.filter(\.isImporting)) { writer, held in
            writer.write(held.shard.id)
            writer.write(held.shard.epoch)
            if case .importing(_, _, let cursor) = held.phase { writer.write(cursor) }
        }
    }

    /// Takes over cursors that were written after this state, or before: a copy only goes forward,
    /// so the one that is further is the newer one.
    public mutating func takeCursors(from reader: inout ByteReader) throws(DatabaseError) {
        let cursors = try reader.readList(elementBytesMin: 9) { (reader) throws(DatabaseError) in
            let id: ShardID = try reader.read()
            let epoch: Epoch = try reader.read()
            return (id, epoch, try reader.readOptionalBytes())
        }
        for (id, epoch, cursor) in cursors {
            guard var held = shards[id], held.shard.epoch == epoch,
                case .importing(let source, let floor, let known?) = held.phase,
                cursor.map({ compareBytes(known, $0) < 0 }) ?? true
            else { continue }
            held.phase = .importing(from: source, floor: floor, cursor: cursor)
            shards.set(held, for: id)
        }
    }

    public init(
        from reader: inout ByteReader, applied: LogPosition, floor: Sequencer
    ) throws(DatabaseError) {
        self.applied = applied
        self.floor = floor
        membership = try Membership(from: &reader)
        for owned in try reader.readList(
            elementBytesMin: 20,
            { (reader) throws(DatabaseError) in try OwnedShard(from: &reader) })
        {
            shards.set(owned, for: owned.shard.id)
        }
        for entry in try reader.readList(
            elementBytesMin: 12,
            { (reader) throws(DatabaseError) in
                ReleasedShard(
                    shard: try reader.read(), epoch: try reader.read(), into: try reader.read())
            })
        {
            released.set(entry, for: entry.shard)
        }
    }
}

/// Lets a read find out in constant time whether a write to its key is proposed and not yet
/// applied, so that a client that pipelines a write and a read sees its own write.
///
/// Keys share slots by hash: a read may wait for another key's write, never miss its own.
public struct PendingKeys: Sendable {
    private static let slotCount = 1_024
    private var slots = [LogIndex](repeating: .none, count: slotCount)
    /// The last index noted for any key.
    public private(set) var last: LogIndex = .none

    public init() {}

    /// The key with this hash is written by the entry at `index`.
    public mutating func note(hash: UInt64, index: LogIndex) {
        slots[Int(hash % UInt64(Self.slotCount))] = index
        last = index
    }

    /// What was noted above `index` will not be logged after all.
    public mutating func limit(to index: LogIndex) {
        for slot in slots.indices where slots[slot] > index { slots[slot] = index }
        last = min(last, index)
    }

    /// The entry to wait for before the key with this hash is read; `.none` for none known.
    public func index(hash: UInt64) -> LogIndex { slots[Int(hash % UInt64(Self.slotCount))] }
}
