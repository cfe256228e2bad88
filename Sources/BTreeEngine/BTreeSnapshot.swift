// A consistent view of a B+ tree engine.

import CLMDB
import KVBase
import StorageAPI
import Synchronization

/// Shares the overlays of its moment and pins that state of the tree.
final class BTreeSnapshot: EngineSnapshot, @unchecked Sendable {
    private let view: LayeredView
    private let isReleased = Atomic<Bool>(false)

    init(_ view: LayeredView) { self.view = view }

    deinit { release() }

    func release() {
        guard !isReleased.exchange(true, ordering: .acquiringAndReleasing) else { return }
        mdb_txn_abort(view.transaction)
    }

    func get<R>(
        _ key: UnsafeRawBufferPointer, _ body: (UnsafeRawBufferPointer?) -> R
    ) throws(DatabaseError) -> R {
        try view.get(key, body)
    }

    func scan(
        from: UnsafeRawBufferPointer, to: UnsafeRawBufferPointer?,
        _ body: (_ key: UnsafeRawBufferPointer, _ value: UnsafeRawBufferPointer) -> Bool
    ) throws(DatabaseError) {
        try view.scan(from: from, to: to, body)
    }
}
