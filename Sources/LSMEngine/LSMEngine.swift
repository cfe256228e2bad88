// The write-heavy engine: a log-structured merge tree, by RocksDB's C interface.
//
// RocksDB's own write-ahead log is off. A write batch lies wholly in one memtable, memtables become
// table files in the order they were filled, and the manifest names a file only after it is synced:
// so what comes back after a crash is a prefix of the batches.

import CRocksDB
import KVBase
import StorageAPI
import Synchronization

/// One RocksDB database. RocksDB is thread-safe; the batch that `apply` fills belongs to the owner.
public final class LSMEngine: StorageEngine, @unchecked Sendable {
    let path: String
    let database: OpaquePointer
    private let cache: LSMCache
    private let readOptions: OpaquePointer
    private let writeOptions: OpaquePointer
    private let flushOptions: OpaquePointer
    private let batch: OpaquePointer
    private let stalls = Mutex(StallAccount())
    private let isClosed = Atomic<Bool>(false)

    /// Opens or creates the database in the directory `path`.
    public init(path: String, options: LSMOptions = LSMOptions()) throws(DatabaseError) {
        try EngineDirectory.prepare(
            path, marker: "CURRENT", expectExisting: options.expectExisting)
        self.path = path
        cache = options.cache ?? LSMCache(bytes: options.cacheBytes)
        database = try Self.open(path, options, cache)
        readOptions = Self.makeReadOptions()
        writeOptions = rocksdb_writeoptions_create()
        rocksdb_writeoptions_disable_WAL(writeOptions, 1)
        flushOptions = rocksdb_flushoptions_create()
        rocksdb_flushoptions_set_wait(flushOptions, 1)
        batch = rocksdb_writebatch_create()
    }

    deinit { close() }

    public func close() {
        guard !isClosed.exchange(true, ordering: .acquiringAndReleasing) else { return }
        rocksdb_close(database)
        rocksdb_writebatch_destroy(batch)
        rocksdb_flushoptions_destroy(flushOptions)
        rocksdb_writeoptions_destroy(writeOptions)
        rocksdb_readoptions_destroy(readOptions)
    }

    // MARK: Writing

    public func apply(_ changes: EngineBatch) throws(DatabaseError) {
        rocksdb_writebatch_clear(batch)
        changes.forEachOperation { operation in
            switch operation {
            case .put(let key, let value):
                rocksdb_writebatch_put(
                    batch, key.characters, key.count, value.characters, value.count)
            case .delete(let key):
                rocksdb_writebatch_delete(batch, key.characters, key.count)
            case .deleteRange(let from, let to):
                rocksdb_writebatch_delete_range(
                    batch, from.characters, from.count, to.characters, to.count)
            }
        }
        LSMReadCounts.pauseOnThisThread()
        defer { LSMReadCounts.countOnThisThread() }
        try Self.checked("write to", path) { rocksdb_write(database, writeOptions, batch, &$0) }
    }

    public func checkpoint() throws(DatabaseError) {
        try Self.checked("flush", path) { rocksdb_flush(database, flushOptions, &$0) }
    }

    // MARK: Reading

    public func get<R>(
        _ key: UnsafeRawBufferPointer, _ body: (UnsafeRawBufferPointer?) -> R
    ) throws(DatabaseError) -> R {
        try get(key, readOptions, body)
    }

    public func scan(
        from: UnsafeRawBufferPointer, to: UnsafeRawBufferPointer?,
        _ body: (_ key: UnsafeRawBufferPointer, _ value: UnsafeRawBufferPointer) -> Bool
    ) throws(DatabaseError) {
        try scan(from: from, to: to, snapshot: nil, body)
    }

    public func snapshot() throws(DatabaseError) -> any EngineSnapshot { LSMSnapshot(self) }

    func get<R>(
        _ key: UnsafeRawBufferPointer, _ options: OpaquePointer,
        _ body: (UnsafeRawBufferPointer?) -> R
    ) throws(DatabaseError) -> R {
        let slice = try Self.checked("read from", path) {
            rocksdb_get_pinned(database, options, key.characters, key.count, &$0)
        }
        guard let slice else { return body(nil) }
        defer { rocksdb_pinnableslice_destroy(slice) }
        var count = 0
        let value = rocksdb_pinnableslice_value(slice, &count)
        return body(UnsafeRawBufferPointer(start: value, count: count))
    }

