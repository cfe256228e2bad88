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
        while let candidate = logged.first, candidate.index <= entry.index {
            // One of an older term is left to `refuseReplaced`.
            if candidate.index == entry.index, candidate.term != entry.term { break }
            logged.removeFirst()
            if candidate.index == entry.index {
                waiters = candidate.waiters
                node.applyScratch.proposed = candidate.proposed
                node.metrics.commitDuration.observe(committedLast - candidate.proposed)
                node.metrics.proposalsCommitted.increment()
            } else {
                // Passed over by a snapshot: nothing is known of it.
                leaveUnknown(candidate, Self.leadershipLost)
            }
        }
        refuseReplaced(by: entry)
        return waiters
    }

    /// Behind a committed entry no entry of a lower term is ever committed: what this replica logged
    /// in an earlier leadership at or behind `entry` is not applied anywhere and may be repeated.
    private func refuseReplaced(by entry: LogEntry) {
        while let last = logged.last, last.term < entry.term {
            logged.removeLast()
            node.metrics.proposalsRefused.increment()
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

    private func answer(_ outcome: Outcome) {
        if let error = outcome.error {
            node.answer(outcome.waiter, error: error, sequencer: outcome.sequencer)
        } else {
            node.answer(
                outcome.waiter, flags: outcome.found ? .found : [], sequencer: outcome.sequencer)
        }
    }
}
