// Forgetting the tombstones of shards whose copy is finished: they mean nothing any more.
//
// Each replica does so in its own time; comparisons of replicas leave such tombstones out.

import EventLoop
import KVBase
import NodeCore
import ShardCore
import StorageAPI
import Synchronization
import Threads

/// One piece of a sweep: found off the loop, deleted on it.
private final class SweepSlice: Sendable {
    static let scannedBytes = 4 << 20
    static let foundMax = 1_000

    struct Result: Sendable {
        /// Storage keys of tombstones.
        var found: [Bytes] = []
        /// Where the next piece begins; nil at the end of the range.
        var next: Bytes?
        var failure: DatabaseError?
    }

    private let range: KeyRange
    private let view: any EngineSnapshot
    private let result = Mutex(Result())

    init(_ range: KeyRange, _ view: any EngineSnapshot) {
        self.range = range
        self.view = view
    }

    func find() {
        var found = Result()
        var bytes = 0
        do throws(DatabaseError) {
            try view.scan(range) { key, value in
                guard bytes < Self.scannedBytes, found.found.count < Self.foundMax else {
                    found.next = Bytes(key)
                    return false
                }
                bytes += key.count + value.count
                if StoredRecord(value)?.isTombstone == true { found.found.append(Bytes(key)) }
                return true
            }
        } catch {
            found.failure = error
        }
        view.release()
        result.withLock { $0 = found }
    }

    func take() -> Result { result.withLock { $0 } }
}

extension NodeServer {
    /// Sweeping takes at most one part in so many of the surveyor's time.
    private static let sweepShare: UInt64 = 4
    private static let sweepRestMin = Nanoseconds.milliseconds(10)
    /// When requests take too long.
    private static let sweepRestMax = Nanoseconds.seconds(1)

    /// Called every tick: finds the tombstones in the next piece of the oldest sweep.
    func sweep() {
        guard now >= sweepNotBefore,
            let replica = replicas.elements.first(where: { !$0.sweeps.isEmpty && !$0.isFailed }),
            !replica.isInstallingSnapshot
        else { return }
        let started = now
        let store = replica.store
        let disk = replica.disk
        do throws(DatabaseError) {
            let slice = SweepSlice(replica.sweeps[0], try replica.engine.snapshot())
            sweepNotBefore = .distantFuture
            let number = surveys.add { [unowned self] in
                let rest = max(Self.sweepRestMin, (now - started) * (Self.sweepShare - 1))
                sweepNotBefore = now + (foreground.strain > 100 ? Self.sweepRestMax : rest)
                guard replicas[replica.group] === replica, !replica.isFailed,
                    !replica.isInstallingSnapshot, replica.store == store
                else { return }
                let result = slice.take()
                do throws(DatabaseError) {
                    if let failure = result.failure { throw failure }
                    try replica.forget(result.found, next: result.next, applyScratch)
                } catch {
                    disk.fail(error)
                }
            }
            let mailbox = surveys.mailbox
            disk.surveyor.submit {
                slice.find()
                _ = mailbox.post((number, nil))
            }
        } catch {
            disk.fail(error)
        }
    }
}

extension GroupReplica {
    /// Deletes what is still a tombstone of an owned shard, and goes on to `next`.
    fileprivate func forget(
        _ keys: [Bytes], next: Bytes?, _ scratch: ApplyScratch
    ) throws(DatabaseError) {
        let piece = KeyRange(start: sweeps[0].start, end: next ?? sweeps[0].end)
        if let next { sweeps[0].start = next } else { sweeps.removeFirst() }
        guard !keys.isEmpty || next == nil else { return }
        let owned = state.shards.elements.filter { $0.phase == .owned }
            .map { StorageLayout.range(store, $0.shard.table, $0.shard.range) }
            .filter { $0.overlaps(piece) }
        scratch.reset()
        for key in keys {
            try key.withRawBytes { (key) throws(DatabaseError) in
                guard owned.contains(where: { $0.contains(key) }),
                    try storedVersion(key)?.isTombstone == true
                else { return }
                scratch.batch.delete(key: key)
            }
        }
        putSweeps(scratch)
        try engine.apply(scratch.batch)
    }
}
