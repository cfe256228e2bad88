// Client operations as bytes: the same form from router to node and in the log, so that a leader
// copies a write once, from the receive buffer into the log entry.

import KVBase

public enum OperationCode: UInt8, Sendable {
    case get = 1
    case put = 2
    case delete = 3
    /// A page of a sorted list; the value is an encoded `ListRequest`.
    case list = 4
    /// Controller commands, from here on. The value is an encoded `Shard`.
    case createShard = 16
    case dropShard = 17
    /// The value is an encoded `ShardCommand`.
    case shardCommand = 18
    /// A record of the group that a shard is moved from; the expected sequencer is the record's own.
    /// Logged by the new owner's leader, never sent by a router.
    case importRecord = 19

    /// Goes through the log.
    @inlinable
    public var isWrite: Bool { self != .get && self != .list }
    public var isControl: Bool { rawValue >= 16 }
}

public struct OperationFlags: OptionSet, Hashable, Sendable {
    public var rawValue: UInt8
    public init(rawValue: UInt8) { self.rawValue = rawValue }
    /// Takes effect only when the record's sequencer is the expected one (`.zero`: no record).
    public static let conditional = OperationFlags(rawValue: 1)
    /// The answer tells whether there was a record before (put, delete).
    public static let wantsPrevious = OperationFlags(rawValue: 2)
    /// Read by a quorum round instead of the lease.
    public static let quorumRead = OperationFlags(rawValue: 4)
    /// The answer leaves the value out (get).
    public static let withoutValue = OperationFlags(rawValue: 8)
    /// The imported record is a tombstone.
    public static let tombstone = OperationFlags(rawValue: 16)
    /// What the former owner holds of the key was logged before this operation, or is older. Set by
    /// the new owner's leader, never by a router.
    public static let previousImported = OperationFlags(rawValue: 32)
}

/// One operation where it lies in a frame or a log entry. Valid as long as those bytes.
///
/// Layout, little-endian: group 4, shard 4, epoch 4, code 1, flags 1, zero 2, key length 4, value
/// length 4, expected sequencer 16 (when conditional), key, value.
public struct Operation {
    public static let headerByteCount = 24
    /// Where the flags lie in an operation's bytes.
    public static let flagsOffset = 13

    public var group: GroupID
    public var shard: ShardID
    public var epoch: Epoch
    public var code: OperationCode
    public var flags: OperationFlags
    public var expected: Sequencer
    public var key: UnsafeRawBufferPointer
    public var value: UnsafeRawBufferPointer
    /// The whole operation, header included.
    public var bytes: UnsafeRawBufferPointer

    /// Reads one operation and checks its lengths against `Limits`.
    public init(from reader: inout ByteReader) throws(DatabaseError) {
        let start = reader.offset
        let header = try reader.readRaw(Self.headerByteCount)
        func load<T: FixedWidthInteger>(_ offset: Int, as _: T.Type) -> T {
            T(littleEndian: header.loadUnaligned(fromByteOffset: offset, as: T.self))
        }
        group = GroupID(load(0, as: UInt32.self))
        shard = ShardID(load(4, as: UInt32.self))
        epoch = Epoch(load(8, as: UInt32.self))
        guard let code = OperationCode(rawValue: header[12]) else {
            throw DatabaseError(.malformed, "operation code \(header[12])")
        }
        self.code = code
        flags = OperationFlags(rawValue: header[13])
        let keyCount = Int(load(16, as: UInt32.self))
        let valueCount = Int(load(20, as: UInt32.self))
        guard keyCount <= Limits.keyBytesMax, valueCount <= Limits.valueBytesMax else {
            throw DatabaseError(.tooLarge, "key of \(keyCount), value of \(valueCount) bytes")
        }
        expected = flags.contains(.conditional) ? try reader.readSequencer() : .zero
        key = try reader.readRaw(keyCount)
        value = try reader.readRaw(valueCount)
        bytes = UnsafeRawBufferPointer(rebasing: reader.buffer[start..<reader.offset])
    }
}

extension ByteWriter {
    /// Appends one operation in the layout of `Operation`. `expected` makes it conditional.
    public mutating func writeOperation(
        group: GroupID, shard: ShardID, epoch: Epoch, code: OperationCode,
        flags: OperationFlags = [], expected: Sequencer? = nil,
        key: UnsafeRawBufferPointer, value: UnsafeRawBufferPointer
    ) {
        // By raw value: the generic form is not specialised across modules.
        write(group.rawValue)
        write(shard.rawValue)
        write(epoch.rawValue)
        write(code.rawValue)
        write(expected == nil ? flags.rawValue : flags.union(.conditional).rawValue)
        write(UInt16(0))
        write(UInt32(key.count))
        write(UInt32(value.count))
        if let expected { write(expected) }
        writeRaw(key)
        writeRaw(value)
    }
}

/// The payload of a command entry: a batch of operations under one base sequencer. Operation `i`
/// has the sequencer `base.advanced(by: i)`.
public struct CommandBatch {
    public static let headerByteCount = 20

    public let base: Sequencer
    public let count: UInt32
    private var reader: ByteReader

    /// `payload` must outlive this value.
    public init(_ payload: UnsafeRawBufferPointer) throws(DatabaseError) {
        reader = ByteReader(payload)
        base = try reader.readSequencer()
        count = try reader.readUInt32()
        guard count == 0 || count - 1 <= UInt32.max - base.counter else {
            throw DatabaseError(.malformed, "\(count) sequencers from \(base) on")
        }
    }

    /// The next operation; call `count` times.
    public mutating func next() throws(DatabaseError) -> Operation {
        try Operation(from: &reader)
    }

    /// The highest sequencer of the batch.
    public var last: Sequencer { count == 0 ? base : base.advanced(by: count - 1) }
}
