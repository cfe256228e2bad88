// Reading a shard that moves, from its former owner: chunks of the copy, and single keys.

import KVBase
import NodeCore
import ShardCore

/// Asks a replica of the former owner for records. Any replica that has applied the fence may
/// answer: nothing changes behind a fence.
struct ShardReadRequest {
    /// The former owner and the one that asks.
    var source: GroupID
    var target: GroupID
    var shard: ShardID
    /// Of the shard in `target`.
    var epoch: Epoch
    /// Drawn by the asker.
    var token: UInt64
    /// Routed keys; the shard's end where there is none.
    var from: Bytes
    var to: Bytes?
    var bytesMax: UInt32
    /// Of a copy at its slowest, which disturbs nobody.
    var isGentle = false

    func encode(into writer: inout ByteWriter) {
        writer.write(source)
        writer.write(target)
        writer.write(shard)
        writer.write(epoch)
        writer.write(token)
        writer.write(from)
        writer.write(to)
        writer.write(bytesMax)
        writer.write(isGentle)
    }

    init(from reader: inout ByteReader) throws(DatabaseError) {
        source = try reader.read()
        target = try reader.read()
        shard = try reader.read()
        epoch = try reader.read()
        token = try reader.readUInt64()
        from = try reader.readBytes()
        to = try reader.readOptionalBytes()
        bytesMax = try reader.readUInt32()
        isGentle = try reader.readBool()
    }

    init(
        source: GroupID, target: GroupID, shard: ShardID, epoch: Epoch, token: UInt64, from: Bytes,
        to: Bytes?, bytesMax: UInt32, isGentle: Bool = false
    ) {
        self.isGentle = isGentle
        self.source = source
        self.target = target
        self.shard = shard
        self.epoch = epoch
        self.token = token
        self.from = from
        self.to = to
        self.bytesMax = bytesMax
    }
}

/// The answer to a `ShardReadRequest`.
struct ShardRecords {
    struct Record {
        var routedKey: Bytes
        var sequencer: Sequencer
        var isTombstone: Bool
        var value: Bytes
    }

    var target: GroupID
    var token: UInt64
    /// This replica cannot answer; another one may.
    var error: DatabaseError?
    /// The records are all there are below this routed key; nil: below the end that was asked for.
    var to: Bytes?
    /// Over the records as the former owner's engine holds them.
    var digest: UInt64
    /// How requests fare on the node that answers (`ForegroundLatency.strain`).
    var strain: UInt32 = 0
    /// In order of key, tombstones included.
    var records: [Record]

    func encode(into writer: inout ByteWriter) {
        writer.write(target)
        writer.write(token)
        writer.write(error)
        writer.write(to)
        writer.write(digest)
        writer.write(strain)
        writer.write(list: records) { writer, record in
            writer.write(record.sequencer)
            writer.write(record.isTombstone)
            writer.write(record.routedKey)
            writer.write(record.value)
        }
    }

    init(from reader: inout ByteReader) throws(DatabaseError) {
        target = try reader.read()
        token = try reader.readUInt64()
        error = try reader.readError()
        to = try reader.readOptionalBytes()
        digest = try reader.readUInt64()
        strain = try reader.readUInt32()
        records = try reader.readList(elementBytesMin: 25) { (reader) throws(DatabaseError) in
            let sequencer = try reader.readSequencer()
            let isTombstone = try reader.readBool()
            return Record(
                routedKey: try reader.readBytes(), sequencer: sequencer, isTombstone: isTombstone,
                value: try reader.readBytes())
        }
    }

    init(
        target: GroupID, token: UInt64, error: DatabaseError? = nil, to: Bytes? = nil,
        records: [Record] = []
    ) {
        self.target = target
        self.token = token
        self.error = error
        self.to = to
        self.records = records
        digest = Self.digest(of: records)
    }

    /// Over keys, sequencers, tombstones and values, in order.
    static func digest(of records: [Record]) -> UInt64 {
        var digest = RecordDigest()
        for record in records {
            record.routedKey.withUnsafeBytes { routedKey in
                record.value.withUnsafeBytes { value in
                    digest.add(
                        routedKey, record.sequencer, isTombstone: record.isTombstone, value)
                }
            }
        }
        return digest.value
    }
}
