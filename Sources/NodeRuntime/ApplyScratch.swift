// The engine batch under construction, and what must be known of it until it is written.

import KVBase
import NodeCore
import StorageAPI

/// What applying reuses from turn to turn; one per event loop.
final class ApplyScratch {
    var batch = EngineBatch()
    var touched = TouchedKeys()
    var outcomes: [GroupReplica.Outcome] = []
    /// When the entry at hand was proposed here, if it was.
    var proposed = Instant.origin
    /// Ranges that the batch deletes before it writes to them.
    var cleared: [KeyRange] = []
    /// Something of the group's state besides the cursor of a copy changed.
    var changedState = false
    var movedCursor = false
    /// Shards to be digested as the batch leaves them.
    var verified: [OwnedShard] = []

    func reset() {
        batch.removeAll()
        cleared.removeAll()
        changedState = false
        movedCursor = false
        verified.removeAll()
        touched.removeAll()
        outcomes.removeAll(keepingCapacity: true)
    }

    /// Deletes whatever an earlier, unfinished use left in a store.
    func clear(_ store: StoreID) {
        let range = StorageLayout.range(store)
        guard let end = range.end else { return }
        range.start.withUnsafeBytes { from in
            end.withUnsafeBytes { to in batch.deleteRange(from: from, to: to) }
        }
    }

    /// Adds a record: header and value are put together in the batch, without a copy in between.
    func put(
        _ key: UnsafeRawBufferPointer, _ sequencer: Sequencer, _ value: UnsafeRawBufferPointer,
        flags: UInt8 = 0
    ) {
        var header: (UInt64, UInt32, UInt32, UInt8) = (
            sequencer.time.littleEndian, sequencer.counter.littleEndian,
            sequencer.node.rawValue.littleEndian, flags
        )
        withUnsafeBytes(of: &header) { bytes in
            let head = UnsafeRawBufferPointer(
                rebasing: bytes[..<StorageLayout.recordHeaderByteCount])
            batch.put(key: key, header: head, value: value)
        }
    }
}
