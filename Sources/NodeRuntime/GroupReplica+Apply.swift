// Applying committed entries: decided alike on every replica, answered by the leader alone.

import KVBase
import Metrics
import NodeCore
import ReplicationCore
import ShardCore
import StorageAPI
import WireProtocol

extension GroupReplica {
    /// How one operation ended; kept until its batch is in the engine.
    struct Outcome {
        var waiter: Waiter
        var error: DatabaseError?
        var found: Bool
        var sequencer: Sequencer
        /// When the entry with it was proposed.
        var proposed = Instant.origin
    }

    /// Writes everything committed to the engine, as a rule in one atomic batch, and answers. What is
    /// over `applyBytesMax` (a restart has everything since the last checkpoint to apply) has to wait
    /// for the next turn.
    func applyCommitted() {
        var room = Self.applyBytesMax
        while !committed.isEmpty, !isFailed, !isInstallingSnapshot, !isPostponed {
            guard room > 0 else {
                isPostponed = true
                hasReplayed = hasReplayed || isFresh
                isFresh = false
                return node.postpone(self)
            }
            guard applyBatch(within: &room) else { return }
        }
        if committed.isEmpty, hasReplayed, !isFailed {
            // What a start has replayed is made durable, once: a process that keeps dying would
            // replay more each time.
            hasReplayed = false
            node.checkpoint(disk)
        }
    }

    /// The next turn has come.
    func resumeApplying() {
        isPostponed = false
        markDirty()
    }

    /// A batch ends early behind an entry that asks for digests, so that a view of the engine holds
    /// what that entry left and nothing later, and once it has used up `room`, in entry bytes. False
    /// when the replica cannot go on.
    private func applyBatch(within room: inout Int) -> Bool {
        let scratch = node.applyScratch
        scratch.reset()
        var count = 0
        let began = node.now
        node.metrics.applyWait.observe(began - committedFirst)
        do throws(DatabaseError) {
            while count < committed.count, scratch.verified.isEmpty, room > 0 {
                let entry = committed[count]
                count += 1
                room -= entry.payload.count
                switch entry.kind {
                case .noop: _ = takeWaiters(for: entry)
                case .membership:
                    _ = takeWaiters(for: entry)
                    state.membership = try ByteReader.decode(entry.payload) {
                        (reader) throws(DatabaseError) in try Membership(from: &reader)
                    }
                    scratch.changedState = true
                case .command:
                    try apply(entry, waiters: takeWaiters(for: entry), scratch)
                }
                state.applied = LogPosition(index: entry.index, term: entry.term)
            }
            put(
                StorageLayout.appliedKey(store),
                StorageLayout.encodeApplied(state.applied, floor: state.floor), scratch)
            if scratch.changedState {
                putState(scratch)
            } else if scratch.movedCursor {
                var writer = ByteWriter()
                state.encodeCursors(into: &writer)
                put(StorageLayout.cursorsKey(store), writer.bytes, scratch)
            }
            try engine.apply(scratch.batch)
            for owned in scratch.verified { try node.digest(owned, of: self) }
        } catch {
            // An entry that does not decode, or an engine that fails: this replica can't go on.
            for outcome in scratch.outcomes {
                node.answer(outcome.waiter, error: Self.outcomeUnknown(error))
            }
            disk.fail(error)
            return false
        }
        let ended = node.now
        node.metrics.applyDuration.observe(ended - began)
        node.metrics.appliedEntries.increment(by: UInt64(count))
        node.metrics.engineBatches.increment()
        keepSlow(scratch.outcomes, applying: began, applied: ended)
        if count == committed.count {
            committed.removeAll(keepingCapacity: true)
        } else {
            committed.removeFirst(count)
        }
        changedShards = true
        let (changedState, movedCursor) = (scratch.changedState, scratch.movedCursor)
        if changedState { noteShards() }
        for outcome in scratch.outcomes { answer(outcome) }
        step(.applied(state.applied.index))
        serveDeferredReads()
        dropUnneededSnapshot()
        announceLeadership()
        if changedState || movedCursor { continueCopies() }
        if changedState { node.reportSoon() }
        return true
    }

