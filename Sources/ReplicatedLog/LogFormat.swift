// The bytes of a log segment; docs/internals/log.md describes them one by one.

import Checksum
import Glibc
import KVBase
import ReplicationCore

enum LogFormat {
    static let version: UInt32 = 1
    /// "RKLG" and "RKBT" in file order.
    static let segmentMagic: UInt32 = 0x474C_4B52
    static let batchMagic: UInt32 = 0x5442_4B52
    /// Batches start at multiples of this, a disk's sector: a torn write of one batch cannot touch
    /// a sector of the batch before it.
    static let alignment = 512
    static let segmentHeaderBytes = 36
    static let batchHeaderBytes = 48
    static let recordHeaderBytes = 16

    static func align(_ offset: Int) -> Int { (offset + alignment - 1) & ~(alignment - 1) }

    static func segmentName(_ number: UInt64) -> String {
        hex(number) + ".log"
    }

    /// The number in a segment's file name; nil for any other name.
    static func segmentNumber(_ name: String) -> UInt64? {
        name.hasSuffix(".log") ? UInt64(hex: name.dropLast(4)) : nil
    }
}

/// What a segment begins with.
struct SegmentHeader: Hashable {
    var logID: UInt64
    var segment: UInt64
    /// The number of the first batch in this segment.
    var firstBatch: UInt64

    func encoded() -> Bytes {
        var writer = ByteWriter(reserving: LogFormat.alignment)
        writer.write(LogFormat.segmentMagic)
        writer.write(LogFormat.version)
        writer.write(logID)
        writer.write(segment)
        writer.write(firstBatch)
        writer.write(crc32c(writer.bytes))
        return writer.bytes + Bytes(repeating: 0, count: LogFormat.alignment - writer.count)
    }

    /// Throws `.storageFailed` naming what is wrong; `path` is for the message.
    init(_ bytes: UnsafeRawBufferPointer, path: String) throws(DatabaseError) {
        var reader = ByteReader(bytes)
        guard bytes.count >= LogFormat.alignment,
            try reader.readUInt32() == LogFormat.segmentMagic
        else { throw DatabaseError(.storageFailed, "\(path) is not a log segment") }
        let version = try reader.readUInt32()
        guard version == LogFormat.version else {
            throw DatabaseError(
                .storageFailed,
                "\(path) has log version \(version); this program reads \(LogFormat.version)")
        }
        logID = try reader.readUInt64()
        segment = try reader.readUInt64()
        firstBatch = try reader.readUInt64()
        let sum = crc32c(UnsafeRawBufferPointer(rebasing: bytes[..<reader.offset]))
        guard try reader.readUInt32() == sum else {
            throw DatabaseError(.storageFailed, "\(path): the segment header is damaged")
        }
    }

    init(logID: UInt64, segment: UInt64, firstBatch: UInt64) {
        self.logID = logID
        self.segment = segment
        self.firstBatch = firstBatch
    }
}

/// What a batch begins with.
struct BatchHeader: Hashable {
    /// The body begins with the state table of all groups.
    static let hasStateTable: UInt32 = 1
    /// Written only to see how long the disk takes. The next batch takes its place and its number;
    /// recovery passes over one that was left at the end.
    static let isProbe: UInt32 = 2

    var flags: UInt32
    var number: UInt64
    var logID: UInt64
    var segment: UInt64
    var bodyBytes: UInt32
    var bodyChecksum: UInt32
    var records: UInt32

    func encode(into target: UnsafeMutableRawBufferPointer) {
        precondition(target.count >= LogFormat.batchHeaderBytes)
        func store<T: FixedWidthInteger>(_ value: T, _ offset: Int) {
            target.storeBytes(of: value.littleEndian, toByteOffset: offset, as: T.self)
        }
        store(LogFormat.batchMagic, 0)
        store(flags, 4)
        store(number, 8)
        store(logID, 16)
        store(segment, 24)
        store(bodyBytes, 32)
        store(bodyChecksum, 36)
        store(records, 40)
        store(crc32c(UnsafeRawBufferPointer(rebasing: target[..<44])), 44)
    }

    /// Nil unless the bytes at `offset` are a whole and undamaged header.
    init?(_ bytes: UnsafeRawBufferPointer, at offset: Int) {
        guard offset + LogFormat.batchHeaderBytes <= bytes.count else { return nil }
        func load<T: FixedWidthInteger>(_ at: Int) -> T {
            T(littleEndian: bytes.loadUnaligned(fromByteOffset: offset + at, as: T.self))
        }
        guard load(0) == LogFormat.batchMagic else { return nil }
        let sum = crc32c(UnsafeRawBufferPointer(rebasing: bytes[offset..<offset + 44]))
        guard load(44) == sum else { return nil }
        flags = load(4)
        number = load(8)
        logID = load(16)
        segment = load(24)
        bodyBytes = load(32)
        bodyChecksum = load(36)
        records = load(40)
    }

    init(
        flags: UInt32, number: UInt64, logID: UInt64, segment: UInt64, bodyBytes: UInt32,
        bodyChecksum: UInt32, records: UInt32
    ) {
        self.flags = flags
        self.number = number
        self.logID = logID
        self.segment = segment
        self.bodyBytes = bodyBytes
        self.bodyChecksum = bodyChecksum
        self.records = records
    }
}

/// What a record says. Raw values are on disk: never renumber.
enum RecordKind: UInt8 {
    /// Term, index, payload; the entry's own kind is in the record header.
    case entry = 1
    /// Term, vote.
    case hardState = 2
    /// Index, term: a snapshot replaced the log.
    case snapshot = 3
    /// The group's replica was created here, empty.
    case created = 4
    /// The group's replica was destroyed.
    case removed = 5
    /// Term, vote, compacted index, compacted term: one line of a segment's state table.
    case state = 6
}
