// Batches as bytes at the end of the newest segment.

import Checksum
import Glibc
import KVBase

/// Owned by one thread. Owns the file of the newest segment until `close`. After an error the state of that
/// file is unknown and nothing more may be written.
final class BatchAppender {
    /// So many zeros go to the disk behind a small batch where nothing was written yet. A file system
    /// that reserved the space has to note in its own journal what a write first touches; so it does
    /// that once for all the batches that fit there, not at every sync.
    static let aheadBytes = 256 << 10
    /// Larger batches bear that cost themselves.
    private static let smallBatchBytes = 64 << 10

    private let directory: SegmentDirectory
    let logID: UInt64
    private let segmentBytes: Int
    private var file: Int32
    private(set) var segment: UInt64
    /// Where the next batch is written.
    private(set) var offset: Int
    /// Up to here the segment was written, with batches or with zeros.
    private var touchedEnd: Int
    private var nextBatch: UInt64
    private var parts: [iovec] = []
    private let headerBytes: UnsafeMutableRawBufferPointer
    /// Zeros.
    private let padding: UnsafeMutableRawBufferPointer

    init(
        directory: SegmentDirectory, logID: UInt64, file: Int32, segment: UInt64, offset: Int,
        nextBatch: UInt64, segmentBytes: Int
    ) {
        self.directory = directory
        self.logID = logID
        self.segmentBytes = segmentBytes
        self.file = file
        self.segment = segment
        self.offset = offset
        touchedEnd = offset
        self.nextBatch = nextBatch
        headerBytes = .allocate(byteCount: LogFormat.batchHeaderBytes, alignment: 8)
        padding = .allocate(byteCount: Self.aheadBytes, alignment: 4096)
        padding.initializeMemory(as: UInt8.self, repeating: 0)
    }

    deinit {
        headerBytes.deallocate()
        padding.deallocate()
    }

    func close() { Glibc.close(file) }

    /// Writes submissions as one batch, in a new segment with its state table if the first begins one;
    /// returns its length with padding. Not durable before `synchronize`.
    func write(_ submissions: [Submission]) throws(DatabaseError) -> Int {
        var checksum: UInt32 = 0
        var body = 0
        var records: UInt32 = 0
        beginParts()
        for submission in submissions {
            let bytes = submission.buffer.bytes
            checksum = crc32c(bytes, seed: checksum)
            body += bytes.count
            records += submission.buffer.records
            parts.append(iovec(iov_base: submission.buffer.base, iov_len: bytes.count))
        }
        let length = LogFormat.batchHeaderBytes + body
        let padded = LogFormat.align(length)
        if padded > length {
            parts.append(iovec(iov_base: padding.baseAddress, iov_len: padded - length))
        }
        let hasStateTable = submissions.first?.startsSegment == true
        BatchHeader(
            flags: hasStateTable ? BatchHeader.hasStateTable : 0, number: nextBatch, logID: logID,
            segment: segment, bodyBytes: UInt32(body), bodyChecksum: checksum, records: records
        ).encode(into: headerBytes)
        let ahead = zerosBehind(batchBytes: padded)
        if ahead > 0 { parts.append(iovec(iov_base: padding.baseAddress, iov_len: ahead)) }
        try writeParts(bytes: padded + ahead)
        touchedEnd = max(touchedEnd, offset + padded + ahead)
        return padded
    }

    /// How many zeros to write behind the batch at `offset`: within the reserved space, which reads as
    /// zeros anyway.
    private func zerosBehind(batchBytes: Int) -> Int {
        let end = offset + batchBytes
        guard end > touchedEnd, batchBytes <= Self.smallBatchBytes else { return 0 }
        return max(0, min(Self.aheadBytes, segmentBytes - end))
    }

    /// An empty batch where the next one will be written, made durable.
    func writeProbe() throws(DatabaseError) {
        beginParts()
        let rest = LogFormat.alignment - headerBytes.count
        parts.append(iovec(iov_base: padding.baseAddress, iov_len: rest))
        BatchHeader(
            flags: BatchHeader.isProbe, number: nextBatch, logID: logID, segment: segment,
            bodyBytes: 0, bodyChecksum: 0, records: 0
        ).encode(into: headerBytes)
        try writeParts(bytes: LogFormat.alignment)
        try synchronize()
    }

    func synchronize() throws(DatabaseError) {
        try check(directory.operations.synchronize(file), "sync", directory.path(of: segment))
    }

    /// The batch written last is durable: the next one follows it.
    func advance(past written: Int) {
        offset += written
        nextBatch += 1
    }

    /// Closes the segment and goes on in a new one.
    func roll() throws(DatabaseError) {
        let header = SegmentHeader(logID: logID, segment: segment + 1, firstBatch: nextBatch)
        let next = try directory.create(header, bytes: segmentBytes)
        Glibc.close(file)
        file = next
        segment += 1
        offset = LogFormat.alignment
        touchedEnd = offset
    }

    private func beginParts() {
        parts.removeAll(keepingCapacity: true)
        parts.append(iovec(iov_base: headerBytes.baseAddress, iov_len: headerBytes.count))
    }

    private func writeParts(bytes: Int) throws(DatabaseError) {
        var done = 0
        var first = 0
        while done < bytes {
            let position = Int64(offset + done)
            let written = parts.withUnsafeBufferPointer {
                directory.operations.write(
                    file, $0.baseAddress! + first, Int32($0.count - first), position)
            }
            guard written > 0 else {
                throw storageError(
                    "write", directory.path(of: segment),
                    errno: written < 0 ? Int32(-written) : EIO)
            }
            done += written
            var rest = written
            while first < parts.count, rest >= parts[first].iov_len {
                rest -= parts[first].iov_len
                first += 1
            }
            if rest > 0 {
                parts[first].iov_base += rest
                parts[first].iov_len -= rest
            }
        }
    }
}
