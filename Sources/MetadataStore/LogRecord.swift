// The form of one record of the metadata log, and how damage is told from an unfinished write.
//
// Record, little-endian: body length 4, sequence 8, CRC32C of the body 4, CRC32C of the 16 bytes
// before 4, marker 0x5A 1, body, marker 0xA5 1. The markers are never zero, so that space which the
// file system allotted and no write reached (it reads as zero) is told from rot.

import Checksum
import KVBase
import MetadataCore

enum LogRecord {
    static let headerByteCount = 21
    private static let headerMarker: UInt8 = 0x5A
    private static let endMarker: UInt8 = 0xA5
    /// A transaction carries at most one table's worth of shards.
    static let bodyBytesMax = 256 << 20

    /// Appends one record.
    static func append(_ mutation: MetadataMutation, sequence: UInt64, to writer: inout ByteWriter)
    {
        let start = writer.count
        writer.write(UInt32(0))
        writer.write(sequence)
        writer.write(UInt32(0))
        writer.write(UInt32(0))
        writer.write(headerMarker)
        mutation.encode(into: &writer)
        let bodyCount = writer.count - start - headerByteCount
        precondition(bodyCount <= bodyBytesMax)
        writer.patch(UInt32(bodyCount), at: start)
        writer.patch(checksum(writer.bytes, start + headerByteCount, bodyCount), at: start + 12)
        writer.patch(checksum(writer.bytes, start, 16), at: start + 16)
        writer.write(endMarker)
    }

    enum Reading {
        case record(sequence: UInt64, MetadataMutation, next: Int)
        /// The write that began here never finished: cut the file here.
        case torn
        case damaged(String)
    }

    /// Reads the record at `offset`. `writtenEnd` is behind the last byte of the file that is not
    /// zero: a record that reaches beyond it was never finished.
    static func read(_ file: UnsafeRawBufferPointer, at offset: Int, writtenEnd: Int) -> Reading {
        let bodyStart = offset + headerByteCount
        guard bodyStart <= writtenEnd else { return .torn }
        func load(_ position: Int) -> UInt32 {
            UInt32(littleEndian: file.loadUnaligned(fromByteOffset: position, as: UInt32.self))
        }
        let headerBytes = UnsafeRawBufferPointer(rebasing: file[offset..<offset + 16])
        guard file[offset + 20] == headerMarker, crc32c(headerBytes) == load(offset + 16) else {
            return .damaged("the header's checksum does not match")
        }
        let end = bodyStart + Int(load(offset)) + 1
        guard end <= writtenEnd else { return .torn }
        let body = UnsafeRawBufferPointer(rebasing: file[bodyStart..<end - 1])
        guard file[end - 1] == endMarker, crc32c(body) == load(offset + 12) else {
            return .damaged("the body's checksum does not match")
        }
        let sequence = UInt64(
            littleEndian: file.loadUnaligned(fromByteOffset: offset + 4, as: UInt64.self))
        do throws(DatabaseError) {
            var reader = ByteReader(body)
            let mutation = try MetadataMutation(from: &reader)
            try reader.expectEnd()
            return .record(sequence: sequence, mutation, next: end)
        } catch {
            return .damaged(error.message)
        }
    }

    private static func checksum(_ bytes: Bytes, _ start: Int, _ count: Int) -> UInt32 {
        bytes.withUnsafeBytes {
            crc32c(UnsafeRawBufferPointer(rebasing: $0[start..<start + count]))
        }
    }
}
