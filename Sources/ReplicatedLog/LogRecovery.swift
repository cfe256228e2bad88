// Reading a log back after a stop, a kill or a power loss, and telling a torn tail from damage.
//
// One batch at a time is being written, and the next is not begun before the one before it is
// durable. So only the last batch can be torn, and nothing valid lies behind a torn batch. An
// invalid batch with a valid one of a higher number behind it was durable once: that is damage.

import Checksum
import Glibc
import KVBase
import ReplicationCore

/// What a recovery found, for the log of the process.
public struct RecoverySummary: Hashable, Sendable {
    public var segments = 0
    public var batches: UInt64 = 0
    public var records: UInt64 = 0
    public var bytes: UInt64 = 0
    /// Where an unfinished batch was cut off; nil when the log ended cleanly.
    public var tornTail: String?
}

/// Reads segments in order and gathers what their records add up to.
struct LogRecovery {
    /// A segment that was read: which groups have entries in it, and how far.
    struct Segment {
        var number: UInt64
        var endOffset: Int
        var highest: [GroupID: LogIndex]
    }

    let directory: SegmentDirectory
    var groups: [GroupID: GroupReplay] = [:]
    var segments: [Segment] = []
    var logID: UInt64?
    var nextBatch: UInt64 = 0
    var summary = RecoverySummary()

    init(_ directory: SegmentDirectory) { self.directory = directory }

    /// Reads all segments; the last one is cut behind its last whole batch.
    mutating func run(
        progress: (_ bytesDone: UInt64, _ bytesTotal: UInt64) -> Void
    ) throws(DatabaseError) {
        let numbers = try directory.list()
        for (earlier, later) in zip(numbers, numbers.dropFirst()) where later != earlier + 1 {
            throw damage("\(directory.path(of: earlier + 1)) is missing")
        }
        var total: UInt64 = 0
        for number in numbers {
            var status = stat()
            if stat(directory.path(of: number), &status) == 0 { total += UInt64(status.st_size) }
        }
        var done: UInt64 = 0
        progress(0, total)
        for number in numbers {
            let before = done
            done += try read(number, isLast: number == numbers.last) { bytes in
                progress(min(before + UInt64(bytes), total), total)
            }
        }
        try dropEmptyLastSegment()
        for (group, replay) in groups.sorted(by: { $0.key < $1.key }) {
            guard let missing = replay.missing else { continue }
            throw damage("\(directory.path): group \(group) lacks its entry \(missing)")
        }
        summary.segments = segments.count
    }

    /// Reads one segment and returns the length of its file.
    private mutating func read(
        _ number: UInt64, isLast: Bool, progress: (_ bytesDone: Int) -> Void
    ) throws(DatabaseError) -> UInt64 {
        let path = directory.path(of: number)
        let file = open(path, O_RDWR | O_CLOEXEC)
        guard file >= 0 else { throw storageError("open", path, errno: errno) }
        defer { Glibc.close(file) }
        let buffer = try readFile(file, path, progress: progress)
        defer { buffer.deallocate() }
        let bytes = UnsafeRawBufferPointer(buffer)

        let header = try SegmentHeader(bytes, path: path)
        try accept(header, number, path)
        segments.append(Segment(number: number, endOffset: 0, highest: [:]))
        var offset = LogFormat.alignment
        while let batch = whole(bytes, at: offset, segment: number) {
            if offset == LogFormat.alignment, number > 1,
                batch.flags & BatchHeader.hasStateTable == 0
            {
                throw damage("\(path): offset \(offset): the segment's state table is missing")
            }
            try replay(bytes, at: offset, batch, path)
            nextBatch += 1
            summary.batches += 1
            summary.records += UInt64(batch.records)
            summary.bytes += UInt64(batch.bodyBytes)
            offset = LogFormat.align(
                offset + LogFormat.batchHeaderBytes + Int(batch.bodyBytes))
        }
        segments[segments.count - 1].endOffset = offset
        if isLast { try cut(file, bytes, at: offset, segment: number, path) }
        return UInt64(bytes.count)
    }

    private mutating func accept(
        _ header: SegmentHeader, _ number: UInt64, _ path: String
    ) throws(DatabaseError) {
        guard header.segment == number else {
            throw damage("\(path) holds segment \(header.segment)")
        }
        guard let logID else {
            logID = header.logID
            nextBatch = header.firstBatch
            return
        }
        guard header.logID == logID else {
            throw damage("\(path) belongs to another log (\(header.logID), not \(logID))")
        }
        guard header.firstBatch == nextBatch, let last = segments.last else {
            let before = directory.path(of: number - 1)
            let offset = segments.last?.endOffset ?? 0
            throw damage(
                "\(before): offset \(offset): batch \(nextBatch) is damaged or missing, and "
                    + "\(path) continues with \(header.firstBatch)")
        }
        precondition(last.number + 1 == number)
    }

    /// The header of the next batch, when it and its body are there and undamaged.
    private func whole(
        _ bytes: UnsafeRawBufferPointer, at offset: Int, segment: UInt64
    ) -> BatchHeader? {
        guard let header = BatchHeader(bytes, at: offset), header.logID == logID,
            header.segment == segment, header.number == nextBatch,
            header.flags & BatchHeader.isProbe == 0
        else { return nil }
        let start = offset + LogFormat.batchHeaderBytes
        let length = Int(header.bodyBytes)
        guard length <= bytes.count - start,
            crc32c(UnsafeRawBufferPointer(rebasing: bytes[start..<start + length]))
                == header.bodyChecksum
        else { return nil }
        return header
    }