    func scan(
        from: UnsafeRawBufferPointer, to: UnsafeRawBufferPointer?, snapshot: OpaquePointer?,
        _ body: (_ key: UnsafeRawBufferPointer, _ value: UnsafeRawBufferPointer) -> Bool
    ) throws(DatabaseError) {
        let options = Self.makeReadOptions()
        defer { rocksdb_readoptions_destroy(options) }
        if let snapshot { rocksdb_readoptions_set_snapshot(options, snapshot) }
        if let to {
            // RocksDB takes an upper bound of no bytes for none.
            if to.isEmpty { return }
            rocksdb_readoptions_set_iterate_upper_bound(options, to.characters, to.count)
        }
        guard let iterator = rocksdb_create_iterator(database, options) else { return }
        defer { rocksdb_iter_destroy(iterator) }
        rocksdb_iter_seek(iterator, from.characters, from.count)
        while rocksdb_iter_valid(iterator) != 0 {
            var keyCount = 0
            var valueCount = 0
            let key = rocksdb_iter_key(iterator, &keyCount)
            let value = rocksdb_iter_value(iterator, &valueCount)
            let goOn = body(
                UnsafeRawBufferPointer(start: key, count: keyCount),
                UnsafeRawBufferPointer(start: value, count: valueCount))
            guard goOn else { return }
            rocksdb_iter_next(iterator)
        }
        try Self.checked("scan", path) { rocksdb_iter_get_error(iterator, &$0) }
    }

    // MARK: Space

    /// Compacts the range, which drops what was deleted.
    public func reclaim(from: UnsafeRawBufferPointer, to: UnsafeRawBufferPointer) {
        rocksdb_compact_range(
            database, from.characters, from.count, to.characters, to.count)
    }

    // MARK: Sizes

    public func approximateBytes(
        from: UnsafeRawBufferPointer, to: UnsafeRawBufferPointer?
    ) -> UInt64 {
        let highest = Bytes(repeating: 0xFF, count: 64)
        return highest.withUnsafeBytes { highest in
            let end = to ?? highest
            var start: UnsafePointer<CChar>? = from.characters
            var limit: UnsafePointer<CChar>? = end.characters
            var startCount = from.count
            var limitCount = end.count
            var size: UInt64 = 0
            var error: UnsafeMutablePointer<CChar>?
            rocksdb_approximate_sizes(
                database, 1, &start, &startCount, &limit, &limitCount, &size, &error)
            rocksdb_free(error)
            return size
        }
    }

    public var statistics: EngineStatistics {
        var statistics = EngineStatistics()
        let buffered = property("rocksdb.cur-size-all-mem-tables")
        statistics.unflushedBytes = buffered
        statistics.liveBytes = property("rocksdb.estimate-live-data-size") + buffered
        statistics.diskBytes = property("rocksdb.total-sst-files-size")
        statistics.scrubBytes = statistics.diskBytes
        statistics.memoryBytes =
            property("rocksdb.size-all-mem-tables")
            + property("rocksdb.estimate-table-readers-mem")
            + property("rocksdb.block-cache-usage")
        statistics.compactionPendingBytes = property("rocksdb.estimate-pending-compaction-bytes")
        statistics.isSlowed = property("rocksdb.actual-delayed-write-rate") > 0
        statistics.isStopped = property("rocksdb.is-write-stopped") > 0
        statistics.compactionsRunning = property("rocksdb.num-running-compactions")
        statistics.stallTimes = stalls.withLock {
            $0.note(total: Self.stallTime(in: report)) { StallAccount.counts(in: levelReport) }
            return $0.times
        }
        return statistics
    }

    private func property(_ name: String) -> UInt64 {
        var value: UInt64 = 0
        return rocksdb_property_int(database, name, &value) == 0 ? value : 0
    }

    /// Stalls are told in reports for people only.
    var report: String { text("rocksdb.dbstats") }
    var levelReport: String { text("rocksdb.cfstats-no-file-histogram") }

    private func text(_ property: String) -> String {
        guard let text = rocksdb_property_value(database, property) else { return "" }
        defer { rocksdb_free(text) }
        return String(cString: text)
    }

    /// The total in hours, minutes and seconds in a line such as `Cumulative stall: 00:00:1.250 H:M:S, 0.4 percent`.
    static func stallTime(in report: String) -> Nanoseconds {
        let label = "Cumulative stall: "
        guard
            let line = report.split(separator: "\n").first(where: { $0.hasPrefix(label) }),
            let time = line.dropFirst(label.count).split(separator: " ").first
        else { return .zero }
        let parts = time.split(separator: ":").map { Double($0) ?? 0 }
        guard parts.count == 3 else { return .zero }
        let seconds = parts[0] * 3_600 + parts[1] * 60 + parts[2]
        return Nanoseconds(UInt64(max(0, seconds) * 1e9))
    }

