// The check of one disk's data at rest: that what nobody reads can still be read.
//
// It runs on a thread of its own and reads at a pace. What was found, and when everything was last
// found whole, outlives the process in the file `scrub` of the data directory.

import EventLoop
import Glibc
import KVBase
import ReplicatedLog
import StorageAPI
import Synchronization
import Threads
import WireProtocol

final class DiskScrub: ScrubPace {
    enum Outcome: Sendable {
        case whole
        case stopped
        /// `inLog`: bytes of the log, not of an engine.
        case damaged(DatabaseError, inLog: Bool)
        /// It cannot be told what is there.
        case unreadable(DatabaseError)
    }

    /// What the thread does at this moment.
    private enum Phase { case idle, resting, reading, checking }

    private struct State {
        var phase = Phase.idle
        var outcome: Outcome?
        var doneBytes: UInt64 = 0
        var totalBytes: UInt64 = 0
        /// Read by all checks since the start of the process.
        var allBytes: UInt64 = 0
        /// Rises with every step.
        var steps: UInt64 = 0
        /// Before then nothing is read: what was read before takes until then at the wanted pace.
        var nextRead = Instant.origin
        /// The loop wants it to end.
        var isCancelled = false
        var isClosed = false
        /// Requests take too long: read at a quarter of the pace.
        var isStrained = false
        var record: ScrubRecord
        var isRunning = false
    }

    private let directory: String
    private let bytesPerSecond: UInt64
    private let worker: WorkerThread
    private let state: Mutex<State>

    private static let strainedShare: UInt64 = 4
    private static let napMax = Nanoseconds.milliseconds(50)

    /// Blocking: reads the record of earlier checks, and begins one. `bytesPerSecond` is above zero.
    init(
        disk index: Int, directory: String, bytesPerSecond: UInt64
    ) throws(DatabaseError) {
        self.directory = directory
        self.bytesPerSecond = bytesPerSecond
        worker = try WorkerThread(name: "disk\(index)-scrub")
        state = Mutex(State(record: ScrubRecord.open(in: directory)))
    }

    // MARK: The loop's side

    /// Starts a check of engines and log; `ended` is called on the scrub's thread. False when one is
    /// under way.
    func start(
        _ engines: [any StorageEngine], _ log: LogScrub, totalBytes: UInt64,
        ended: @escaping @Sendable () -> Void
    ) -> Bool {
        let starts = state.withLock { state in
            guard !state.isRunning, !state.isClosed else { return false }
            state.isRunning = true
            state.isCancelled = false
            state.outcome = nil
            state.doneBytes = 0
            state.totalBytes = totalBytes
            return true
        }
        guard starts else { return false }
        worker.submit { [self] in
            let outcome = run(engines, log)
            state.withLock { state in
                state.isRunning = false
                state.phase = .idle
                state.outcome = outcome
            }
            ended()
        }
        return true
    }

    func setStrained(_ isStrained: Bool) { state.withLock { $0.isStrained = isStrained } }

    /// Ends the check under way soon; it did not succeed.
    func cancel() { state.withLock { $0.isCancelled = true } }

    /// Ends the check under way and the thread; waits for both. No check starts any more.
    func close() {
        state.withLock { $0.isClosed = true }
        worker.finish()
    }

    // MARK: Looking

    var outcome: Outcome? { state.withLock { $0.outcome } }
    var record: ScrubRecord { state.withLock { $0.record } }
    var isRunning: Bool { state.withLock { $0.isRunning } }
    /// Bytes read since the start of the process.
    var allBytes: UInt64 { state.withLock { $0.allBytes } }

    /// What rises while the thread computes; nil while it rests, waits for the disk or has nothing to
    /// do: neither is a fault of the thread, and no restart makes a disk faster.
    var progress: UInt64? { state.withLock { $0.phase == .checking ? $0.steps : nil } }

