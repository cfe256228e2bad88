// One data directory: a log, the engines on it, and the threads that may block on it.

import BTreeEngine
import EventLoop
import Glibc
import KVBase
import LSMEngine
import Metrics
import NodeCore
import ReplicatedLog
import ReplicationCore
import ShardCore
import StorageAPI
import Threads

/// Owned by the node's event loop. An error of the log or an engine is final: the disk is `failed`
/// until the process starts again, and so are its replicas.
final class Disk {
    let index: Int
    let path: String
    let log: ReplicatedLog
    let worker: WorkerThread
    /// Counts shards; slow and interruptible, so apart from checkpoints.
    let surveyor: WorkerThread
    let probes: DiskProbes
    let scrub: DiskScrub
    /// By the loop's clock; the origin while that is not settled.
    var scrubNotBefore = Instant.origin
    private(set) var failure: DatabaseError?
    private(set) var size = (
        fileSystem: UInt64(0), totalBytes: UInt64(0), freeBytes: UInt64(0), dataBytes: UInt64(0)
    )
    /// All engines together, as of the last measurement.
    private(set) var engineFigures = EngineStatistics()
    /// Calls the node once when the disk fails.
    var didFail: (Disk) -> Void = { _ in }
    /// A store below this was handed out before.
    private(set) var nextStore = StoreID(1)
    /// Written entries' bytes since the last checkpoint began.
    var bytesSinceCheckpoint = 0
    var isCheckpointing = false

    private let metrics: NodeMetrics
    private let lock: DirectoryLock
    private let engines: [(kind: EngineKind, engine: any StorageEngine)]
    /// Waiting for the next submission of the log.
    private var staged: [(replica: GroupReplica, ticket: PersistTicket)] = []
    private var stagedCreations: [() -> Void] = []
    /// Submitted and not durable yet, oldest first.
    private var inFlight: [Submission] = []

    private var checkpoints: Completions?

    private struct Submission {
        var number: UInt64
        var tickets: [(replica: GroupReplica, ticket: PersistTicket)]
        var creations: [() -> Void]
    }

    /// Opens log and engines; blocking, before the loop runs. `progress` hears how far the replay of
    /// the log is.
    init(
        index: Int, path: String, expectExisting: Bool, cache: LSMCache,
        scrubBytesPerSecond: UInt64, metrics: NodeMetrics,
        progress: (_ done: UInt64, _ total: UInt64) -> Void
    ) throws(DatabaseError) {
        self.index = index
        self.path = path
        self.metrics = metrics
        lock = try DirectoryLock(directory: path)
        var lsmOptions = LSMOptions()
        lsmOptions.expectExisting = expectExisting
        lsmOptions.cache = cache
        var btreeOptions = BTreeOptions()
        btreeOptions.expectExisting = expectExisting
        engines = [
            (.lsm, try LSMEngine(path: "\(path)/lsm", options: lsmOptions)),
            (.btree, try BTreeEngine(path: "\(path)/btree", options: btreeOptions)),
        ]
        var logOptions = LogOptions()
        logOptions.expectExisting = expectExisting
        let recovered: [RecoveredGroup]
        (log, recovered) = try ReplicatedLog.open(
            directory: "\(path)/log", options: logOptions, progress: progress)
        worker = try WorkerThread(name: "disk\(index)-worker")
        surveyor = try WorkerThread(name: "disk\(index)-survey")
        probes = try DiskProbes(disk: index)
        scrub = try DiskScrub(disk: index, directory: path, bytesPerSecond: scrubBytesPerSecond)
        self.recovered = recovered
        measure()
    }

    /// What the log held at the start; taken once by the node.
    private var recovered: [RecoveredGroup]
    func takeRecovered() -> [RecoveredGroup] {
        defer { recovered = [] }
        return recovered
    }

    func engine(_ kind: EngineKind) -> any StorageEngine {
        guard let found = engines.first(where: { $0.kind == kind }) else {
            preconditionFailure("every disk has every engine")
        }
        return found.engine
    }

    var allEngines: [any StorageEngine] { engines.map(\.engine) }

    func allocateStore() -> StoreID {
        defer { nextStore = StoreID(nextStore.rawValue + 1) }
        return nextStore
    }

    func reserveStores(through store: StoreID) {
        if nextStore <= store { nextStore = StoreID(store.rawValue + 1) }
    }

    // MARK: The log

    /// Connects the log's writer thread to the loop.
    func attach(_ loop: EventLoop) {
        let mailbox = loop.makeMailbox(capacity: 1 << 16) {
            [unowned self] (results: [Result<UInt64, DatabaseError>]) in
            for result in results { didPersist(result) }
        }
        log.onDurable = { result in _ = mailbox.post(result) }
        let (waited, synced) = (metrics.logWait, metrics.syncDuration)
        log.onWritten = { wait, sync in
            waited.observe(wait)
            synced.observe(sync)
        }
        checkpoints = Completions(loop) { [unowned self] error in fail(error) }
    }

