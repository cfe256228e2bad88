// Checking a log's segments at rest, beside the thread that writes.
//
// Recovery would find the same damage, but at the next start, when the replicas are needed. What is
// durable never changes, so it is read without a lock: whole segments, and the one that is being
// written as far as its last durable batch.

import Checksum
import Glibc
import KVBase

/// Where the durable part of a log ends.
struct DurableEnd: Hashable {
    var segment: UInt64
    var offset: Int
}

/// One check of a log. Made by the owner of the log, run on any one thread.
public struct LogScrub: Sendable {
    let directory: SegmentDirectory
    let logID: UInt64
    /// As of now.
    let durableEnd: @Sendable () -> DurableEnd

    private static let pieceBytes = 256 << 10

    /// Checks every segment there is. `willRead` waits as long as it likes, and ends the check with
    /// false, which is then the answer. Throws `.storageFailed` that names file and offset; one that
    /// `isDamage` tells when bytes are not those that were written.
    public func run(
        willRead: (Int) -> Bool, didRead: (Int) -> Void
    ) throws(DatabaseError) -> Bool {
        // Segments that are made while this runs are left to the next time.
        let end = durableEnd()
        for number in try directory.numbers() where number <= end.segment {
            let isLast = number == end.segment
            guard
                try check(
                    number, end: isLast ? end.offset : nil, willRead: willRead, didRead: didRead)
            else { return false }
        }
        return true
    }

    /// `end`: where the last durable batch of the segment ends; nil for a finished segment.
    private func check(
        _ number: UInt64, end: Int?, willRead: (Int) -> Bool, didRead: (Int) -> Void
    ) throws(DatabaseError) -> Bool {
        let path = directory.path(of: number)
        let file = open(path, O_RDONLY | O_CLOEXEC)
        guard file >= 0 else {
            // Nobody needs it any more.
            if errno == ENOENT { return true }
            throw storageError("open", path, errno: errno)
        }
        defer { Glibc.close(file) }
        // What lies in memory is not what is on the disk.
        posix_fadvise(file, 0, 0, POSIX_FADV_DONTNEED)
        var status = stat()
        guard fstat(file, &status) == 0 else { throw storageError("look at", path, errno: errno) }
        let count = min(Int(status.st_size), end ?? .max)
        let bytes = UnsafeMutableRawBufferPointer.allocate(byteCount: max(1, count), alignment: 8)
        defer { bytes.deallocate() }
        var offset = 0
        while offset < count {
            let wanted = min(Self.pieceBytes, count - offset)
            guard willRead(wanted) else { return false }
            let got = pread(file, bytes.baseAddress! + offset, wanted, off_t(offset))
            let code = errno
            didRead(max(0, got))
            guard got >= 0 else { throw storageError("read", path, errno: code) }
            guard got > 0 else { break }
            offset += got
        }
        try verify(UnsafeRawBufferPointer(rebasing: bytes[..<offset]), number, end: end, path)
        return true
    }

    /// Every batch up to the end is whole, and in its place.
    private func verify(
        _ bytes: UnsafeRawBufferPointer, _ number: UInt64, end: Int?, _ path: String
    ) throws(DatabaseError) {
        let header: SegmentHeader
        do throws(DatabaseError) {
            header = try SegmentHeader(bytes, path: path)
        } catch {
            throw Self.damage(error.message)
        }
        guard header.segment == number, header.logID == logID else {
            throw Self.damage("\(path) is a segment of something else")
        }
        var expected = header.firstBatch
        var offset = LogFormat.alignment
        while let batch = BatchHeader(bytes, at: offset), batch.number == expected,
            batch.logID == logID, batch.segment == number,
            batch.flags & BatchHeader.isProbe == 0
        {
            let start = offset + LogFormat.batchHeaderBytes
            let length = Int(batch.bodyBytes)
            guard length <= bytes.count - start,
                crc32c(UnsafeRawBufferPointer(rebasing: bytes[start..<start + length]))
                    == batch.bodyChecksum
            else { break }
            expected += 1
            offset = LogFormat.align(start + length)
        }
        guard let next = try end == nil ? firstBatch(of: number + 1) : nil else {
            // A segment without a successor that is known ends where the writer says.
            guard let end, offset < end else { return }
            throw Self.damage("\(path): offset \(offset): batch \(expected) is damaged")
        }
        guard expected == next else {
            throw Self.damage("\(path): offset \(offset): batch \(expected) is damaged")
        }
    }

    /// With what the segment begins; nil when it is gone.
    private func firstBatch(of number: UInt64) throws(DatabaseError) -> UInt64? {
        let path = directory.path(of: number)
        let file = open(path, O_RDONLY | O_CLOEXEC)
        guard file >= 0 else { return nil }
        defer { Glibc.close(file) }
        var bytes = Bytes(repeating: 0, count: LogFormat.alignment)
        let count = pread(file, &bytes, bytes.count, 0)
        guard count == bytes.count else { return nil }
        // Damage to it is found when its own turn comes.
        return try? bytes.withRawBytes { (bytes) throws(DatabaseError) in
            try SegmentHeader(bytes, path: path).firstBatch
        }
    }

    private static let mark = "the log is damaged: "

    private static func damage(_ what: String) -> DatabaseError {
        DatabaseError(.storageFailed, mark + what)
    }

    /// Whether `run` threw the error because bytes are not those that were written.
    public static func isDamage(_ error: DatabaseError) -> Bool {
        error.code == .storageFailed && error.message.hasPrefix(mark)
    }
}
