// Snapshots on the wire: chunks of records one way, acknowledgements the other.

import KVBase
import ReplicationCore
import WireProtocol

/// One piece of a snapshot. The frame's checksum covers it; chunks are numbered from 0 and installed
/// in order, so a broken connection goes on where the receiver stands.
struct SnapshotChunk {
    var group: GroupID
    var from: ReplicaID
    var to: ReplicaID
    var term: Term
    /// Drawn by the sender per snapshot.
    var snapshot: UInt64
    var sequence: UInt32
    /// What the snapshot contains: everything up to here.
    var position: LogPosition
    var isLast: Bool
    /// In chunk 0: the encoded `GroupState`, and its sequencer floor.
    var state: Bytes
    var floor: Sequencer
    /// Storage keys without the 4 bytes of store, and whole values.
    var records: [(key: Bytes, value: Bytes)]

    func encode(into writer: inout ByteWriter) {
        writer.write(group)
        writer.write(from)
        writer.write(to)
        writer.write(term)
        writer.write(snapshot)
        writer.write(sequence)
        writer.write(position.index)
        writer.write(position.term)
        writer.write(isLast)
        writer.write(state)
        writer.write(floor)
        writer.write(list: records) { writer, record in
            writer.write(record.key)
            writer.write(record.value)
        }
    }

    init(from reader: inout ByteReader) throws(DatabaseError) {
        group = try reader.read()
        from = try reader.read()
        to = try reader.read()
        term = try reader.read()
        snapshot = try reader.readUInt64()
        sequence = try reader.readUInt32()
        position = try reader.readPosition()
        isLast = try reader.readBool()
        state = try reader.readBytes()
        floor = try reader.readSequencer()
        records = try reader.readList(elementBytesMin: 8) { (reader) throws(DatabaseError) in
            (key: try reader.readBytes(), value: try reader.readBytes())
        }
    }

    init(
        group: GroupID, from: ReplicaID, to: ReplicaID, term: Term, snapshot: UInt64,
        sequence: UInt32, position: LogPosition, isLast: Bool, state: Bytes, floor: Sequencer,
        records: [(key: Bytes, value: Bytes)]
    ) {
        self.group = group
        self.from = from
        self.to = to
        self.term = term
        self.snapshot = snapshot
        self.sequence = sequence
        self.position = position
        self.isLast = isLast
        self.state = state
        self.floor = floor
        self.records = records
    }
}

/// The receiver has everything below `next`.
struct SnapshotAck {
    var group: GroupID
    var from: ReplicaID
    var to: ReplicaID
    var snapshot: UInt64
    var next: UInt32
    /// The receiver does not want this snapshot (any more).
    var isRefused: Bool
    /// `ForegroundLatency.strain` of the receiving node.
    var strain: UInt32

    func encode(into writer: inout ByteWriter) {
        writer.write(group)
        writer.write(from)
        writer.write(to)
        writer.write(snapshot)
        writer.write(next)
        writer.write(isRefused)
        writer.write(strain)
    }

    init(from reader: inout ByteReader) throws(DatabaseError) {
        group = try reader.read()
        from = try reader.read()
        to = try reader.read()
        snapshot = try reader.readUInt64()
        next = try reader.readUInt32()
        isRefused = try reader.readBool()
        strain = try reader.readUInt32()
    }

    init(
        group: GroupID, from: ReplicaID, to: ReplicaID, snapshot: UInt64, next: UInt32,
        isRefused: Bool, strain: UInt32
    ) {
        self.group = group
        self.from = from
        self.to = to
        self.snapshot = snapshot
        self.next = next
        self.isRefused = isRefused
        self.strain = strain
    }
}
