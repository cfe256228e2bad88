// What can be set of the LSM engine.

import CRocksDB

/// The memory of decompressed blocks, indexes and filters. Engines that share one are bounded
/// together.
public final class LSMCache: @unchecked Sendable {
    let handle: OpaquePointer

    public init(bytes: Int) { handle = rocksdb_cache_create_lru(bytes) }
    deinit { rocksdb_cache_destroy(handle) }
}

/// The defaults keep an engine's own memory near 100 MiB, plus the cache.
public struct LSMOptions: Sendable {
    /// Refuse to start without the files of an earlier run.
    public var expectExisting = false
    /// Writes wait when all write buffers are full. What a write costs is mostly the search for its
    /// place in the buffer that is being filled, in memory that no cache holds: hence small ones.
    public var writeBufferBytes = 8 << 20
    public var writeBuffers = 12
    /// So many full write buffers become one table file.
    public var writeBuffersFlushedTogether = 4
    /// Shared with other engines; nil makes one of `cacheBytes`.
    public var cache: LSMCache?
    public var cacheBytes = 64 << 20
    /// Table files kept open at once.
    public var openFilesMax = 512
    /// Flushes and compactions at once. The threads are shared by all engines of the process.
    public var backgroundJobs = 2
    public var bloomBitsPerKey = 10.0
    /// Files of level 0 at which writes are slowed down, and at which they stop.
    public var levelZeroSlowdownFiles = 40
    public var levelZeroStopFiles = 60

    public init() {}
}
