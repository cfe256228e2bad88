// One step of a metadata store of one process, and its bytes in the log.

import KVBase

/// One step of the store, as the log holds it. Applying the same mutations in the same order to the
/// same state gives the same state.
public enum MetadataMutation: Hashable, Sendable {
    /// Changes under one new revision.
    case changes([MetadataChange])
    case leaseGranted(LeaseID, ttl: Nanoseconds)
    /// Ends the lease; its keys are deleted under one new revision when there are any.
    case leaseEnded(LeaseID)
}

extension MetadataMutation {
    public func encode(into writer: inout ByteWriter) {
        switch self {
        case .changes(let changes):
            writer.write(UInt8(1))
            writer.write(list: changes) { writer, change in change.encode(into: &writer) }
        case .leaseGranted(let id, let ttl):
            writer.write(UInt8(2))
            writer.write(id)
            writer.write(ttl.count)
        case .leaseEnded(let id):
            writer.write(UInt8(3))
            writer.write(id)
        }
    }

    public init(from reader: inout ByteReader) throws(DatabaseError) {
        switch try reader.readUInt8() {
        case 1:
            self = .changes(
                try reader.readList(elementBytesMin: 5) { (reader) throws(DatabaseError) in
                    try MetadataChange(from: &reader)
                })
        case 2:
            self = .leaseGranted(
                try reader.read(), ttl: Nanoseconds(try reader.readUInt64()))
        case 3: self = .leaseEnded(try reader.read())
        case let kind: throw DatabaseError(.malformed, "metadata mutation of kind \(kind)")
        }
    }
}

extension MetadataChange {
    func encode(into writer: inout ByteWriter) {
        switch self {
        case .put(let key, let value, let lease):
            writer.write(UInt8(1))
            writer.write(key)
            writer.write(value)
            writer.write(lease)
        case .delete(let key):
            writer.write(UInt8(2))
            writer.write(key)
        }
    }

    init(from reader: inout ByteReader) throws(DatabaseError) {
        switch try reader.readUInt8() {
        case 1:
            self = .put(
                key: try reader.readBytes(), value: try reader.readBytes(),
                lease: try reader.read())
        case 2: self = .delete(key: try reader.readBytes())
        case let kind: throw DatabaseError(.malformed, "metadata change of kind \(kind)")
        }
    }
}
