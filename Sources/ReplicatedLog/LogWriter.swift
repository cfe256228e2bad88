// The writer thread: everything handed to it since the last sync becomes one batch, one write, one
// fdatasync.
//
// Thread ownership: the appender belongs to the writer thread once that has started; the queue
// and the counters are shared under one monitor; a submitted buffer belongs to the writer until it
// comes back through the free list.

import Glibc
import KVBase
import Threads

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

final class LogWriter: @unchecked Sendable {
    static let queueLengthMax = 256
    private static let freeBuffersMax = 16
    private static let freeBufferBytesMax = 4 << 20

    // Shared, under the monitor, on which the thread waits for something to do.
    private let monitor = Monitor()
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
    private let appender: BatchAppender
    private let batchBytesMax: Int
    private var taken: [Submission] = []
    private var takenAt = Instant.origin
    private var thread: NamedThread?

    init(
        directory: SegmentDirectory, logID: UInt64, file: Int32, segment: UInt64, offset: Int,
        nextBatch: UInt64, options: LogOptions
    ) {
        self.directory = directory
        appender = BatchAppender(
            directory: directory, logID: logID, file: file, segment: segment, offset: offset,
            nextBatch: nextBatch, segmentBytes: options.segmentBytes)
        durableSegment = segment
        durableOffset = offset
        batchBytesMax = options.batchBytesMax
        pace = LogPace(endedAt: Self.monotonicNow())
    }

    // MARK: Called by the owner

    func start() throws(DatabaseError) {
        do throws(DatabaseError) {
            thread = try NamedThread(name: "log-writer") { [self] in run() }
        } catch {
            throw DatabaseError(.storageFailed, error.message)
        }
    }

    func setOnDurable(_ body: @escaping @Sendable (Result<UInt64, DatabaseError>) -> Void) {
        monitor.locked { onDurable = body }
    }

    func setOnWritten(_ body: @escaping @Sendable (Nanoseconds, Nanoseconds) -> Void) {
        monitor.locked { onWritten = body }
    }

    /// Hands a submission over. Returns an empty buffer for the next one and about how many bytes
    /// `segment`, the newest, takes once all that is queued is written.
    func hand(
        _ submission: Submission, segment: UInt64
    ) throws(DatabaseError) -> (empty: LogBuffer, segmentBytes: Int) {
        try monitor.locked { () throws(DatabaseError) in
            if let failure { throw failure }
            queue.append(submission)
            queue[queue.count - 1].handed = Self.monotonicNow()
            statistics.queuedBytes += submission.buffer.count
            monitor.wakeOne()
            let written = segment == durableSegment ? durableOffset : LogFormat.alignment
            return (free.popLast() ?? LogBuffer(), written + statistics.queuedBytes)
        }
    }

    /// Whether the queue takes another submission.
    var hasRoom: Bool { monitor.locked { queue.count < Self.queueLengthMax } }
    var currentFailure: DatabaseError? { monitor.locked { failure } }
    var currentStatistics: LogStatistics { monitor.locked { statistics } }
    var currentPace: LogPace { monitor.locked { pace } }
    var scrub: LogScrub {
        LogScrub(directory: directory, logID: appender.logID) { [self] in
            monitor.locked { DurableEnd(segment: durableSegment, offset: durableOffset) }
        }
    }

    /// Has the thread write and sync a probe, unless there is something else to write.
    func probe() {
        monitor.locked {
            isProbeWanted = true
            monitor.wakeOne()
        }
    }

    /// Writes what is queued, ends the thread and closes the file.
    func stop() {
        monitor.locked {
            stopping = true
            monitor.wakeOne()
        }
        thread?.join()
        appender.close()
    }

    // MARK: The thread

    private func run() {
        while takeQueued() {
            do throws(DatabaseError) {
                try writeTaken()
            } catch {
                // Final: the state of the file is unknown from here on (a failed sync may have
                // dropped the pages), so nothing is written or reported durable ever again.
                let report = monitor.locked {
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
        monitor.locked {
            while queue.isEmpty {
                if stopping { return false }
                if isProbeWanted, failure == nil { break }
                monitor.wait()
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
    }

    /// The write under way has ended, for better or worse. Under the monitor.
    private func end() {
        let now = Self.monotonicNow()
        if let startedAt = pace.startedAt { pace.newest = now - startedAt }
        pace.endedAt = now
        pace.startedAt = nil
        statistics.writeStartedAt = nil
    }

    private func writeTaken() throws(DatabaseError) {
        guard let first = taken.first, let last = taken.last else {
            try appender.writeProbe()
            return monitor.locked { end() }
        }
        if first.startsSegment {
            try appender.roll()
            monitor.locked { statistics.segmentsCreated += 1 }
        }
        let written = try appender.write(taken)
        let began = Self.monotonicNow()
        let waited = takenAt - first.handed
        try appender.synchronize()
        let took = Self.monotonicNow() - began
        appender.advance(past: written)
        let (report, tell) = finish(written: written, syncTook: took)
        report?(.success(last.number))
        tell?(waited, took)
        // Removal comes after the report: it is only clean-up, and nothing waits for it.
        if let obsolete = first.obsolete {
            try directory.remove(obsolete)
            monitor.locked { statistics.segmentsRemoved += UInt64(obsolete.count) }
        }
    }

    /// Counts the batch, gives its buffers back, and returns whom to tell.
    private func finish(
        written: Int, syncTook: Nanoseconds
    ) -> (
        durable: (@Sendable (Result<UInt64, DatabaseError>) -> Void)?,
        written: (@Sendable (Nanoseconds, Nanoseconds) -> Void)?
    ) {
        monitor.locked {
            durableSegment = appender.segment
            durableOffset = appender.offset
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
    }

    private static func monotonicNow() -> Instant {
        var now = timespec()
        clock_gettime(CLOCK_MONOTONIC, &now)
        return Instant(nanoseconds: UInt64(now.tv_sec) * 1_000_000_000 + UInt64(now.tv_nsec))
    }
}
