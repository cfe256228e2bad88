// Reading: single records by lease or quorum, and pages of sorted lists.

import KVBase
import Metrics
import NodeCore
import ReplicationCore
import ShardCore
import StorageAPI
import WireProtocol

extension GroupReplica {
    /// Answers a get or list, now or once the entry it must see is applied.
    func read(_ operation: Operation, waiter: Waiter) {
        if operation.flags.contains(.quorumRead) {
            guard isLeader, core.canPropose else {
                answerNotLeader(waiter)
                return
            }
            _ = admit(operation)
            let token = waitingReads.awaitMajority(
                WaitingReads.Read(
                    index: .none, waiter: waiter, operation: Bytes(operation.bytes)))
            step(.read(token: token, .quorum))
            return
        }
        guard core.canServeReads(at: node.now) else {
            answerNotLeader(waiter)
            return
        }
        let barrier = admit(operation)
        if barrier > state.applied.index {
            waitingReads.append(
                WaitingReads.Read(
                    index: barrier, waiter: waiter, operation: Bytes(operation.bytes)))
        } else {
            serve(operation, waiter: waiter)
        }
    }

    /// True when the read waits for the former owner of a shard that is being copied here, or was
    /// answered because it cannot.
    private func isHeld(_ operation: Operation, waiter: Waiter) -> Bool {
        guard operation.code == .get,
            hasImports || !copies.fetches.isEmpty,
            let owned = try? state.owned(operation.shard, operation.epoch)
        else { return false }
        node.storageKey.set(store, owned.shard.table, owned.partitioning, key: operation.key)
        guard owned.shard.range.contains(node.storageKey.routedKey) else { return false }
        do throws(DatabaseError) {
            return try holds(operation, owned, waiter: waiter)
        } catch {
            node.answer(waiter, error: error)
            if error.code == .storageFailed { disk.fail(error) }
            return true
        }
    }

    /// Counts the read, and finds the entry that it must see so that a client sees its own pipelined
    /// writes. Lists are counted when they are served, which is when their shards are known.
    private func admit(_ operation: Operation) -> LogIndex {
        guard operation.code == .get else { return pendingKeys.last }
        guard let owned = try? state.owned(operation.shard, operation.epoch) else { return .none }
        node.storageKey.set(store, owned.shard.table, owned.partitioning, key: operation.key)
        count(operation, owned)
        return pendingKeys.index(hash: stableHash(node.storageKey.bytes))
    }

    func quorumReadReady(_ token: UInt64, _ index: LogIndex) {
        guard var read = waitingReads.takeUnconfirmed(token) else { return }
        read.index = max(index, pendingKeys.last)
        if read.index > state.applied.index {
            waitingReads.append(read)
        } else {
            serve(read)
        }
    }

    func quorumReadRefused(_ token: UInt64) {
        guard let read = waitingReads.takeUnconfirmed(token) else { return }
        answerNotLeader(read.waiter)
    }

    /// Serves what the newly applied entries release. The lease was valid when each was deferred,
    /// which is within its request; its place in the order is the entry it waited for.
    func serveDeferredReads() {
        for read in waitingReads.takeReady(applied: state.applied.index) { serve(read) }
    }

    private func serve(_ read: WaitingReads.Read) {
        read.operation.withUnsafeBytes { bytes in
            var reader = ByteReader(bytes)
            guard let operation = try? Operation(from: &reader) else { return }
            serve(operation, waiter: read.waiter)
        }
    }

    private func serve(_ operation: Operation, waiter: Waiter) {
        if isHeld(operation, waiter: waiter) { return }
        do throws(DatabaseError) {
            if operation.code == .list {
                try serveList(operation, waiter: waiter)
            } else {
                try serveGet(operation, waiter: waiter)
            }
        } catch {
            node.answer(waiter, error: error)
            if error.code == .storageFailed { disk.fail(error) }
        }
    }

    private func serveGet(_ operation: Operation, waiter: Waiter) throws(DatabaseError) {
        let owned = try state.owned(operation.shard, operation.epoch)
        let key = node.storageKey
        key.set(store, owned.shard.table, owned.partitioning, key: operation.key)
        guard owned.shard.range.contains(key.routedKey) else {
            throw DatabaseError(.staleEpoch, "the key is not in shard \(operation.shard)")
        }
        node.metrics.gets.increment()
        let withValue = !operation.flags.contains(.withoutValue)
        try engine.get(key.bytes) { bytes in
            guard let bytes, let record = StoredRecord(bytes), !record.isTombstone else {
                node.answer(waiter, flags: [], sequencer: .zero)
                return
            }
            node.answer(
                waiter, flags: .found, sequencer: record.sequencer,
                payload: withValue ? record.value : nil)
        }
    }

    /// `overlays`: what the former owners of shards that are being copied hold, once it is known.
    func serveList(
        _ operation: Operation, overlays: [Bytes: ShardRecords]? = nil, waiter: Waiter
    ) throws(DatabaseError) {
        var reader = ByteReader(operation.value)
        let request = try ListRequest(from: &reader)
        var parts: [OwnedShard] = []
        for part in request.parts { parts.append(try state.owned(part.shard, part.epoch)) }
        guard !parts.isEmpty, request.limit > 0, request.limit <= Limits.listPageMax,
            request.parts.count <= Limits.initialShardsMax
        else { throw DatabaseError(.invalidRequest, "list of no shard or with a bad limit") }
        if overlays == nil { countList(parts, from: request.from) }
        if hasImports, overlays == nil, try holds(operation, request, parts, waiter: waiter) {
            return
        }
        node.metrics.lists.increment()
        let page = try ListMerge(
            engine: engine, store: store, parts: parts, request: request, overlays: overlays ?? [:]
        ).run()
        var writer = ByteWriter()
        page.encode(into: &writer)
        writer.bytes.withUnsafeBytes {
            node.answer(waiter, flags: .found, sequencer: .zero, payload: $0)
        }
    }
}
