// The files of a durable metadata store: `lock`, `snapshot-S` and `log-S`, where S is the sequence
// (16 hexadecimal digits) of the last mutation the snapshot holds, and above which the log starts.
//
// A new snapshot is written to `snapshot.new`, synced, renamed, and the directory synced; then the
// log above it is started likewise; only then the older files go. Every crash in between leaves a
// snapshot and the logs above it.

import Glibc
import KVBase
import MetadataCore

final class MetadataFiles: MetadataJournal {
    private let directory: String
    private let options: FileMetadataStore.Options
    private let lock: Int32
    private var log: Int32 = -1
    private var logName = ""
    /// The last mutation appended.
    private var sequence: UInt64 = 0
    private var buffer = ByteWriter()
    private(set) var logBytes = 0

    private init(_ directory: String, lock: Int32, options: FileMetadataStore.Options) {
        self.directory = directory
        self.lock = lock
        self.options = options
    }

    deinit {
        if log >= 0 { close(log) }
        // As in DirectoryLock: for the sake of children that were just forked.
        flock(lock, LOCK_UN)
        close(lock)
    }

    // MARK: Opening

    static func open(_ directory: String, now: Instant, options: FileMetadataStore.Options)
        throws(DatabaseError) -> (MetadataFiles, RevisionedState)
    {
        let lock = Glibc.open("\(directory)/lock", O_RDWR | O_CREAT | O_CLOEXEC, 0o640)
        guard lock >= 0 else { throw systemError("open \(directory)/lock") }
        guard flock(lock, LOCK_EX | LOCK_NB) == 0 else {
            close(lock)
            throw DatabaseError(
                .refused, "another process uses \(directory); stop it or name another directory")
        }
        let files = MetadataFiles(directory, lock: lock, options: options)
        return (files, try files.recover(now: now))
    }

    private func recover(now: Instant) throws(DatabaseError) -> RevisionedState {
        let names = try listDirectory(directory)
        _ = unlink(path("snapshot.new"))
        let snapshots = names.compactMap { Self.sequence(of: $0, prefix: "snapshot-") }.sorted()
        let logs = names.compactMap { Self.sequence(of: $0, prefix: "log-") }.sorted()
        var state = RevisionedState()
        if let newest = snapshots.last {
            let name = Self.name("snapshot-", newest)
            do throws(DatabaseError) {
                let decoded = try SnapshotFile.decode(try readFile(path(name)), now: now)
                guard decoded.sequence == newest else {
                    throw DatabaseError(.malformed, "it holds sequence \(decoded.sequence)")
                }
                state = decoded.state
            } catch {
                throw damage(name, at: 0, error.message)
            }
            sequence = newest
        } else if let first = logs.first, first > 0 {
            throw damage(Self.name("snapshot-", first), at: 0, "it is missing")
        }
        for start in logs {
            try replay(Self.name("log-", start), isLast: start == logs.last, into: &state, now: now)
        }
        if let last = logs.last {
            try openLog(Self.name("log-", last))
        } else {
            try startLog()
        }
        return state
    }

    private func replay(
        _ name: String, isLast: Bool, into state: inout RevisionedState, now: Instant
    ) throws(DatabaseError) {
        let bytes = try readFile(path(name))
        let writtenEnd = (bytes.lastIndex { $0 != 0 } ?? -1) + 1
        var offset = 0
        while offset < bytes.count {
            let reading = bytes.withUnsafeBytes {
                LogRecord.read($0, at: offset, writtenEnd: writtenEnd)
            }
            switch reading {
            case .record(let recordSequence, let mutation, let next):
                if recordSequence > sequence {
                    guard recordSequence == sequence + 1 else {
                        throw damage(
                            name, at: offset, "sequence \(recordSequence) follows \(sequence)")
                    }
                    state.apply(mutation, now: now)
                    sequence = recordSequence
                }
                offset = next
            case .torn:
                guard isLast else { throw damage(name, at: offset, "it ends within a record") }
                try truncateFile(path(name), to: offset)
                offset = bytes.count
            case .damaged(let reason): throw damage(name, at: offset, reason)
            }
        }
    }

    // MARK: Appending

    func append(_ mutation: MetadataMutation) {
        sequence += 1
        LogRecord.append(mutation, sequence: sequence, to: &buffer)
    }

    func sync(_ state: RevisionedState) throws(DatabaseError) {
        let bytes = buffer.take()
        if !bytes.isEmpty {
            try writeAll(log, bytes, name: logName)
            let started = monotonicNanoseconds()
            try sync(log, logName)
            options.onSync(Nanoseconds(monotonicNanoseconds() - started))
            logBytes += bytes.count
        }
        if logBytes >= options.snapshotAfterLogBytes { try writeSnapshot(state) }
    }

    private func writeSnapshot(_ state: RevisionedState) throws(DatabaseError) {
        let name = Self.name("snapshot-", sequence)
        let descriptor = try createFile(path("snapshot.new"))
        defer { close(descriptor) }
        try writeAll(
            descriptor, SnapshotFile.encode(state, sequence: sequence), name: "snapshot.new")
        try sync(descriptor, "snapshot.new")
        guard rename(path("snapshot.new"), path(name)) == 0 else {
            throw systemError("rename \(path(name))")
        }
        try syncDirectory()
        try startLog()
        for old in try listDirectory(directory) {
            let ofSnapshot = Self.sequence(of: old, prefix: "snapshot-")
            let ofLog = Self.sequence(of: old, prefix: "log-")
            if let start = ofSnapshot ?? ofLog, start < sequence { unlink(path(old)) }
        }
    }

    /// Starts the log of mutations above the present sequence.
    private func startLog() throws(DatabaseError) {
        let name = Self.name("log-", sequence)
        let descriptor = try createFile(path(name))
        close(descriptor)
        try openLog(name)
        try syncDirectory()
    }

    private func openLog(_ name: String) throws(DatabaseError) {
        if log >= 0 { close(log) }
        log = Glibc.open(path(name), O_WRONLY | O_APPEND | O_CLOEXEC)
        guard log >= 0 else { throw systemError("open \(path(name))") }
        logName = name
        logBytes = Int(lseek(log, 0, SEEK_END))
        try sync(log, name)
    }

    // MARK: Helpers

    private func sync(_ descriptor: Int32, _ name: String) throws(DatabaseError) {
        guard options.sync(descriptor) == 0 else { throw systemError("fsync \(path(name))") }
    }

    private func syncDirectory() throws(DatabaseError) {
        let descriptor = Glibc.open(directory, O_RDONLY | O_DIRECTORY | O_CLOEXEC)
        guard descriptor >= 0 else { throw systemError("open \(directory)") }
        defer { close(descriptor) }
        try sync(descriptor, "")
    }

    private func damage(_ name: String, at offset: Int, _ reason: String) -> DatabaseError {
        DatabaseError(.storageFailed, "\(path(name)) is damaged at byte \(offset): \(reason)")
    }

    private func path(_ name: String) -> String { "\(directory)/\(name)" }

    private static func name(_ prefix: String, _ sequence: UInt64) -> String {
        prefix + hex(sequence)
    }

    private static func sequence(of name: String, prefix: String) -> UInt64? {
        name.hasPrefix(prefix) ? UInt64(hex: name.dropFirst(prefix.utf8.count)) : nil
    }
}
