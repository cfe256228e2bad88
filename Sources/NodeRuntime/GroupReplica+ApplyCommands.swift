// What a committed operation does to the batch under construction: a write to a record, a command of the
// controller to shards. Decided alike on every replica.

import KVBase
import NodeCore
import ShardCore
import StorageAPI
import WireProtocol

extension GroupReplica {
    func applyWrite(
        _ operation: Operation, _ sequencer: Sequencer, _ waiter: Waiter?, _ scratch: ApplyScratch
    ) throws(DatabaseError) {
        guard let owned = try? state.owned(operation.shard, operation.epoch) else {
            refuseStale(operation, waiter, scratch)
            return
        }
        let key = node.storageKey
        key.set(store, owned.shard.table, owned.partitioning, key: operation.key)
        guard owned.shard.range.contains(key.routedKey) else {
            refuseStale(operation, waiter, scratch)
            return
        }
        let hash = stableHash(key.bytes)
        let decision = try owned.decide(
            operation, sequencer: sequencer, routedKey: key.routedKey,
            asksPrevious: waiter != nil && operation.flags.contains(.wantsPrevious)
        ) { () throws(DatabaseError) in
            try presentVersion(key.bytes, hash: hash, scratch)
        }
        switch decision.effect {
        case .put:
            scratch.put(key.bytes, decision.sequencer, operation.value)
            scratch.touched.note(key.bytes, hash: hash, .written(decision.sequencer))
        case .putTombstone:
            let nothing = UnsafeRawBufferPointer(start: nil, count: 0)
            scratch.put(
                key.bytes, decision.sequencer, nothing, flags: StorageLayout.tombstoneFlag)
            scratch.touched.note(key.bytes, hash: hash, .tombstone(decision.sequencer))
        case .remove:
            scratch.batch.delete(key: key.bytes)
            scratch.touched.note(key.bytes, hash: hash, .deleted)
        case .none: break
        }
        if let waiter {
            scratch.outcomes.append(
                Outcome(
                    waiter: waiter, error: decision.error, found: decision.previous != .zero,
                    sequencer: decision.error == nil ? decision.sequencer : decision.previous,
                    proposed: scratch.proposed))
        }
    }

    private func refuseStale(
        _ operation: Operation, _ waiter: Waiter?, _ scratch: ApplyScratch
    ) {
        guard let waiter else { return }
        let error = DatabaseError(
            .staleEpoch, "shard \(operation.shard) moved on before the write was applied")
        scratch.outcomes.append(
            Outcome(waiter: waiter, error: error, found: false, sequencer: .zero))
    }

    /// The key's version as of the operation before.
    private func presentVersion(
        _ key: UnsafeRawBufferPointer, hash: UInt64, _ scratch: ApplyScratch
    ) throws(DatabaseError) -> RecordVersion? {
        switch scratch.touched.effect(on: key, hash: hash) {
        case .written(let sequencer):
            return RecordVersion(sequencer: sequencer, isTombstone: false)
        case .tombstone(let sequencer):
            return RecordVersion(sequencer: sequencer, isTombstone: true)
        case .deleted: return nil
        case nil:
            // What the batch clears is still in the engine.
            if scratch.cleared.contains(where: { $0.contains(key) }) { return nil }
            return try storedVersion(key)
        }
    }

    /// The applied version of a storage key.
    func storedVersion(_ key: UnsafeRawBufferPointer) throws(DatabaseError) -> RecordVersion? {
        try engine.get(key) { bytes in
            bytes.flatMap { StoredRecord($0) }.map {
                RecordVersion(sequencer: $0.sequencer, isTombstone: $0.isTombstone)
            }
        }
    }

    // MARK: Commands to shards

    func applyControl(
        _ operation: Operation, _ sequencer: Sequencer, _ waiter: Waiter?, _ scratch: ApplyScratch
    ) {
        var outcomeError: DatabaseError?
        var floor = Sequencer.zero
        do throws(DatabaseError) {
            if operation.code == .shardCommand {
                var reader = ByteReader(operation.value)
                let command = try ShardCommand(from: &reader)
                let shardCount = state.shards.count
                let effect = try state.apply(command, sequencer: sequencer)
                if case .advance(_, _, _, .some) = command {
                    scratch.movedCursor = true
                } else {
                    scratch.changedState = true
                }
                // A repeated command changes nothing.
                if state.shards.count != shardCount { noteLoad(of: command) }
                if let removed = effect.garbage { discard(removed) }
                if let cleared = effect.cleared { clear(cleared, scratch) }
                if let absorbed = effect.absorbed {
                    node.forgetReport(of: absorbed, through: Epoch(UInt32.max))
                }
                if let verified = effect.verified { scratch.verified.append(verified) }
                if let finished = effect.finished {
                    sweeps.append(
                        StorageLayout.range(store, finished.shard.table, finished.shard.range))
                }
                floor = effect.floor
            } else {
                scratch.changedState = true
                if let removed = try state.apply(operation.code, operation.value) {
                    discard(removed)
                }
            }
        } catch {
            outcomeError = error
        }
        if let waiter {
            scratch.outcomes.append(
                Outcome(waiter: waiter, error: outcomeError, found: false, sequencer: floor))
        }
    }

    /// The load of shards that were cut or joined follows their keys.
    private func noteLoad(of command: ShardCommand) {
        switch command {
        case .split(let shard, _, let key, let right):
            node.load.split(shard, at: key, into: right)
        case .merge(let shard, _, let right, _): node.load.merge(shard, with: right)
        default: break
        }
    }

    /// The shard's records are deleted little by little.
    private func discard(_ removed: OwnedShard) {
        garbage.append(StorageLayout.range(store, removed.shard.table, removed.shard.range))
        node.garbageAppeared(self)
        node.forgetReport(of: removed.shard.id, through: removed.shard.epoch)
    }

    /// The shard comes back to a store that may still hold records of an earlier stay: they go at
    /// once, and the collection of garbage must not reach the new ones.
    private func clear(_ shard: OwnedShard, _ scratch: ApplyScratch) {
        let range = StorageLayout.range(store, shard.shard.table, shard.shard.range)
        guard let end = range.end else { preconditionFailure("a storage range has an end") }
        range.start.withUnsafeBytes { from in
            end.withUnsafeBytes { to in scratch.batch.deleteRange(from: from, to: to) }
        }
        scratch.touched.noteDeletion(of: range)
        scratch.cleared.append(range)
        garbage = garbage.flatMap { old in
            guard old.overlaps(range) else { return [old] }
            return [
                KeyRange(start: old.start, end: range.start), KeyRange(start: end, end: old.end),
            ].filter { !$0.isEmpty }
        }
    }
}
