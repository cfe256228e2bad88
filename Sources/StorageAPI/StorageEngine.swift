// What a replica needs of the store that holds its records.

import KVBase

/// Reading, alike for an engine and for a snapshot of one.
public protocol EngineReader: AnyObject, Sendable {
    /// Calls `body` once with the value of `key`, nil when there is none. The bytes are valid only
    /// inside `body`, which must not change the engine.
    func get<R>(
        _ key: UnsafeRawBufferPointer, _ body: (UnsafeRawBufferPointer?) -> R
    ) throws(DatabaseError) -> R

    /// Records with `from <= key < to` in order, while `body` returns true; `to == nil`: to the last
    /// key. The bytes are valid only inside `body`, which must not change the engine.
    func scan(
        from: UnsafeRawBufferPointer, to: UnsafeRawBufferPointer?,
        _ body: (_ key: UnsafeRawBufferPointer, _ value: UnsafeRawBufferPointer) -> Bool
    ) throws(DatabaseError)
}

/// A sorted store of raw keys, which are never empty, without a write-ahead log of its own: the replicated log is the only
/// one.
///
/// After a kill or a power loss an engine comes back with a prefix of the applied batches, whole
/// batches only, that contains at least everything applied before the last completed `checkpoint`.
/// A record written in each batch (the applied index) is therefore atomic with the batch's data.
///
/// One thread, the owner, calls `apply`, `get` and `scan`; one other may call `checkpoint` meanwhile.
/// `statistics` and `approximateBytes` may be called by any thread. An engine that threw
/// `.storageFailed` from `apply` or `checkpoint` is not to be written to again.
public protocol StorageEngine: EngineReader {
    /// Atomically visible when it returns; durable only after a later `checkpoint`.
    func apply(_ batch: EngineBatch) throws(DatabaseError)

    /// Makes everything that was applied before the call durable. Blocks for as long as the disk
    /// takes.
    func checkpoint() throws(DatabaseError)

    /// A consistent view of now, readable by any thread until released.
    func snapshot() throws(DatabaseError) -> any EngineSnapshot

    /// Gives back the disk space of deleted keys `from <= key < to` as far as the engine can. Blocks
    /// for as long as the disk takes; on the thread that calls `checkpoint`.
    func reclaim(from: UnsafeRawBufferPointer, to: UnsafeRawBufferPointer) throws(DatabaseError)

    /// About how many bytes of disk and memory the keys `from <= key < to` take.
    func approximateBytes(from: UnsafeRawBufferPointer, to: UnsafeRawBufferPointer?) -> UInt64

    /// Reads what is on disk and checks it against its checksums, as far as the engine has any. False
    /// when `pace` ended it. Throws an error with `isCorruption` that names the file where something
    /// is wrong, and others when files cannot be read. On any one thread, beside everything else but
    /// `close`.
    func scrub(_ pace: any ScrubPace) throws(DatabaseError) -> Bool

    var statistics: EngineStatistics { get }

    /// Releases files and memory. Promises nothing about what no checkpoint made durable. No call
    /// may follow or be under way, and every snapshot must be released before.
    func close()
}

/// A consistent view of an engine, read by one thread at a time. It holds disk space and memory until it is released.
public protocol EngineSnapshot: EngineReader {
    /// Ends the view; no call may follow. Repeated calls and the deinitialiser do nothing more.
    func release()
}

/// Why an engine holds writes back.
public enum WriteStallReason: UInt8, CaseIterable, Sendable {
    /// Too many files at the level that buffers are flushed to.
    case level0
    /// Buffers are full, and not flushed fast enough.
    case memtables
    /// Too many bytes wait for compaction.
    case pendingCompaction
    /// The engine does not tell.
    case other

    public var name: String { self == .pendingCompaction ? "pending_compaction" : "\(self)" }
}

/// For how long, by reason.
public struct WriteStallTimes: Hashable, Sendable {
    private var times = [Nanoseconds](repeating: .zero, count: WriteStallReason.allCases.count)

    public init() {}

    public subscript(reason: WriteStallReason) -> Nanoseconds {
        get { times[Int(reason.rawValue)] }
        set { times[Int(reason.rawValue)] = newValue }
    }
}

/// Sizes and health of an engine, as far as it knows them.
public struct EngineStatistics: Hashable, Sendable {
    /// Estimated bytes of live records on disk and in memory.
    public var liveBytes: UInt64 = 0
    /// Bytes of its files.
    public var diskBytes: UInt64 = 0
    /// What a scrub reads.
    public var scrubBytes: UInt64 = 0
    /// Memory held for buffers, caches and indexes.
    public var memoryBytes: UInt64 = 0
    /// Bytes applied and not yet on disk: what a checkpoint would write.
    public var unflushedBytes: UInt64 = 0
    /// Bytes that wait for compaction; 0 where there is none.
    public var compactionPendingBytes: UInt64 = 0
    /// Writes are being slowed down because the disk does not keep up.
    public var isSlowed = false
    /// Writes stand still because the disk does not keep up.
    public var isStopped = false
    /// How long writes were held back for that, ever since the engine was opened.
    public var stallTimes = WriteStallTimes()
    /// Compactions under way.
    public var compactionsRunning: UInt64 = 0

    public init() {}

    /// The rest of its files is what was deleted or written anew since, or free.
    public var liveBytesOnDisk: UInt64 {
        min(diskBytes, liveBytes - min(liveBytes, unflushedBytes))
    }

    /// Both engines together.
    public mutating func add(_ other: EngineStatistics) {
        liveBytes += other.liveBytes
        diskBytes += other.diskBytes
        scrubBytes += other.scrubBytes
        memoryBytes += other.memoryBytes
        unflushedBytes += other.unflushedBytes
        compactionPendingBytes += other.compactionPendingBytes
        isSlowed = isSlowed || other.isSlowed
        isStopped = isStopped || other.isStopped
        for reason in WriteStallReason.allCases {
            stallTimes[reason] = stallTimes[reason] + other.stallTimes[reason]
        }
        compactionsRunning += other.compactionsRunning
    }
}

extension DatabaseError {
    /// An engine found bytes that do not match their checksum, or files that contradict each other.
    public var isCorruption: Bool {
        code == .storageFailed && message.contains("Corruption")
    }
}

extension EngineReader {
    /// The value of `key`, copied.
    public func value(of key: Bytes) throws(DatabaseError) -> Bytes? {
        try key.withRawBytes { (key) throws(DatabaseError) in
            try get(key) { $0.map { Bytes($0) } }
        }
    }
}