    /// Notes the stages of the writes that took long.
    private func keepSlow(_ outcomes: [Outcome], applying: Instant, applied: Instant) {
        let end = node.microseconds(applied)
        for outcome in outcomes where outcome.waiter.slot >= 0 {
            let took = Nanoseconds.microseconds(UInt64(end &- outcome.waiter.received))
            guard node.slow.isSlow(took) else { continue }
            node.slow.keep(
                WriteStages(
                    group: group, proposed: outcome.proposed, committed: committedLast,
                    applying: applying, applied: applied), of: outcome.waiter)
        }
    }

    /// State besides records, for the batch under construction.
    func putState(_ scratch: ApplyScratch) {
        var writer = ByteWriter()
        state.encode(into: &writer)
        put(StorageLayout.stateKey(store), writer.bytes, scratch)
        writer = ByteWriter()
        writer.write(list: garbage) { writer, range in writer.write(range) }
        put(StorageLayout.garbageKey(store), writer.bytes, scratch)
        putSweeps(scratch)
    }

    func putSweeps(_ scratch: ApplyScratch) {
        var writer = ByteWriter()
        writer.write(list: sweeps) { writer, range in writer.write(range) }
        put(StorageLayout.sweepKey(store), writer.bytes, scratch)
    }

    private func put(_ key: Bytes, _ value: Bytes, _ scratch: ApplyScratch) {
        key.withUnsafeBytes { key in
            value.withUnsafeBytes { value in scratch.batch.put(key: key, value: value) }
        }
    }

    /// Who waits for a command that is about to be applied. Ends those whose entries `entry` rules out.
    private func takeWaiters(for entry: LogEntry) -> [Waiter]? {
        var waiters: [Waiter]?
        node.applyScratch.proposed = .origin
        while inFlightHead < inFlight.count, inFlight[inFlightHead].index <= entry.index {
            let candidate = inFlight[inFlightHead]
            // One of an older term is left to `refuseReplaced`.
            if candidate.index == entry.index, candidate.term != entry.term { break }
            inFlight[inFlightHead].waiters = []
            inFlightHead += 1
            if candidate.index == entry.index {
                waiters = candidate.waiters
                node.applyScratch.proposed = candidate.proposed
                node.metrics.commitDuration.observe(committedLast - candidate.proposed)
            } else {
                // Passed over by a snapshot: nothing is known of it.
                for waiter in candidate.waiters {
                    node.answer(waiter, error: Self.leadershipLost)
                }
            }
        }
        refuseReplaced(by: entry)
        if inFlightHead > 1_024 || inFlightHead == inFlight.count {
            inFlight.removeFirst(inFlightHead)
            inFlightHead = 0
        }
        return waiters
    }

    /// Behind a committed entry no entry of a lower term is ever committed: what this replica logged
    /// in an earlier leadership at or behind `entry` is not applied anywhere and may be repeated.
    private func refuseReplaced(by entry: LogEntry) {
        while inFlightHead < inFlight.count, let last = inFlight.last, last.term < entry.term {
            inFlight.removeLast()
            for waiter in last.waiters { answerNotLeader(waiter) }
        }
    }

    private func apply(
        _ entry: LogEntry, waiters: [Waiter]?, _ scratch: ApplyScratch
    ) throws(DatabaseError) {
        try entry.payload.withRawBytes { (payload) throws(DatabaseError) in
            var batch = try CommandBatch(payload)
            for position in 0..<Int(batch.count) {
                let operation = try batch.next()
                let sequencer = batch.base.advanced(by: UInt32(position))
                let waiter = waiters.map { $0[position] }
                if operation.code.isControl, operation.code != .importRecord {
                    applyControl(operation, sequencer, waiter, scratch)
                } else {
                    try applyWrite(operation, sequencer, waiter, scratch)
                }
            }
            state.floor = max(state.floor, batch.last)
            clock.observe(state.floor)
        }
    }

    private func applyControl(
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

    private func applyWrite(
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

    private func answer(_ outcome: Outcome) {
        if let error = outcome.error {
            node.answer(outcome.waiter, error: error, sequencer: outcome.sequencer)
        } else {
            node.answer(
                outcome.waiter, flags: outcome.found ? .found : [], sequencer: outcome.sequencer)
        }
    }
}

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
