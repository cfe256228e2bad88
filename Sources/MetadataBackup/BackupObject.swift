// One object of a backup: immutable, named by the revisions in it, compressed and checksummed.
//
// Object, little-endian: magic 8, kind 1, cluster 8, from 8, to 8, wall clock of `to` in milliseconds
// since 1970 8, body bytes 8, CRC32C of the stored body 4, CRC32C of the 53 bytes before 4; then the
// body, one zstd frame. `from` of a snapshot is the first revision that no log held, or `to`.
//
// Body of a snapshot: records in order of key (count 8; key, value, create revision, mod revision).
// Body of a log: events (count 8; revision 8, wall clock 8, changes: 1 key value, or 2 key).

import Checksum
import Compression
import KVBase

/// What an object's name tells: enough to plan a restore from a listing alone.
public struct BackupName: Hashable, Comparable, Sendable {
    public enum Kind: UInt8, Sendable {
        /// Everything at revision `to`; `from` equals it.
        case snapshot = 1
        /// Every change of the revisions `from...to`; `from` follows the `to` of the log before.
        case log = 2
    }

    public var kind: Kind
    public var from: Revision
    public var to: Revision
    /// Wall clock of `to`, in milliseconds since 1970.
    public var at: UInt64

    public init(snapshotAt revision: Revision, at: UInt64) {
        kind = .snapshot
        from = revision
        to = revision
        self.at = at
    }

    public init(logFrom from: Revision, to: Revision, at: UInt64) {
        precondition(from <= to)
        kind = .log
        self.from = from
        self.to = to
        self.at = at
    }

    /// `snapshot-R-AT.rkb` and `log-FROM-TO-AT.rkb`, each number in 16 hexadecimal digits.
    public var text: String {
        switch kind {
        case .snapshot: "snapshot-\(hex(to.rawValue))-\(hex(at)).rkb"
        case .log:
            "log-\(hex(from.rawValue))-\(hex(to.rawValue))-\(hex(at)).rkb"
        }
    }

    /// How messages begin that are about it.
    var subject: String { "backup object \(text)" }

    /// Nil when it is not the name of an object.
    public init?(_ text: String) {
        guard text.hasSuffix(".rkb") else { return nil }
        let parts = text.dropLast(4).split(separator: "-", omittingEmptySubsequences: false)
        let numbers = parts.dropFirst().compactMap { UInt64(hex: $0) }
        guard numbers.count == parts.count - 1 else { return nil }
        switch (parts[0], numbers.count) {
        case ("snapshot", 2): self.init(snapshotAt: Revision(numbers[0]), at: numbers[1])
        case ("log", 3) where numbers[0] <= numbers[1]:
            self.init(logFrom: Revision(numbers[0]), to: Revision(numbers[1]), at: numbers[2])
        default: return nil
        }
    }

    /// By the last revision; at the same one a snapshot comes after the log that leads to it.
    public static func < (left: BackupName, right: BackupName) -> Bool {
        (left.to, right.kind.rawValue, left.from) < (right.to, left.kind.rawValue, right.from)
    }
}

/// A revision with the time it was made, as a log object holds it.
public struct BackupEvent: Hashable, Sendable {
    public var revision: Revision
    /// Wall clock in milliseconds since 1970.
    public var at: UInt64
    public var changes: [MetadataChange]

    public init(revision: Revision, at: UInt64, changes: [MetadataChange]) {
        self.revision = revision
        self.at = at
        self.changes = changes
    }
}

/// An object with its contents.
public struct BackupObject: Hashable, Sendable {
    public enum Contents: Hashable, Sendable {
        case snapshot([MetadataRecord])
        /// Every revision of its name, one after the other.
        case log([BackupEvent])
    }

    static let headerByteCount = 57
    private static let magic: UInt64 = 0x3130_504B_4242_4B52  // "RKBBKP01"
    /// More than any snapshot of a metadata store: a damaged length must not exhaust the memory.
    static let bodyBytesMax: UInt64 = 16 << 30
    /// Between two words on the progress.
    private static let recordsPerStep = 4_096

    public var name: BackupName
    public var cluster: UInt64
    public var contents: Contents
    /// Of a snapshot: no log held the revisions from here up to it when it was stored. Nil: logs led to it.
    public var gapFrom: Revision?

    public init(name: BackupName, cluster: UInt64, contents: Contents) {
        self.name = name
        self.cluster = cluster
        self.contents = contents
    }

    /// `progress`: how many records of a snapshot were taken in.
    public func encoded(progress: (Int) -> Void = { _ in }) throws(DatabaseError) -> Bytes {
        var body = ByteWriter()
        switch contents {
        case .snapshot(let records):
            body.write(UInt64(records.count))
            for (index, record) in records.enumerated() {
                if index % Self.recordsPerStep == 0 { progress(index) }
                body.write(record.key)
                body.write(record.value)
                body.write(record.createRevision)
                body.write(record.modRevision)
            }
        case .log(let events):
            body.write(UInt64(events.count))
            for event in events { Self.encode(event, into: &body) }
        }
        let bodyByteCount = body.bytes.count
        let stored = try Zstd.compress(body.take())
        var writer = ByteWriter(reserving: Self.headerByteCount + stored.count)
        writer.write(Self.magic)
        writer.write(name.kind.rawValue)
        writer.write(cluster)
        writer.write(gapFrom ?? name.from)
        writer.write(name.to)
        writer.write(name.at)
        writer.write(UInt64(bodyByteCount))
        writer.write(crc32c(stored))
        writer.write(crc32c(writer.bytes))
        writer.writeRaw(stored)
        return writer.take()
    }

