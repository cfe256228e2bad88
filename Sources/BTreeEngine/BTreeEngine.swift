// The read-heavy engine: a B+ tree on disk, by LMDB, under an overlay of recent changes in memory.
//
// LMDB without a sync per commit may lose its tree in a power loss, and with one it would sync beside
// the log for every batch. So batches go to the overlay, and a checkpoint writes the whole overlay in
// one synced transaction: the tree on disk is always the state of a checkpoint.

import CLMDB
import KVBase
import StorageAPI
import Synchronization

/// Threads: `apply`, `get`, `scan` and `snapshot` belong to the owner, which alone uses
/// `readTransaction` and `readDepth`; `checkpoint` may run on another thread beside them.
public final class BTreeEngine: StorageEngine, @unchecked Sendable {
    private struct Layers: Sendable {
        var active = Overlay()
        /// Being written by a checkpoint.
        var flushing: Overlay?
        /// The first failure of a checkpoint; final.
        var failure: DatabaseError?
    }

    let tree: Tree
    var path: String { tree.path }
    private let options: BTreeOptions
    private let layers = Mutex(Layers())
    /// Held for a whole checkpoint: there is one at a time.
    private let checkpointing = Mutex(())
    private let readTransaction: OpaquePointer
    private var readDepth = 0
    private let isClosed = Atomic<Bool>(false)

    /// Opens or creates the tree in the directory `path`.
    public init(path: String, options: BTreeOptions = BTreeOptions()) throws(DatabaseError) {
        try EngineDirectory.prepare(
            path, marker: "data.mdb", expectExisting: options.expectExisting)
        tree = try Tree(path: path, options: options)
        self.options = options
        do throws(DatabaseError) {
            try EngineDirectory.synchronize(path)
            readTransaction = try tree.beginRead()
        } catch {
            tree.close()
            throw error
        }
        mdb_txn_reset(readTransaction)
    }

    deinit { close() }

    public func close() {
        guard !isClosed.exchange(true, ordering: .acquiringAndReleasing) else { return }
        mdb_txn_abort(readTransaction)
        tree.close()
    }

    // MARK: Writing

    public func apply(_ batch: EngineBatch) throws(DatabaseError) {
        let outcome: Result<Int, DatabaseError> = layers.withLock { layers in
            if let failure = layers.failure { return .failure(failure) }
            layers.active.apply(batch)
            return .success(layers.active.memoryBytes)
        }
        if try outcome.get() > options.overlayBytesMax { try checkpoint() }
    }

    public func checkpoint() throws(DatabaseError) {
        try checkpointing.withLock { (_) throws(DatabaseError) in
            let taken: Result<Overlay?, DatabaseError> = layers.withLock { layers in
                if let failure = layers.failure { return .failure(failure) }
                guard !layers.active.isEmpty else { return .success(nil) }
                layers.flushing = layers.active
                layers.active = Overlay()
                return .success(layers.flushing)
            }
            guard let overlay = try taken.get() else { return }
            do throws(DatabaseError) {
                try tree.write(overlay)
            } catch {
                // The overlay stays readable; a sync that failed once is never trusted again.
                layers.withLock { $0.failure = error }
                throw error
            }
            layers.withLock { $0.flushing = nil }
        }
    }

    // MARK: Reading

    public func get<R>(
        _ key: UnsafeRawBufferPointer, _ body: (UnsafeRawBufferPointer?) -> R
    ) throws(DatabaseError) -> R {
        let view = view(readTransaction)
        try beginRead()
        defer { endRead() }
        return try view.get(key, body)
    }

    public func scan(
        from: UnsafeRawBufferPointer, to: UnsafeRawBufferPointer?,
        _ body: (_ key: UnsafeRawBufferPointer, _ value: UnsafeRawBufferPointer) -> Bool
    ) throws(DatabaseError) {
        let view = view(readTransaction)
        try beginRead()
        defer { endRead() }
        try view.scan(from: from, to: to, body)
    }

    public func snapshot() throws(DatabaseError) -> any EngineSnapshot {
        var view = view(readTransaction)
        view.transaction = try tree.beginRead()
        return BTreeSnapshot(view)
    }

    /// The overlays of now. Every read takes them before it begins to see a state of the tree, so
    /// that a checkpoint in between only moves changes from where they were seen to where they are
    /// seen again.
    private func view(_ transaction: OpaquePointer) -> LayeredView {
        let (active, flushing) = layers.withLock { ($0.active, $0.flushing ?? Overlay()) }
        return LayeredView(
            active: active, flushing: flushing, tree: tree, transaction: transaction)
    }

    /// Between reads the transaction holds no state of the tree, so that its pages can be reused.
    private func beginRead() throws(DatabaseError) {
        if readDepth == 0 { try tree.check(mdb_txn_renew(readTransaction), "read") }
        readDepth += 1
    }

    private func endRead() {
        readDepth -= 1
        if readDepth == 0 { mdb_txn_reset(readTransaction) }
    }

    // MARK: Sizes

    /// The pages of deleted keys are free for others once a checkpoint wrote the deletion; the file
    /// itself never shrinks.
    public func reclaim(
        from: UnsafeRawBufferPointer, to: UnsafeRawBufferPointer
    ) throws(DatabaseError) {
        try checkpoint()
    }

    /// Counts exactly up to a bound, and from there on assumes that the rest of the keys lie as
    /// densely as those that were counted.
    public func approximateBytes(
        from: UnsafeRawBufferPointer, to: UnsafeRawBufferPointer?
    ) -> UInt64 {
        var view = view(readTransaction)
        guard let transaction = try? tree.beginRead() else { return 0 }
        defer { mdb_txn_abort(transaction) }
        view.transaction = transaction
        var estimate = SizeEstimate(from: from, to: to)
        try? view.scan(from: from, to: to) { estimate.count($0, $1) }
        return estimate.bytes(treeBytes: tree.usedBytes)
    }

    public var statistics: EngineStatistics {
        let overlayBytes = layers.withLock {
            $0.active.memoryBytes + ($0.flushing?.memoryBytes ?? 0)
        }
        var statistics = EngineStatistics()
        statistics.unflushedBytes = UInt64(overlayBytes)
        statistics.memoryBytes = UInt64(overlayBytes)
        statistics.liveBytes = tree.usedBytes + UInt64(overlayBytes)
        statistics.diskBytes = tree.fileBytes
        statistics.scrubBytes = tree.fileBytes + tree.usedBytes
        return statistics
    }
}
