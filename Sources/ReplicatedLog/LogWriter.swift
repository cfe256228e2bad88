// The writer thread: everything handed to it since the last sync becomes one batch, one write, one
// fdatasync.
//
// Thread ownership: the file, its offset and the batch number belong to the writer thread; the queue
// and the counters are shared under one mutex; a submitted buffer belongs to the writer until it
// comes back through the free list.

import Checksum
import Glibc
import KVBase

/// What the owner hands over.
struct Submission {
    var number: UInt64
    var buffer: LogBuffer
    /// The buffer begins with a state table: it must be the first of a new segment.
    var startsSegment: Bool
    /// Segments that nobody needs once this submission is durable.
    var obsolete: ClosedRange<UInt64>?
    /// When the writer got it.
    var handed = Instant.origin
}

/// Counters of the writer; they only rise, except `syncStartedAt`.
public struct LogStatistics: Hashable, Sendable {
    /// Batches written; each is one write and one fdatasync.
    public var batches: UInt64 = 0
    public var submissions: UInt64 = 0
    public var records: UInt64 = 0
    /// Bytes written, with headers and padding.
    public var bytes: UInt64 = 0
    public var syncNanoseconds: UInt64 = 0
    /// Syncs by duration: element `n` counts those of `2^n ..< 2^(n+1)` nanoseconds.
    public var syncHistogram: [UInt64] = Array(repeating: 0, count: 40)
    public var segmentsCreated: UInt64 = 0
    public var segmentsRemoved: UInt64 = 0
    /// When the write or sync under way began, on the monotonic clock; nil when none is.
    public var writeStartedAt: Instant?
    /// Bytes handed over that are not yet durable.
    public var queuedBytes = 0
}

/// How fast the disk takes writes, each with its sync.
public struct LogPace: Hashable, Sendable {
    /// How long the newest one took that has ended.
    public var newest = Nanoseconds.zero
    /// When that one ended, on the monotonic clock.
    public var endedAt: Instant
    /// When the one under way began; nil when none is.
    public var startedAt: Instant?

    /// What a write costs now, as far as can be told at `now`: a stalled disk shows while it stalls.
    public func delay(at now: Instant) -> Nanoseconds {
        guard let startedAt, startedAt < now else { return newest }
        return max(newest, now - startedAt)
    }
}

final class LogWriter: @unchecked Sendable {
    static let queueLengthMax = 256
    /// So many zeros go to the disk behind a small batch where nothing was written yet. A file system
    /// that reserved the space has to note in its own journal what a write first touches; so it does
    /// that once for all the batches that fit there, not at every sync.
    static let aheadBytes = 256 << 10
    /// Larger batches bear that cost themselves.
    private static let smallBatchBytes = 64 << 10
    private static let freeBuffersMax = 16
    private static let freeBufferBytesMax = 4 << 20

    // Shared, under `mutex`.
    private let mutex: UnsafeMutablePointer<pthread_mutex_t>
    private let wake: UnsafeMutablePointer<pthread_cond_t>
    private var queue: [Submission] = []
    private var free: [LogBuffer] = []
    private var failure: DatabaseError?
    private var stopping = false
    private var statistics = LogStatistics()
    private var pace: LogPace
    private var isProbeWanted = false
    /// Where the last durable batch ended.
    private var durableSegment: UInt64
    private var durableOffset: Int
    private var onDurable: (@Sendable (Result<UInt64, DatabaseError>) -> Void)?
    private var onWritten: (@Sendable (Nanoseconds, Nanoseconds) -> Void)?

    // The writer thread's own.
    private let directory: SegmentDirectory
    private let logID: UInt64
    private let segmentBytes: Int
    private let batchBytesMax: Int
    private var file: Int32
    private var segment: UInt64
    private var offset: Int
    /// Up to here the segment was written, with batches or with zeros.
    private var touchedEnd: Int
    private var nextBatch: UInt64
    private var taken: [Submission] = []
    private var takenAt = Instant.origin
    private var parts: [iovec] = []
    private let headerBytes: UnsafeMutableRawBufferPointer
    /// Zeros.
    private let padding: UnsafeMutableRawBufferPointer
    private var thread = pthread_t()

    init(
        directory: SegmentDirectory, logID: UInt64, file: Int32, segment: UInt64, offset: Int,
        nextBatch: UInt64, options: LogOptions
    ) {
        self.directory = directory
        self.logID = logID
        self.file = file
        self.segment = segment
        self.offset = offset
        touchedEnd = offset
        durableSegment = segment
        durableOffset = offset
        self.nextBatch = nextBatch
        segmentBytes = options.segmentBytes
        batchBytesMax = options.batchBytesMax
        pace = LogPace(endedAt: Self.monotonicNow())
        mutex = .allocate(capacity: 1)
        wake = .allocate(capacity: 1)
        pthread_mutex_init(mutex, nil)
        pthread_cond_init(wake, nil)
        headerBytes = .allocate(byteCount: LogFormat.batchHeaderBytes, alignment: 8)
        padding = .allocate(byteCount: Self.aheadBytes, alignment: 4096)
        padding.initializeMemory(as: UInt8.self, repeating: 0)
    }

