// What reads found in the cache of blocks, by RocksDB's counters of one thread.

import CRocksDB

/// Blocks (of data, indexes and filters) that the reads of one thread asked for.
public struct LSMReadCounts: Hashable, Sendable {
    /// Found in the cache.
    public var hits: UInt64 = 0
    /// Read from a file.
    public var misses: UInt64 = 0

    public init() {}

    /// Begins to count the reads of the calling thread: additions to its own memory, no clocks.
    public static func countOnThisThread() {
        // rocksdb::PerfLevel::kEnableCount
        rocksdb_set_perf_level(2)
    }

    /// Until `countOnThisThread` nothing is counted: a write reads no blocks, and RocksDB would count
    /// each of its comparisons of keys.
    static func pauseOnThisThread() {
        // rocksdb::PerfLevel::kDisable
        rocksdb_set_perf_level(1)
    }

    /// What the calling thread counted so far.
    public static func ofThisThread() -> LSMReadCounts {
        let context: OpaquePointer = rocksdb_perfcontext_create()
        defer { rocksdb_perfcontext_destroy(context) }
        var counts = LSMReadCounts()
        counts.hits = rocksdb_perfcontext_metric(context, Int32(rocksdb_block_cache_hit_count))
        counts.misses = rocksdb_perfcontext_metric(context, Int32(rocksdb_block_read_count))
        return counts
    }
}
