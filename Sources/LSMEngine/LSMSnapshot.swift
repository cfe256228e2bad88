// A consistent view of an LSM engine.

import CRocksDB
import KVBase
import StorageAPI
import Synchronization

/// Keeps the versions of records that were current when it was made.
final class LSMSnapshot: EngineSnapshot, @unchecked Sendable {
    private let engine: LSMEngine
    private let handle: OpaquePointer
    private let readOptions: OpaquePointer
    private let isReleased = Atomic<Bool>(false)

    init(_ engine: LSMEngine) {
        self.engine = engine
        handle = rocksdb_create_snapshot(engine.database)
        readOptions = LSMEngine.makeReadOptions()
        rocksdb_readoptions_set_snapshot(readOptions, handle)
    }

    deinit { release() }

    func release() {
        guard !isReleased.exchange(true, ordering: .acquiringAndReleasing) else { return }
        rocksdb_readoptions_destroy(readOptions)
        rocksdb_release_snapshot(engine.database, handle)
    }

    func get<R>(
        _ key: UnsafeRawBufferPointer, _ body: (UnsafeRawBufferPointer?) -> R
    ) throws(DatabaseError) -> R {
        try engine.get(key, readOptions, body)
    }

    func scan(
        from: UnsafeRawBufferPointer, to: UnsafeRawBufferPointer?,
        _ body: (_ key: UnsafeRawBufferPointer, _ value: UnsafeRawBufferPointer) -> Bool
    ) throws(DatabaseError) {
        try engine.scan(from: from, to: to, snapshot: handle, body)
    }
}
