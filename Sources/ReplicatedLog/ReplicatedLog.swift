// The append-only log of one disk, shared by all replicas on it.
//
// The owner thread stages records into a buffer and hands the buffer over once per turn; the writer
// thread makes it durable and says so. Layout and recovery rules: docs/internals/log.md.

import Glibc
import KVBase
import ReplicationCore

public struct LogOptions: Sendable {
    /// Disk space reserved for a segment. A segment may grow over it by one submission.
    public var segmentBytes = 64 << 20
    /// Staged bytes beyond which a submission is handed over early, and most bytes that the writer
    /// joins into one batch when there is more than one submission.
    public var batchBytesMax = 16 << 20
    /// Refuse to start an empty log: the directory is known to have held one.
    public var expectExisting = false
    public var operations = FileOperations.system

    public init() {}
}

/// One log. Every call is made on the owner thread, except that `statistics` may be read by any.
///
/// After a failure of the disk the log is dead: `submit` throws the same error for ever and nothing
/// later is reported durable.
public final class ReplicatedLog {
    /// What the log knows of a live group.
    private struct Group {
        var replica: ReplicaID
        var hardState = HardState()
        /// Released up to here; never goes back.
        var compacted = LogPosition()
        var last = LogIndex.none
    }

    /// A segment on disk. `highest`: per live group, the highest index of its entries in it.
    private struct Segment {
        var number: UInt64
        var bytes: Int
        var highest: [GroupID: LogIndex] = [:]
    }

    public let directory: String
    /// What `open` found.
    public let recovery: RecoverySummary
    private let options: LogOptions
    private let writer: LogWriter
    private var groups: [GroupID: Group] = [:]
    /// The oldest first; the last is the one being written (or, for what is staged, to be written).
    private var segments: [Segment]
    private var pending = LogBuffer()
    private var pendingStartsSegment = false
    private var pendingObsolete: ClosedRange<UInt64>?
    private var lastNumber: UInt64 = 0
    private var isClosed = false

    /// Called on the writer thread with the highest durable submission number after each sync, or
    /// once with the error that ended the log. Set it before the first `submit`.
    public var onDurable: @Sendable (Result<UInt64, DatabaseError>) -> Void = { _ in } {
        didSet { writer.setOnDurable(onDurable) }
    }

    /// Hears of each batch that became durable how long its oldest submission had waited for the writer
    /// and how long the sync took; on the writer's thread.
    public var onWritten: @Sendable (_ wait: Nanoseconds, _ sync: Nanoseconds) -> Void = {
        _, _ in
    }
    {
        didSet { writer.setOnWritten(onWritten) }
    }

    /// Opens the log in `directory`, creating both when they are not there, and reads it back.
    /// `progress` is called as segments are read, on this thread. Groups come sorted by id.
    ///
    /// Throws `.storageFailed` when the disk fails or the log is damaged; the message names file and
    /// offset.
    public static func open(
        directory path: String, options: LogOptions = LogOptions(),
        progress: (_ bytesDone: UInt64, _ bytesTotal: UInt64) -> Void = { _, _ in }
    ) throws(DatabaseError) -> (ReplicatedLog, [RecoveredGroup]) {
        try DurableFile.createDirectory(path, operations: options.operations)
        let directory = SegmentDirectory(path: path, operations: options.operations)
        var recovery = LogRecovery(directory)
        try recovery.run(progress: progress)
        if recovery.segments.isEmpty {
            guard !options.expectExisting else {
                throw DatabaseError(
                    .storageFailed, "\(path) holds no log, and one is known to have been there")
            }
            let header = SegmentHeader(
                logID: UInt64.random(in: 1 ... .max), segment: 1, firstBatch: 1)
            Glibc.close(try directory.create(header, bytes: options.segmentBytes))
            try recovery.run(progress: progress)
        }
        let log = try ReplicatedLog(directory, recovery, options)
        let recovered = recovery.groups.sorted { $0.key < $1.key }.map { group, replay in
            RecoveredGroup(
                group: group, replica: replay.replica, hardState: replay.hardState,
                compacted: replay.compacted, entries: replay.entries)
        }
        return (log, recovered)
    }

