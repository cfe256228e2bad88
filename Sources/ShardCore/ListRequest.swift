// One page of a sorted list, asked of one group.

import KVBase

/// Asks a group for the records of some of its shards, merged in order of key. For a RANGE table it
/// names one shard; for a HASH table all of the table's shards in the group.
public struct ListRequest: Hashable, Sendable {
    public struct Part: Hashable, Sendable {
        public var shard: ShardID
        public var epoch: Epoch

        public init(shard: ShardID, epoch: Epoch) {
            self.shard = shard
            self.epoch = epoch
        }
    }

    public var parts: [Part]
    /// First key of the page (the user's key, not the routed one).
    public var from: Bytes
    /// Leaves `from` itself out: the cursor of a page before.
    public var isFromExclusive: Bool
    /// Exclusive; nil for no end.
    public var to: Bytes?
    /// Most records, and most bytes of keys and values, in the page.
    public var limit: UInt32
    public var bytesMax: UInt32
    /// Only the number of records and the last key are wanted.
    public var isCountOnly: Bool

    public init(
        parts: [Part], from: Bytes, isFromExclusive: Bool, to: Bytes?, limit: UInt32,
        bytesMax: UInt32 = UInt32(Limits.listPageBytesMax), isCountOnly: Bool = false
    ) {
        self.parts = parts
        self.from = from
        self.isFromExclusive = isFromExclusive
        self.to = to
        self.limit = limit
        self.bytesMax = bytesMax
        self.isCountOnly = isCountOnly
    }

    public func encode(into writer: inout ByteWriter) {
        writer.write(list: parts) { writer, part in
            writer.write(part.shard)
            writer.write(part.epoch)
        }
        writer.write(from)
        writer.write(isFromExclusive)
        writer.write(to)
        writer.write(limit)
        writer.write(bytesMax)
        writer.write(isCountOnly)
    }

    public init(from reader: inout ByteReader) throws(DatabaseError) {
        parts = try reader.readList(elementBytesMin: 8) { (reader) throws(DatabaseError) in
            Part(shard: try reader.read(), epoch: try reader.read())
        }
        from = try reader.readBytes()
        isFromExclusive = try reader.readBool()
        to = try reader.readOptionalBytes()
        limit = try reader.readUInt32()
        bytesMax = try reader.readUInt32()
        isCountOnly = try reader.readBool()
    }
}

/// One record of a list.
public struct ListedRecord: Hashable, Sendable {
    public var key: Bytes
    public var value: Bytes
    public var sequencer: Sequencer

    public init(key: Bytes, value: Bytes, sequencer: Sequencer) {
        self.key = key
        self.value = value
        self.sequencer = sequencer
    }
}

/// The answer to a `ListRequest`.
public struct ListPage: Hashable, Sendable {
    /// Records found; equals `records.count` unless only the count was asked for.
    public var count: UInt32
    /// There may be records after `lastKey`: ask again from it, exclusively.
    public var hasMore: Bool
    /// The last key looked at; meaningful when `hasMore`.
    public var lastKey: Bytes
    /// In order of key.
    public var records: [ListedRecord]

    public init(count: UInt32, hasMore: Bool, lastKey: Bytes, records: [ListedRecord]) {
        self.count = count
        self.hasMore = hasMore
        self.lastKey = lastKey
        self.records = records
    }

    public func encode(into writer: inout ByteWriter) {
        writer.write(count)
        writer.write(hasMore)
        writer.write(lastKey)
        writer.write(list: records) { writer, record in
            writer.write(record.sequencer)
            writer.write(record.key)
            writer.write(record.value)
        }
    }

    public init(from reader: inout ByteReader) throws(DatabaseError) {
        count = try reader.readUInt32()
        hasMore = try reader.readBool()
        lastKey = try reader.readBytes()
        records = try reader.readList(elementBytesMin: 24) { (reader) throws(DatabaseError) in
            let sequencer = try reader.readSequencer()
            return ListedRecord(
                key: try reader.readBytes(), value: try reader.readBytes(), sequencer: sequencer)
        }
    }
}
