// The engine of tests: sorted in memory, with a checkpoint to go back to.

import KVBase
import Synchronization

/// Keeps its records in memory. `checkpoint` remembers them; `crash` goes back to what was
/// remembered, as a disk engine would after a power loss at the worst moment.
public final class MemoryEngine: StorageEngine {
    private struct State: Sendable {
        var live = SortedMap()
        var durable = SortedMap()
        var unflushedBytes = 0
    }

    private let state = Mutex(State())

    public init() {}

    public func scrub(_ pace: any ScrubPace) -> Bool { true }

    public func apply(_ batch: EngineBatch) throws(DatabaseError) {
        state.withLock { state in
            state.unflushedBytes += batch.byteCount
            batch.forEachOperation { operation in
                switch operation {
                case .put(let key, let value): state.live.put(key, value)
                case .delete(let key): state.live.remove(key)
                case .deleteRange(let from, let to): state.live.removeRange(from: from, to: to)
                }
            }
        }
    }

    public func get<R>(
        _ key: UnsafeRawBufferPointer, _ body: (UnsafeRawBufferPointer?) -> R
    ) throws(DatabaseError) -> R {
        view().get(key, body)
    }

    public func scan(
        from: UnsafeRawBufferPointer, to: UnsafeRawBufferPointer?,
        _ body: (_ key: UnsafeRawBufferPointer, _ value: UnsafeRawBufferPointer) -> Bool
    ) throws(DatabaseError) {
        view().scan(from: from, to: to, body)
    }

    public func checkpoint() throws(DatabaseError) {
        state.withLock { state in
            state.durable = state.live
            state.unflushedBytes = 0
        }
    }

    /// Loses everything applied since the last checkpoint.
    public func crash() {
        state.withLock { state in
            state.live = state.durable
            state.unflushedBytes = 0
        }
    }

    public func snapshot() throws(DatabaseError) -> any EngineSnapshot {
        MemorySnapshot(view())
    }

    public func reclaim(from: UnsafeRawBufferPointer, to: UnsafeRawBufferPointer) {}

    public func approximateBytes(
        from: UnsafeRawBufferPointer, to: UnsafeRawBufferPointer?
    ) -> UInt64 {
        var bytes = 0
        view().scan(from: from, to: to) { key, value in
            bytes += key.count + value.count
            return true
        }
        return UInt64(bytes)
    }

    public var statistics: EngineStatistics {
        state.withLock { state in
            var statistics = EngineStatistics()
            statistics.liveBytes = UInt64(state.live.byteCount)
            statistics.memoryBytes = UInt64(state.live.memoryBytes)
            statistics.unflushedBytes = UInt64(state.unflushedBytes)
            return statistics
        }
    }

    public func close() {}

    private func view() -> SortedMap { state.withLock { $0.live } }
}

private final class MemorySnapshot: EngineSnapshot {
    private let map: SortedMap

    init(_ map: SortedMap) { self.map = map }

    func get<R>(
        _ key: UnsafeRawBufferPointer, _ body: (UnsafeRawBufferPointer?) -> R
    ) throws(DatabaseError) -> R {
        map.get(key, body)
    }

    func scan(
        from: UnsafeRawBufferPointer, to: UnsafeRawBufferPointer?,
        _ body: (_ key: UnsafeRawBufferPointer, _ value: UnsafeRawBufferPointer) -> Bool
    ) throws(DatabaseError) {
        map.scan(from: from, to: to, body)
    }

    func release() {}
}
