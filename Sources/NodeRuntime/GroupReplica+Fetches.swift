// Operations that depend on the former owner of a shard: they wait until it told what it holds of their
// key.

import KVBase
import Metrics
import NodeCore
import ReplicationCore
import ShardCore
import WireProtocol

extension GroupReplica {
    /// True when the operation waits here until the former owner told what it holds of the key.
    /// Operations on a key that is being fetched wait behind it, so that their order stays.
    ///
    /// `node.storageKey` holds the operation's key.
    func holds(
        _ operation: Operation, _ owned: OwnedShard, waiter: Waiter
    ) throws(DatabaseError) -> Bool {
        guard owned.phase != .owned || !copies.fetches.isEmpty,
            !operation.flags.contains(.previousImported)
        else { return false }
        let key = node.storageKey
        let routedKey = Bytes(key.routedKey)
        let place = copies.fetches.firstIndex {
            $0.shard == operation.shard && $0.routedKey == routedKey
        }
        var former = GroupID.none
        if place == nil {
            guard case .importing(let source, _, .some) = owned.phase else { return false }
            former = source
            let dependsOnPrevious =
                operation.code == .get
                || !operation.flags.isDisjoint(with: [.conditional, .wantsPrevious])
            guard dependsOnPrevious,
                !owned.isNewest(try storedVersion(key.bytes), key.routedKey)
            else { return false }
        }
        guard copies.waitingOperations < ShardCopies.waitingOperationsMax else {
            node.metrics.copyQueueFull.increment()
            throw DatabaseError(
                .overloaded, "too many operations wait for shard \(operation.shard)")
        }
        copies.waitingOperations += 1
        if let place {
            copies.fetches[place].operations.append((Bytes(operation.bytes), waiter))
            return true
        }
        let now = node.now
        let fetch = ShardCopies.Fetch(
            shard: owned.shard.id, epoch: owned.shard.epoch, routedKey: routedKey,
            token: node.random.next(), asked: now, deadline: now + ShardCopies.operationWait,
            operations: [(Bytes(operation.bytes), waiter)])
        copies.fetches.append(fetch)
        ask(fetch, of: former)
        return true
    }

    private func ask(_ fetch: ShardCopies.Fetch, of source: GroupID) {
        ask(
            ShardReadRequest(
                source: source, target: group, shard: fetch.shard, epoch: fetch.epoch,
                token: fetch.token, from: fetch.routedKey, to: fetch.routedKey + [0],
                bytesMax: 1))
    }

    /// The former owner has spoken: its record is logged in front of the operations.
    func resume(_ answer: ShardRecords, _ place: Int) {
        guard isSound(answer) else { return }
        let fetch = copies.fetches.remove(at: place)
        copies.waitingOperations -= fetch.operations.count
        guard core.canPropose, let owned = try? state.owned(fetch.shard, fetch.epoch) else {
            for (_, waiter) in fetch.operations { answerNotLeader(waiter) }
            return
        }
        do throws(DatabaseError) {
            if let record = answer.records.first {
                if try read(fetch, from: record, owned) { return }
                try enqueueImport(record, owned)
            }
        } catch {
            for (_, waiter) in fetch.operations { node.answer(waiter, error: error) }
            return
        }
        for (bytes, waiter) in fetch.operations {
            var marked = bytes
            marked[Operation.flagsOffset] |= OperationFlags.previousImported.rawValue
            marked.withUnsafeBytes { bytes in
                var reader = ByteReader(bytes)
                guard let operation = try? Operation(from: &reader) else { return }
                node.carryOut(operation, on: self, waiter)
            }
        }
    }

    /// Answers when nothing but reads waits, no write of the key is under way, and the former
    /// owner's record is the newer one: nothing need be logged then. False when it is otherwise.
    private func read(
        _ fetch: ShardCopies.Fetch, from record: ShardRecords.Record, _ owned: OwnedShard
    ) throws(DatabaseError) -> Bool {
        let key = StorageLayout.key(store, owned.shard.table, fetch.routedKey)
        let index = pendingKeys.index(hash: key.withUnsafeBytes { stableHash($0) })
        // A shard whose copy is finished keeps no tombstones: only its own records count then.
        guard owned.isImporting, index <= state.applied.index, core.canServeReads(at: node.now)
        else { return false }
        let isOlder = try key.withRawBytes { (key) throws(DatabaseError) in
            try storedVersion(key).map { $0.sequencer >= record.sequencer } ?? false
        }
        guard !isOlder else { return false }
        var wantsValue: [Bool] = []
        for (bytes, _) in fetch.operations {
            let isRead = bytes.withUnsafeBytes { bytes in
                var reader = ByteReader(bytes)
                guard let operation = try? Operation(from: &reader), operation.code == .get,
                    !operation.flags.contains(.quorumRead)
                else { return false }
                wantsValue.append(!operation.flags.contains(.withoutValue))
                return true
            }
            guard isRead else { return false }
        }
        node.metrics.gets.increment(by: UInt64(fetch.operations.count))
        for (position, (_, waiter)) in fetch.operations.enumerated() {
            guard !record.isTombstone else {
                node.answer(waiter, flags: [], sequencer: .zero)
                continue
            }
            record.value.withUnsafeBytes {
                node.answer(
                    waiter, flags: .found, sequencer: record.sequencer,
                    payload: wantsValue[position] ? $0 : nil)
            }
        }
        return true
    }

    func expireFetches(_ now: Instant) {
        guard !copies.fetches.isEmpty else { return }
        var expired: [ShardCopies.Fetch] = []
        copies.fetches.removeAll {
            let isExpired = $0.deadline <= now
            if isExpired { expired.append($0) }
            return isExpired
        }
        for fetch in expired {
            copies.waitingOperations -= fetch.operations.count
            for (_, waiter) in fetch.operations {
                node.answer(
                    waiter,
                    error: DatabaseError(
                        .unavailable, "the former group of shard \(fetch.shard) does not answer"))
            }
        }
        for place in copies.fetches.indices
        where now - copies.fetches[place].asked >= ShardCopies.answerWait {
            copies.fetches[place].asked = now
            copies.turn += 1
            let fetch = copies.fetches[place]
            guard case .importing(let source, _, _) = state.shards[fetch.shard]?.phase else {
                continue
            }
            ask(fetch, of: source)
        }
    }
}