    var status: ScrubStatus {
        state.withLock { state in
            var (word, finding) = (ScrubStatus.State.idle, "")
            switch state.outcome {
            case nil: if state.isRunning { word = .running }
            case .whole: word = .passed
            case .stopped: (word, finding) = (.incomplete, "it was ended before its time")
            case .damaged(let error, _): (word, finding) = (.damaged, error.message)
            case .unreadable(let error): (word, finding) = (.incomplete, error.message)
            }
            return ScrubStatus(
                path: directory, state: word, doneBytes: state.doneBytes,
                totalBytes: max(state.totalBytes, state.doneBytes),
                lastSuccess: state.record.succeeded, finding: finding)
        }
    }

    // MARK: The thread's side

    private func run(_ engines: [any StorageEngine], _ log: LogScrub) -> Outcome {
        state.withLock { $0.phase = .checking }
        var inLog = true
        do throws(DatabaseError) {
            guard
                try log.run(
                    willRead: { bytes in willRead(bytes) }, didRead: { bytes in didRead(bytes) })
            else { return .stopped }
            inLog = false
            for engine in engines {
                guard try engine.scrub(self) else { return .stopped }
            }
            let record = ScrubRecord(
                opened: record.opened, succeeded: EventLoop.wallClockNanoseconds() / 1_000_000_000)
            state.withLock { $0.phase = .reading }
            try record.write(to: directory)
            state.withLock { $0.record = record }
            return .whole
        } catch {
            let unreadable = String(cString: strerror(EIO))
            let isDamage =
                error.isCorruption || LogScrub.isDamage(error) || error.message.contains(unreadable)
            return isDamage ? .damaged(error, inLog: inLog) : .unreadable(error)
        }
    }

    func willRead(_ bytes: Int) -> Bool {
        while true {
            let now = EventLoop.monotonicNow()
            let (rest, ends) = state.withLock { state -> (Nanoseconds, Bool) in
                if state.isCancelled || state.isClosed { return (.zero, true) }
                guard now < state.nextRead else {
                    let pace =
                        state.isStrained
                        ? max(1, bytesPerSecond / Self.strainedShare) : bytesPerSecond
                    let time = Double(bytes) / Double(pace) * 1e9
                    state.nextRead = now + Nanoseconds(UInt64(time))
                    state.phase = .reading
                    return (.zero, false)
                }
                state.phase = .resting
                return (state.nextRead - now, false)
            }
            if ends { return false }
            if rest == .zero { return true }
            Self.sleep(min(rest, Self.napMax))
        }
    }

    func didRead(_ bytes: Int) {
        state.withLock { state in
            state.doneBytes += UInt64(bytes)
            state.allBytes += UInt64(bytes)
            state.steps += 1
            state.phase = .checking
        }
    }

    private static func sleep(_ duration: Nanoseconds) {
        var time = timespec(
            tv_sec: Int(duration.count / 1_000_000_000),
            tv_nsec: Int(duration.count % 1_000_000_000))
        nanosleep(&time, nil)
    }
}

/// What is known of the checks of a data directory, over restarts.
struct ScrubRecord: Hashable, Sendable {
    /// When the directory was first opened by a program that checks, in seconds since 1970.
    var opened: UInt64
    /// When a check last found everything whole; 0: never.
    var succeeded: UInt64

    /// What checks are late by is counted from here.
    var since: UInt64 { max(opened, succeeded) }

    private static func path(in directory: String) -> String { directory + "/scrub" }

    /// Reads the record; begins one where there is none that can be read. A full disk is no reason not
    /// to start: the record is written with the next success then.
    static func open(in directory: String) -> ScrubRecord {
        if let bytes = try? DurableFile.read(path(in: directory)) {
            let known = try? ByteReader.decode(bytes) { (reader) throws(DatabaseError) in
                ScrubRecord(opened: try reader.readUInt64(), succeeded: try reader.readUInt64())
            }
            if let known { return known }
        }
        let record = ScrubRecord(
            opened: EventLoop.wallClockNanoseconds() / 1_000_000_000, succeeded: 0)
        try? record.write(to: directory)
        return record
    }

    func write(to directory: String) throws(DatabaseError) {
        var writer = ByteWriter()
        writer.write(opened)
        writer.write(succeeded)
        try DurableFile.replace(Self.path(in: directory), with: writer.bytes)
    }
}