    /// What lies behind the last whole batch of the last segment: nothing, a torn batch, or damage.
    private mutating func cut(
        _ file: Int32, _ bytes: UnsafeRawBufferPointer, at end: Int, segment: UInt64, _ path: String
    ) throws(DatabaseError) {
        var offset = end
        while offset + LogFormat.batchHeaderBytes <= bytes.count {
            if let later = BatchHeader(bytes, at: offset), later.logID == logID,
                later.segment == segment,
                later.number > nextBatch || (later.number == nextBatch && offset != end)
            {
                throw damage(
                    "\(path): offset \(end): batch \(nextBatch) is damaged, and batch "
                        + "\(later.number) behind it (offset \(offset)) is whole")
            }
            offset += LogFormat.alignment
        }
        var tail = end
        if let probe = BatchHeader(bytes, at: end), probe.flags & BatchHeader.isProbe != 0 {
            tail += LogFormat.alignment
        }
        guard !isZero(UnsafeRawBufferPointer(rebasing: bytes[min(tail, bytes.count)...])) else {
            return
        }
        summary.tornTail = "\(path): offset \(end): batch \(nextBatch) was not finished; cut off"
        try check(directory.operations.truncate(file, Int64(end)), "truncate", path)
        try check(directory.operations.allocate(file, Int64(bytes.count)), "allocate", path)
        try check(directory.operations.synchronize(file), "sync", path)
    }

    /// A segment whose first batch never became durable lacks the state table that later clean-up
    /// relies on; the log goes on in the segment before it.
    private mutating func dropEmptyLastSegment() throws(DatabaseError) {
        guard let last = segments.last, last.endOffset == LogFormat.alignment, last.number > 1
        else { return }
        guard segments.count > 1 else {
            let path = directory.path(of: last.number)
            throw damage("\(path): the segments before it are gone and its state table is missing")
        }
        try directory.remove(last.number...last.number)
        segments.removeLast()
    }

    /// Each byte equals the one before it, and the first is zero.
    private func isZero(_ bytes: UnsafeRawBufferPointer) -> Bool {
        guard let base = bytes.baseAddress, !bytes.isEmpty else { return true }
        return bytes[0] == 0 && memcmp(base, base + 1, bytes.count - 1) == 0
    }

    private func damage(_ what: String) -> DatabaseError {
        DatabaseError(
            .storageFailed, "\(what); repair this disk's replicas from their peers")
    }
}

// MARK: Records

extension LogRecovery {
    private mutating func replay(
        _ bytes: UnsafeRawBufferPointer, at offset: Int, _ batch: BatchHeader, _ path: String
    ) throws(DatabaseError) {
        let start = offset + LogFormat.batchHeaderBytes
        var reader = ByteReader(
            UnsafeRawBufferPointer(rebasing: bytes[start..<start + Int(batch.bodyBytes)]))
        do throws(DatabaseError) {
            for _ in 0..<batch.records { try replayRecord(&reader) }
            try reader.expectEnd()
        } catch {
            throw damage("\(path): offset \(offset): batch \(batch.number): \(error.message)")
        }
    }

    private mutating func replayRecord(_ reader: inout ByteReader) throws(DatabaseError) {
        let length = Int(try reader.readUInt32())
        let rawKind = try reader.readUInt8()
        let rawEntryKind = try reader.readUInt8()
        _ = try reader.readUInt16()
        let group: GroupID = try reader.read()
        let replica: ReplicaID = try reader.read()
        var content = ByteReader(try reader.readRaw(length))
        guard let kind = RecordKind(rawValue: rawKind) else {
            throw DatabaseError(.malformed, "record kind \(rawKind)")
        }
        switch kind {
        case .created:
            groups[group] = GroupReplay(replica: replica)
            forget(group)
        case .removed:
            try expect(group, replica)
            groups[group] = nil
            forget(group)
        case .state:
            if groups[group] == nil { groups[group] = GroupReplay(replica: replica) }
            try expect(group, replica)
            groups[group]!.hardState = HardState(
                term: try content.read(), vote: try content.read())
            groups[group]!.compact(
                to: LogPosition(index: try content.read(), term: try content.read()))
        case .hardState:
            try expect(group, replica)
            groups[group]!.hardState = HardState(
                term: try content.read(), vote: try content.read())
        case .snapshot:
            try expect(group, replica)
            groups[group]!.install(
                snapshot: LogPosition(index: try content.read(), term: try content.read()))
            forget(group)
        case .entry:
            try expect(group, replica)
            guard let entryKind = LogEntry.Kind(rawValue: rawEntryKind) else {
                throw DatabaseError(.malformed, "entry kind \(rawEntryKind)")
            }
            let term: Term = try content.read()
            let index: LogIndex = try content.read()
            groups[group]!.append(
                LogEntry(
                    term: term, index: index, kind: entryKind,
                    payload: Bytes(try content.readRaw(content.remaining))))
            let last = segments.count - 1
            segments[last].highest[group] = max(segments[last].highest[group] ?? index, index)
        }
        try content.expectEnd()
    }

    private func expect(_ group: GroupID, _ replica: ReplicaID) throws(DatabaseError) {
        guard groups[group]?.replica == replica else {
            throw DatabaseError(.malformed, "record of unknown replica \(replica) of \(group)")
        }
    }

    /// No entry of the group that was read so far is needed any more.
    private mutating func forget(_ group: GroupID) {
        for place in segments.indices { segments[place].highest[group] = nil }
    }
}
