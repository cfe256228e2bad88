// Operations on their way into a group's log.

import KVBase
import NodeCore

/// The operations that came in this turn, as the payloads of log entries. A turn makes several entries
/// when it brings more than one should hold.
struct ProposalQueue {
    /// Most operation bytes in one log entry, but for a single larger operation.
    static let entryBytes = 256 << 10
    static let bytesMax = 64 << 20

    /// Operations of one log entry and who waits for them, in the same order.
    struct Batch {
        fileprivate var writer = ByteWriter()
        fileprivate(set) var count: UInt32 = 0
        fileprivate(set) var waiters: [Waiter] = []
        /// Hashes of the keys written, for `PendingKeys`.
        fileprivate(set) var hashes: [UInt64] = []
    }

    /// Takes no more operations.
    private(set) var batches: [Batch] = []
    private var open = Batch()
    private(set) var bytes = 0

    var isEmpty: Bool { batches.isEmpty && open.count == 0 }

    /// Log entries that these would be.
    var batchCount: Int { batches.count + (open.count > 0 ? 1 : 0) }

    var waiterCount: Int { batches.reduce(open.waiters.count) { $0 + $1.waiters.count } }

    /// In the order of their operations.
    var waiters: [Waiter] { batches.flatMap(\.waiters) + open.waiters }

    func hasRoom(for count: Int) -> Bool { bytes + count <= Self.bytesMax }

    /// Returns the number of the operation's batch in this turn.
    mutating func append(
        _ operation: UnsafeRawBufferPointer, keyHash: UInt64?, _ waiter: Waiter
    ) -> Int {
        if open.count > 0, open.writer.count + operation.count > Self.entryBytes { seal() }
        if open.count == 0 {
            // The sequencer of the first and the count: known when the batch is proposed.
            open.writer.write(Sequencer.zero)
            open.writer.write(UInt32(0))
        }
        open.writer.writeRaw(operation)
        open.count += 1
        open.waiters.append(waiter)
        if let keyHash { open.hashes.append(keyHash) }
        bytes += operation.count
        return batches.count
    }

    /// The batch that operations are added to gets no more of them.
    mutating func seal() {
        guard open.count > 0 else { return }
        batches.append(open)
        open = Batch()
    }

    /// The payload of the entry, whose first operation has the sequencer `base`. Once per batch.
    mutating func takePayload(of place: Int, base: Sequencer) -> Bytes {
        var writer = batches[place].writer
        batches[place].writer = ByteWriter()
        writer.patch(UInt32(truncatingIfNeeded: base.time), at: 0)
        writer.patch(UInt32(truncatingIfNeeded: base.time >> 32), at: 4)
        writer.patch(base.counter, at: 8)
        writer.patch(base.node.rawValue, at: 12)
        writer.patch(batches[place].count, at: 16)
        return writer.take()
    }

    mutating func removeAll() {
        batches.removeAll(keepingCapacity: true)
        open = Batch()
        bytes = 0
    }
}