    // MARK: Helpers

    static func makeReadOptions() -> OpaquePointer {
        let options: OpaquePointer = rocksdb_readoptions_create()
        rocksdb_readoptions_set_verify_checksums(options, 1)
        return options
    }

    /// Runs a call that reports by an error string, and throws that as `.storageFailed`.
    static func checked<R>(
        _ what: String, _ path: String,
        _ call: (inout UnsafeMutablePointer<CChar>?) -> R
    ) throws(DatabaseError) -> R {
        var error: UnsafeMutablePointer<CChar>?
        let result = call(&error)
        guard let error else { return result }
        let message = String(cString: error)
        rocksdb_free(error)
        throw DatabaseError(.storageFailed, "\(what) \(path): \(message)")
    }

    private static func open(
        _ path: String, _ options: LSMOptions, _ cache: LSMCache
    ) throws(DatabaseError) -> OpaquePointer {
        let settings: OpaquePointer = rocksdb_options_create()
        defer { rocksdb_options_destroy(settings) }
        rocksdb_options_set_create_if_missing(settings, options.expectExisting ? 0 : 1)
        rocksdb_options_set_paranoid_checks(settings, 1)
        rocksdb_options_set_write_buffer_size(settings, options.writeBufferBytes)
        rocksdb_options_set_max_write_buffer_number(settings, Int32(options.writeBuffers))
        rocksdb_options_set_min_write_buffer_number_to_merge(
            settings, Int32(options.writeBuffersFlushedTogether))
        // A read passes over the write buffers that cannot hold its key.
        rocksdb_options_set_memtable_whole_key_filtering(settings, 1)
        rocksdb_options_set_memtable_prefix_bloom_size_ratio(settings, 0.02)
        rocksdb_options_set_max_background_jobs(settings, Int32(options.backgroundJobs))
        // There is one writer.
        rocksdb_options_set_allow_concurrent_memtable_write(settings, 0)
        rocksdb_options_set_max_open_files(settings, Int32(options.openFilesMax))
        rocksdb_options_set_level0_slowdown_writes_trigger(
            settings, Int32(options.levelZeroSlowdownFiles))
        rocksdb_options_set_level0_stop_writes_trigger(
            settings, Int32(options.levelZeroStopFiles))
        rocksdb_options_set_level_compaction_dynamic_level_bytes(settings, 1)
        // Written pages go to the disk steadily, not all at the sync that the log then waits behind.
        rocksdb_options_set_bytes_per_sync(settings, 1 << 20)
        rocksdb_options_set_allow_mmap_reads(settings, 0)
        rocksdb_options_set_allow_mmap_writes(settings, 0)
        rocksdb_options_set_info_log_level(settings, 2)
        rocksdb_options_set_keep_log_file_num(settings, 4)
        rocksdb_options_set_max_log_file_size(settings, 8 << 20)

        // The settings take the table options over; those take the filter policy over.
        let table: OpaquePointer = rocksdb_block_based_options_create()
        defer { rocksdb_block_based_options_destroy(table) }
        rocksdb_block_based_options_set_block_cache(table, cache.handle)
        rocksdb_block_based_options_set_block_size(table, 16 << 10)
        rocksdb_block_based_options_set_format_version(table, 5)
        rocksdb_block_based_options_set_cache_index_and_filter_blocks(table, 1)
        rocksdb_block_based_options_set_pin_l0_filter_and_index_blocks_in_cache(table, 1)
        rocksdb_block_based_options_set_filter_policy(
            table, rocksdb_filterpolicy_create_bloom_full(options.bloomBitsPerKey))
        rocksdb_options_set_block_based_table_factory(settings, table)

        // A RocksDB built without LZ4 refuses to open with it.
        rocksdb_options_set_compression(settings, Int32(rocksdb_lz4_compression))
        do throws(DatabaseError) {
            return try openDatabase(path, settings)
        } catch  where error.message.contains("not linked") {
            rocksdb_options_set_compression(settings, Int32(rocksdb_no_compression))
            return try openDatabase(path, settings)
        }
    }

    private static func openDatabase(
        _ path: String, _ settings: OpaquePointer
    ) throws(DatabaseError) -> OpaquePointer {
        let database = try checked("open", path) { rocksdb_open(settings, path, &$0) }
        guard let database else { throw DatabaseError(.storageFailed, "open \(path)") }
        return database
    }
}

extension UnsafeRawBufferPointer {
    /// As the C interface takes bytes.
    var characters: UnsafePointer<CChar>? { baseAddress?.assumingMemoryBound(to: CChar.self) }
}