    deinit {
        pthread_cond_destroy(wake)
        pthread_mutex_destroy(mutex)
        wake.deallocate()
        mutex.deallocate()
        headerBytes.deallocate()
        padding.deallocate()
    }

    // MARK: Called by the owner

    func start() throws(DatabaseError) {
        let context = Unmanaged.passRetained(self).toOpaque()
        var started = pthread_t()
        let code = pthread_create(&started, nil, runLogWriter, context)
        guard code == 0 else {
            Unmanaged<LogWriter>.fromOpaque(context).release()
            throw DatabaseError(
                .storageFailed, "start log writer: \(String(cString: strerror(code)))")
        }
        thread = started
    }

    func setOnDurable(_ body: @escaping @Sendable (Result<UInt64, DatabaseError>) -> Void) {
        locked { onDurable = body }
    }

    func setOnWritten(_ body: @escaping @Sendable (Nanoseconds, Nanoseconds) -> Void) {
        locked { onWritten = body }
    }

    /// Hands a submission over. Returns an empty buffer for the next one and about how many bytes
    /// `segment`, the newest, takes once all that is queued is written.
    func hand(
        _ submission: Submission, segment: UInt64
    ) throws(DatabaseError) -> (empty: LogBuffer, segmentBytes: Int) {
        pthread_mutex_lock(mutex)
        defer { pthread_mutex_unlock(mutex) }
        if let failure { throw failure }
        queue.append(submission)
        queue[queue.count - 1].handed = Self.monotonicNow()
        statistics.queuedBytes += submission.buffer.count
        pthread_cond_signal(wake)
        let written = segment == durableSegment ? durableOffset : LogFormat.alignment
        return (free.popLast() ?? LogBuffer(), written + statistics.queuedBytes)
    }

    /// Whether the queue takes another submission.
    var hasRoom: Bool { locked { queue.count < Self.queueLengthMax } }
    var currentFailure: DatabaseError? { locked { failure } }
    var currentStatistics: LogStatistics { locked { statistics } }
    var currentPace: LogPace { locked { pace } }

    /// Has the thread write and sync a probe, unless there is something else to write.
    func probe() {
        locked {
            isProbeWanted = true
            pthread_cond_signal(wake)
        }
    }

    /// Writes what is queued, ends the thread and closes the file.
    func stop() {
        locked {
            stopping = true
            pthread_cond_signal(wake)
        }
        pthread_join(thread, nil)
        Glibc.close(file)
    }

    private func locked<R>(_ body: () -> R) -> R {
        pthread_mutex_lock(mutex)
        defer { pthread_mutex_unlock(mutex) }
        return body()
    }

    // MARK: The thread

    fileprivate func run() {
        while takeQueued() {
            do throws(DatabaseError) {
                try writeTaken()
            } catch {
                // Final: the state of the file is unknown from here on (a failed sync may have
                // dropped the pages), so nothing is written or reported durable ever again.
                let report = locked {
                    failure = error
                    end()
                    statistics.queuedBytes = 0
                    queue.removeAll()
                    return onDurable
                }
                taken.removeAll()
                report?(.failure(error))
            }
        }
    }

    /// Waits for submissions and takes as many as one batch may hold, or none for a probe; false when
    /// stopped.
    private func takeQueued() -> Bool {
        pthread_mutex_lock(mutex)
        defer { pthread_mutex_unlock(mutex) }
        while queue.isEmpty {
            if stopping { return false }
            if isProbeWanted, failure == nil { break }
            pthread_cond_wait(wake, mutex)
        }
        isProbeWanted = false
        var count = 0
        var bytes = 0
        for submission in queue {
            if count > 0,
                submission.startsSegment || bytes + submission.buffer.count > batchBytesMax
            {
                break
            }
            bytes += submission.buffer.count
            count += 1
        }
        taken.append(contentsOf: queue[..<count])
        queue.removeFirst(count)
        let now = Self.monotonicNow()
        statistics.writeStartedAt = now
        pace.startedAt = now
        takenAt = now
        return true
    }

    /// The write under way has ended, for better or worse. Under the mutex.
    private func end() {
        let now = Self.monotonicNow()
        if let startedAt = pace.startedAt { pace.newest = now - startedAt }
        pace.endedAt = now
        pace.startedAt = nil
        statistics.writeStartedAt = nil
    }