    /// Reads an object that was stored as `name`. Any change of any byte is found.
    public init(_ bytes: Bytes, named name: BackupName) throws(DatabaseError) {
        guard bytes.count >= Self.headerByteCount else {
            throw Self.damaged(name, "it ends in its header, after \(bytes.count) bytes")
        }
        let header = try ByteReader.decode(Bytes(bytes[..<Self.headerByteCount])) {
            (reader) throws(DatabaseError) in try Header(from: &reader)
        }
        guard header.magic == Self.magic else {
            throw Self.damaged(name, "it is not a backup object of this version")
        }
        guard header.checksum == crc32c(Bytes(bytes[..<(Self.headerByteCount - 4)])) else {
            throw Self.damaged(name, "the checksum of its header does not match")
        }
        let closesGap = name.kind == .snapshot && header.from < name.to
        guard header.kind == name.kind.rawValue, header.from == name.from || closesGap,
            header.to == name.to, header.at == name.at
        else {
            throw Self.damaged(
                name, "it holds the revisions \(header.from) to \(header.to): it was renamed")
        }
        let stored = Bytes(bytes[Self.headerByteCount...])
        guard crc32c(stored) == header.bodyChecksum else {
            throw Self.damaged(name, "the checksum of its \(stored.count) bytes does not match")
        }
        guard header.bodyByteCount <= Self.bodyBytesMax,
            let body = Zstd.decompress(stored, byteCount: Int(header.bodyByteCount))
        else { throw Self.damaged(name, "it does not decompress") }
        cluster = header.cluster
        self.name = name
        gapFrom = closesGap ? header.from : nil
        do throws(DatabaseError) {
            contents = try ByteReader.decode(body) { (reader) throws(DatabaseError) in
                name.kind == .snapshot
                    ? .snapshot(try Self.records(&reader)) : .log(try Self.events(&reader, name))
            }
        } catch {
            throw Self.damaged(name, error.message)
        }
    }

    // MARK: Helpers

    private struct Header {
        var magic: UInt64
        var kind: UInt8
        var cluster: UInt64
        var from: Revision
        var to: Revision
        var at: UInt64
        var bodyByteCount: UInt64
        var bodyChecksum: UInt32
        var checksum: UInt32

        init(from reader: inout ByteReader) throws(DatabaseError) {
            magic = try reader.readUInt64()
            kind = try reader.readUInt8()
            cluster = try reader.readUInt64()
            from = try reader.read()
            to = try reader.read()
            at = try reader.readUInt64()
            bodyByteCount = try reader.readUInt64()
            bodyChecksum = try reader.readUInt32()
            checksum = try reader.readUInt32()
        }
    }

    private static func damaged(_ name: BackupName, _ what: String) -> DatabaseError {
        DatabaseError(.storageFailed, "\(name.subject) is damaged: \(what)")
    }

    private static func encode(_ event: BackupEvent, into writer: inout ByteWriter) {
        writer.write(event.revision)
        writer.write(event.at)
        writer.write(list: event.changes) { writer, change in
            switch change {
            case .put(let key, let value, _):
                writer.write(UInt8(1))
                writer.write(key)
                writer.write(value)
            case .delete(let key):
                writer.write(UInt8(2))
                writer.write(key)
            }
        }
    }

    private static func records(
        _ reader: inout ByteReader
    ) throws(DatabaseError) -> [MetadataRecord] {
        var records: [MetadataRecord] = []
        for _ in 0..<(try reader.readUInt64()) {
            // Leases are not restored: whoever held one is gone.
            let record = MetadataRecord(
                key: try reader.readBytes(), value: try reader.readBytes(),
                createRevision: try reader.read(), modRevision: try reader.read(), lease: .none)
            if let last = records.last, compareBytes(last.key, record.key) >= 0 {
                throw DatabaseError(.malformed, "its keys do not rise")
            }
            records.append(record)
        }
        return records
    }

    private static func events(
        _ reader: inout ByteReader, _ name: BackupName
    ) throws(DatabaseError) -> [BackupEvent] {
        var events: [BackupEvent] = []
        var next = name.from
        for _ in 0..<(try reader.readUInt64()) {
            let event = BackupEvent(
                revision: try reader.read(), at: try reader.readUInt64(),
                changes: try reader.readList(elementBytesMin: 5) {
                    (reader) throws(DatabaseError) in
                    switch try reader.readUInt8() {
                    case 1:
                        .put(
                            key: try reader.readBytes(), value: try reader.readBytes(),
                            lease: .none)
                    case 2: .delete(key: try reader.readBytes())
                    case let kind: throw DatabaseError(.malformed, "a change of kind \(kind)")
                    }
                })
            // The metadata store makes no revision without a change.
            guard event.revision == next else {
                throw DatabaseError(
                    .malformed, "revision \(event.revision) is where \(next) should be")
            }
            events.append(event)
            next = next.next()
        }
        guard events.last?.revision == name.to else {
            throw DatabaseError(.malformed, "it ends before revision \(name.to)")
        }
        return events
    }
}