    func stage(_ replica: GroupReplica, _ persist: Persist) {
        guard failure == nil else { return }
        log.stage(group: replica.group, replica: replica.id, persist: persist)
        for entry in persist.entries { bytesSinceCheckpoint += entry.payload.count }
        staged.append((replica, persist.ticket))
    }

    /// Creates the group's log; `completion` runs when that is durable.
    func stageCreation(
        _ group: GroupID, _ replica: ReplicaID, completion: @escaping () -> Void
    ) {
        log.stageCreation(group: group, replica: replica)
        stagedCreations.append(completion)
    }

    /// Hands the turn's records to the writer thread.
    func submit() {
        guard failure == nil, log.hasStaged else { return }
        do throws(DatabaseError) {
            guard let number = try log.submit() else { return }
            inFlight.append(
                Submission(number: number, tickets: staged, creations: stagedCreations))
            staged.removeAll(keepingCapacity: true)
            stagedCreations.removeAll()
        } catch {
            fail(error)
        }
    }

    private func didPersist(_ result: Result<UInt64, DatabaseError>) {
        switch result {
        case .failure(let error): fail(error)
        case .success(let number):
            var done = 0
            while done < inFlight.count, inFlight[done].number <= number { done += 1 }
            let finished = inFlight[..<done]
            inFlight.removeFirst(done)
            for submission in finished {
                for (replica, ticket) in submission.tickets { replica.didPersist(ticket) }
                for completion in submission.creations { completion() }
            }
            submit()
        }
    }

    // MARK: Checkpoints

    /// Makes one engine durable off the loop, then calls back on it unless that failed.
    func checkpoint(_ engine: any StorageEngine, completion: @escaping () -> Void) {
        checkpoint([engine], completion: completion)
    }

    /// Makes every engine durable up to what `replicas` have applied now, and lets go of their log up
    /// to there.
    func checkpoint(_ replicas: [GroupReplica]) {
        guard !isCheckpointing, failure == nil else { return }
        isCheckpointing = true
        bytesSinceCheckpoint = 0
        let positions = replicas.map { ($0, $0.state.applied) }
        checkpoint(allEngines) { [unowned self] in
            isCheckpointing = false
            for (replica, position) in positions
            where !replica.isInstallingSnapshot && !replica.isFailed {
                guard position.index <= replica.core.lastPosition.index else { continue }
                log.release(group: replica.group, upTo: position)
                replica.step(.compact(upTo: position.index))
            }
        }
    }

    /// Gives the space of a deleted range back, off the loop.
    func reclaim(_ range: KeyRange, of engine: any StorageEngine) {
        guard failure == nil, let checkpoints, let end = range.end else { return }
        let number = checkpoints.add {}
        let mailbox = checkpoints.mailbox
        worker.submit {
            do throws(DatabaseError) {
                try range.start.withRawBytes { (from) throws(DatabaseError) in
                    try end.withRawBytes { (to) throws(DatabaseError) in
                        try engine.reclaim(from: from, to: to)
                    }
                }
                _ = mailbox.post((number, nil))
            } catch {
                _ = mailbox.post((number, error))
            }
        }
    }

    private func checkpoint(
        _ engines: [any StorageEngine], completion: @escaping () -> Void
    ) {
        guard failure == nil, let checkpoints else { return }
        let number = checkpoints.add(completion)
        let mailbox = checkpoints.mailbox
        let duration = metrics.checkpointDuration
        worker.submit {
            do throws(DatabaseError) {
                let began = Self.monotonicNow()
                for engine in engines { try engine.checkpoint() }
                duration.observe(Self.monotonicNow() - began)
                _ = mailbox.post((number, nil))
            } catch {
                _ = mailbox.post((number, error))
            }
        }
    }

    private static func monotonicNow() -> Instant {
        var time = timespec()
        clock_gettime(CLOCK_MONOTONIC, &time)
        return Instant(nanoseconds: UInt64(time.tv_sec) * 1_000_000_000 + UInt64(time.tv_nsec))
    }

    // MARK: Health

    func fail(_ error: DatabaseError) {
        guard failure == nil else { return }
        failure = error
        didFail(self)
    }

    /// Sizes of file system, log and engines, for heartbeats.
    func measure() {
        var status = statvfs()
        if statvfs(path, &status) == 0 {
            size.totalBytes = UInt64(status.f_blocks) * UInt64(status.f_frsize)
            size.freeBytes = UInt64(status.f_bavail) * UInt64(status.f_frsize)
        }
        var file = stat()
        if stat(path, &file) == 0 { size.fileSystem = UInt64(file.st_dev) }
        size.dataBytes = log.totalBytes
        engineFigures = EngineStatistics()
        for engine in allEngines {
            let statistics = engine.statistics
            size.dataBytes += statistics.diskBytes
            engineFigures.add(statistics)
        }
    }

    /// Ends threads and closes files; what was submitted is written first.
    func close() {
        scrub.close()
        surveyor.finish()
        probes.close()
        worker.finish()
        log.close()
        if failure == nil {
            // Only to shorten the next start: the log has everything.
            for engine in allEngines { try? engine.checkpoint() }
        }
        for engine in allEngines { engine.close() }
    }
}