    private init(
        _ directory: SegmentDirectory, _ recovery: LogRecovery, _ options: LogOptions
    ) throws(DatabaseError) {
        self.directory = directory.path
        self.options = options
        self.recovery = recovery.summary
        segments = recovery.segments.map {
            Segment(number: $0.number, bytes: $0.endOffset, highest: $0.highest)
        }
        for (group, replay) in recovery.groups {
            groups[group] = Group(
                replica: replay.replica, hardState: replay.hardState,
                compacted: replay.compacted,
                last: replay.entries.last?.index ?? replay.compacted.index)
        }
        guard let last = recovery.segments.last, let logID = recovery.logID else {
            preconditionFailure("a log has at least one segment")
        }
        let path = directory.path(of: last.number)
        let file = Glibc.open(path, O_RDWR | O_CLOEXEC)
        guard file >= 0 else { throw storageError("open", path, errno: errno) }
        writer = LogWriter(
            directory: directory, logID: logID, file: file, segment: last.number,
            offset: last.endOffset, nextBatch: recovery.nextBatch, options: options)
        try writer.start()
    }

    // MARK: Staging

    /// A new, empty replica. Precondition: the group has none here.
    public func stageCreation(group: GroupID, replica: ReplicaID) {
        beginRecords()
        precondition(groups[group] == nil, "group \(group) has a replica on this disk")
        groups[group] = Group(replica: replica)
        pending.append(.created, group: group, replica: replica)
    }

    /// The group's replica was destroyed: its records are never read back.
    public func stageRemoval(group: GroupID) {
        guard let state = groups[group] else { return }
        beginRecords()
        pending.append(.removed, group: group, replica: state.replica)
        groups[group] = nil
        forgetEntries(of: group)
    }

    /// Copies what a replica wants durable into the pending batch. All of it becomes durable at
    /// once. Preconditions: the group's replica here is `replica`, and the entries leave no gap.
    public func stage(group: GroupID, replica: ReplicaID, persist: Persist) {
        beginRecords()
        guard var state = groups[group], state.replica == replica else {
            preconditionFailure("group \(group) has no replica \(replica) on this disk")
        }
        if let hardState = persist.hardState {
            state.hardState = hardState
            pending.append(hardState, group: group, replica: replica)
        }
        if let snapshot = persist.snapshot {
            state.compacted = snapshot
            state.last = snapshot.index
            pending.append(snapshot: snapshot, group: group, replica: replica)
            forgetEntries(of: group)
        }
        for entry in persist.entries {
            precondition(
                entry.index > state.compacted.index && entry.index <= state.last.next(),
                "entry \(entry.index) of group \(group) leaves a gap behind \(state.last)")
            pending.append(entry, group: group, replica: replica)
            state.last = entry.index
        }
        if let last = persist.entries.last {
            let highest = segments[segments.count - 1].highest[group] ?? last.index
            segments[segments.count - 1].highest[group] = max(highest, last.index)
        }
        groups[group] = state
    }

    /// Hands what is staged to the writer and returns its number, which `onDurable` will reach; nil
    /// when nothing is staged. When the writer's queue is full the records stay staged and the
    /// answer is nil too: call again after the next `onDurable`.
    ///
    /// Throws the error that ended the log.
    public func submit() throws(DatabaseError) -> UInt64? {
        if let failure = writer.currentFailure { throw failure }
        guard !pending.isEmpty, writer.hasRoom else { return nil }
        return try handOver()
    }

    /// Whether records are staged that were not submitted yet.
    public var hasStaged: Bool { !pending.isEmpty }

    /// Entries of the group up to `position` are durable in its engine (or not needed for another
    /// reason). Their disk space comes back when whole segments are free, at the next change of
    /// segment.
    ///
    /// `position` may lie behind the last entry: a leader applies what a majority of others holds,
    /// so after a crash its engine can be ahead of its own log. The log is then cut there, by a
    /// staged record, and goes on behind `position`.
    public func release(group: GroupID, upTo position: LogPosition) {
        guard var state = groups[group], position.index > state.compacted.index else { return }
        if position.index > state.last {
            beginRecords()
            pending.append(snapshot: position, group: group, replica: state.replica)
            state.last = position.index
            forgetEntries(of: group)
        }
        state.compacted = position
        groups[group] = state
    }

