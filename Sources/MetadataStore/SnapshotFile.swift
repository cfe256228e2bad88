// The form of a snapshot of the metadata store.
//
// File, little-endian: magic 8, sequence 8, revision 8, highest lease 8, leases (count 4; id 8,
// ttl 8), record count 8, records (key, value, create revision, mod revision, lease), CRC32C of all
// before 4.

import Checksum
import KVBase
import MetadataCore

enum SnapshotFile {
    private static let magic: UInt64 = 0x3130_5041_4E53_4B52  // "RKSNAP01"

    static func encode(_ state: RevisionedState, sequence: UInt64) -> Bytes {
        var writer = ByteWriter(reserving: state.records.byteCount + state.records.count * 16 + 64)
        writer.write(magic)
        writer.write(sequence)
        state.encode(into: &writer)
        writer.write(crc32c(writer.bytes))
        return writer.take()
    }

    static func decode(_ bytes: Bytes, now: Instant) throws(DatabaseError)
        -> (state: RevisionedState, sequence: UInt64)
    {
        guard bytes.count > 4 else { throw DatabaseError(.malformed, "\(bytes.count) bytes") }
        let body = Bytes(bytes[..<(bytes.count - 4)])
        let expected = bytes.withUnsafeBytes {
            UInt32(littleEndian: $0.loadUnaligned(fromByteOffset: body.count, as: UInt32.self))
        }
        guard crc32c(body) == expected else {
            throw DatabaseError(.malformed, "the checksum does not match")
        }
        return try ByteReader.decode(body) { (reader) throws(DatabaseError) in
            guard try reader.readUInt64() == magic else {
                throw DatabaseError(.malformed, "not a snapshot of this version")
            }
            let sequence = try reader.readUInt64()
            return (try RevisionedState(from: &reader, now: now), sequence)
        }
    }
}