    /// An empty batch where the next one will be written.
    private func writeProbe() throws(DatabaseError) {
        parts.removeAll(keepingCapacity: true)
        parts.append(iovec(iov_base: headerBytes.baseAddress, iov_len: headerBytes.count))
        let rest = LogFormat.alignment - headerBytes.count
        parts.append(iovec(iov_base: padding.baseAddress, iov_len: rest))
        BatchHeader(
            flags: BatchHeader.isProbe, number: nextBatch, logID: logID, segment: segment,
            bodyBytes: 0, bodyChecksum: 0, records: 0
        ).encode(into: headerBytes)
        try writeParts(bytes: LogFormat.alignment)
        try check(
            directory.operations.synchronize(file), "sync", directory.path(of: segment))
        locked { end() }
    }

    private func writeTaken() throws(DatabaseError) {
        guard let first = taken.first, let last = taken.last else { return try writeProbe() }
        if first.startsSegment { try roll() }
        let written = try writeBatch(hasStateTable: first.startsSegment)
        let began = Self.monotonicNow()
        let waited = takenAt - first.handed
        try check(
            directory.operations.synchronize(file), "sync", directory.path(of: segment))
        let took = Self.monotonicNow() - began
        offset += written
        nextBatch += 1
        let (report, tell) = finish(written: written, syncTook: took)
        report?(.success(last.number))
        tell?(waited, took)
        // Removal comes after the report: it is only clean-up, and nothing waits for it.
        if let obsolete = first.obsolete {
            try directory.remove(obsolete)
            locked { statistics.segmentsRemoved += UInt64(obsolete.count) }
        }
    }

    /// Closes the segment and goes on in a new one.
    private func roll() throws(DatabaseError) {
        let header = SegmentHeader(logID: logID, segment: segment + 1, firstBatch: nextBatch)
        let next = try directory.create(header, bytes: segmentBytes)
        Glibc.close(file)
        file = next
        segment += 1
        offset = LogFormat.alignment
        touchedEnd = offset
        locked { statistics.segmentsCreated += 1 }
    }

    /// Writes all that was taken as one batch at `offset`; returns its length with padding.
    private func writeBatch(hasStateTable: Bool) throws(DatabaseError) -> Int {
        var checksum: UInt32 = 0
        var body = 0
        var records: UInt32 = 0
        parts.removeAll(keepingCapacity: true)
        parts.append(iovec(iov_base: headerBytes.baseAddress, iov_len: headerBytes.count))
        for submission in taken {
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

    /// Counts the batch, gives its buffers back, and returns whom to tell.
    private func finish(
        written: Int, syncTook: Nanoseconds
    ) -> (
        durable: (@Sendable (Result<UInt64, DatabaseError>) -> Void)?,
        written: (@Sendable (Nanoseconds, Nanoseconds) -> Void)?
    ) {
        pthread_mutex_lock(mutex)
        defer { pthread_mutex_unlock(mutex) }
        durableSegment = segment
        durableOffset = offset
        statistics.batches += 1
        statistics.submissions += UInt64(taken.count)
        statistics.bytes += UInt64(written)
        statistics.syncNanoseconds += syncTook.count
        let bucket = 63 - max(1, syncTook.count).leadingZeroBitCount
        statistics.syncHistogram[min(bucket, statistics.syncHistogram.count - 1)] += 1
        end()
        for submission in taken {
            statistics.records += UInt64(submission.buffer.records)
            statistics.queuedBytes -= submission.buffer.count
            if free.count < Self.freeBuffersMax,
                submission.buffer.capacity <= Self.freeBufferBytesMax
            {
                submission.buffer.removeAll()
                free.append(submission.buffer)
            }
        }
        taken.removeAll(keepingCapacity: true)
        return (onDurable, onWritten)
    }

    private static func monotonicNow() -> Instant {
        var now = timespec()
        clock_gettime(CLOCK_MONOTONIC, &now)
        return Instant(nanoseconds: UInt64(now.tv_sec) * 1_000_000_000 + UInt64(now.tv_nsec))
    }
}

private func runLogWriter(_ context: UnsafeMutableRawPointer?) -> UnsafeMutableRawPointer? {
    guard let context else { return nil }
    nameThread("log-writer")
    Unmanaged<LogWriter>.fromOpaque(context).takeRetainedValue().run()
    return nil
}

/// For tools that list threads. A failure changes nothing else.
private func nameThread(_ name: String) {
    let file = open("/proc/thread-self/comm", O_WRONLY | O_CLOEXEC)
    guard file >= 0 else { return }
    defer { close(file) }
    let bytes = Array(name.utf8)
    _ = write(file, bytes, bytes.count)
}