    /// Writes what was submitted, stops the writer thread and closes the files.
    public func close() {
        guard !isClosed else { return }
        isClosed = true
        writer.stop()
    }

    deinit { close() }

    // MARK: Sizes

    /// The error that ended the log.
    public var failure: DatabaseError? { writer.currentFailure }
    public var statistics: LogStatistics { writer.currentStatistics }
    public var pace: LogPace { writer.currentPace }

    /// Has an idle log write and sync something that leaves no trace, so that `pace` is fresh and a
    /// disk that fails is noticed. An error is as final as that of any other write.
    public func probe() { writer.probe() }

    /// A check of what is on disk, to be run on another thread before `close`.
    public var scrub: LogScrub { writer.scrub }

    public var segmentCount: Int { segments.count }
    /// Bytes of records in all segments, staged ones included.
    public var totalBytes: UInt64 {
        segments.reduce(UInt64(pending.count)) { $0 + UInt64($1.bytes) }
    }

    /// Bytes from the oldest segment that a group still needs to the end: what a restart replays.
    public var bytesSinceOldestNeeded: UInt64 {
        let needed = segments.firstIndex { !isFree($0) } ?? segments.count - 1
        return segments[needed...].reduce(UInt64(pending.count)) { $0 + UInt64($1.bytes) }
    }

    /// The groups that keep the oldest needed segment, at most `limit`, sorted by id: checkpoint
    /// their engines to get its space back. Empty when only the newest segment is needed.
    public func groupsHoldingOldest(limit: Int) -> [GroupID] {
        guard let oldest = segments.dropLast().first(where: { !isFree($0) }) else { return [] }
        let holders = oldest.highest.filter { isNeeded($0.key, $0.value) }.keys.sorted()
        return Array(holders.prefix(limit))
    }

    // MARK: Helpers

    /// Called before every record: starts a new segment when the current one is full, and keeps a
    /// submission within its bound.
    private func beginRecords() {
        precondition(!isClosed)
        if pending.count >= options.batchBytesMax, writer.hasRoom, writer.currentFailure == nil {
            _ = try? handOver()
        }
        guard pending.isEmpty, segments[segments.count - 1].bytes >= options.segmentBytes
        else { return }
        // The table and the list of free segments are taken at the same moment: what the table says
        // is all that a recovery without those segments needs.
        pendingStartsSegment = true
        for (group, state) in groups.sorted(by: { $0.key < $1.key }) {
            pending.append(
                state.hardState, compacted: state.compacted, group: group, replica: state.replica)
        }
        let free = segments.prefix { isFree($0) }.count
        if free > 0 {
            pendingObsolete = segments[0].number...segments[free - 1].number
        }
        segments.append(Segment(number: segments[segments.count - 1].number + 1, bytes: 0))
        segments.removeFirst(free)
    }

    private func handOver() throws(DatabaseError) -> UInt64 {
        lastNumber += 1
        let submission = Submission(
            number: lastNumber, buffer: pending, startsSegment: pendingStartsSegment,
            obsolete: pendingObsolete)
        let newest = segments.count - 1
        (pending, segments[newest].bytes) = try writer.hand(
            submission, segment: segments[newest].number)
        pendingStartsSegment = false
        pendingObsolete = nil
        return lastNumber
    }

    private func forgetEntries(of group: GroupID) {
        for place in segments.indices { segments[place].highest[group] = nil }
    }

    private func isNeeded(_ group: GroupID, _ highest: LogIndex) -> Bool {
        guard let state = groups[group] else { return false }
        return highest > state.compacted.index
    }

    private func isFree(_ segment: Segment) -> Bool {
        !segment.highest.contains { isNeeded($0.key, $0.value) }
    }
}
