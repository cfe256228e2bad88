// Requests on their way into the group's log, and the end of those that will not be answered from it.

import EventLoop
import KVBase
import Metrics
import NodeCore
import ReplicationCore
import ShardCore
import WireProtocol

extension GroupReplica {
    /// Queues a write for this turn's entry. `keyHash` is that of the storage key, nil for commands of the
    /// controller.
    func enqueue(
        _ operation: UnsafeRawBufferPointer, keyHash: UInt64?, waiter: Waiter
    ) throws(DatabaseError) {
        guard proposals.hasRoom(for: operation.count) else {
            node.metrics.groupQueueFull.increment()
            throw DatabaseError(.overloaded, "too many bytes wait in group \(group)")
        }
        let batch = proposals.append(operation, keyHash: keyHash, waiter)
        if let keyHash { pendingKeys.note(hash: keyHash, index: predictedIndex(batch: batch)) }
        markDirty()
    }

    /// The index that the turn's batch number `batch` will have unless something else is logged first.
    private func predictedIndex(batch: Int) -> LogIndex {
        LogIndex(core.lastPosition.index.rawValue + 1 + UInt64(batch))
    }

    /// Gives the turn's batches to the core. Their sequencers are issued here, in log order.
    func propose() {
        guard !proposals.isEmpty else { return }
        guard core.canPropose else {
            refusePending()
            return
        }
        proposals.seal()
        var payloads: [Bytes] = []
        let now = node.microseconds(node.now)
        for place in proposals.batches.indices {
            if let oldest = proposals.batches[place].waiters.first, oldest.slot >= 0 {
                node.metrics.proposeWait.observe(
                    .microseconds(UInt64(now &- oldest.received)))
            }
            let count = proposals.batches[place].count
            let base = clock.issue(count, wallClock: EventLoop.wallClockNanoseconds())
            payloads.append(proposals.takePayload(of: place, base: base))
            node.metrics.proposedOperations.increment(by: UInt64(count))
        }
        proposalPrediction = predictedIndex(batch: 0)
        step(.propose(payloads))
    }

    func didPropose(_ proposed: (term: Term, first: LogIndex, count: Int)) {
        precondition(proposed.count == proposals.batches.count)
        // Entries of an earlier leadership that these replace will never be committed.
        while let stale = logged.last, stale.index >= proposed.first {
            logged.removeLast()
            leaveUnknown(stale, Self.leadershipLost)
        }
        if proposed.first != proposalPrediction {
            // Something else took the predicted place: reads of this turn wait that much longer.
            waitingReads.shift(
                from: proposalPrediction,
                by: proposed.first.rawValue - proposalPrediction.rawValue)
        }
        var index = proposed.first
        let now = node.now
        for batch in proposals.batches {
            for hash in batch.hashes { pendingKeys.note(hash: hash, index: index) }
            logged.append(
                LoggedRequests.Entry(
                    index: index, term: proposed.term, proposed: now, waiters: batch.waiters))
            index = index.next()
        }
        proposals.removeAll()
    }

    // MARK: Ending

    /// None of the queued writes was logged: the router may repeat them.
    func refusePending() {
        let waiters = proposals.waiters
        node.metrics.proposalsRefused.increment(by: UInt64(proposals.batchCount))
        proposals.removeAll()
        for waiter in waiters { answerNotLeader(waiter) }
        // Nothing was logged, so reads that waited for it have nothing to wait for.
        let last = core.lastPosition.index
        pendingKeys.limit(to: last)
        waitingReads.limit(to: last)
    }

    func answerNotLeader(_ waiter: Waiter) {
        if isLeader {
            node.answer(
                waiter,
                error: DatabaseError(.unavailable, "group \(group) cannot take requests now"))
        } else {
            node.answerNotLeader(waiter, LeaderHint(term: core.term, node: leaderNode))
        }
    }

    /// Ends every request that waits here: logged ones with `error`, the others as not applied.
    func failWaiters(_ error: DatabaseError) {
        failLogged(error)
        endUnlogged()
    }

    /// Gives up on requests that were logged in a leadership which is over: nobody told what became
    /// of them.
    func failOrphans() { failLogged(Self.leadershipLost) }

    private func failLogged(_ error: DatabaseError) {
        orphansUntil = .distantFuture
        for entry in logged.removeAll() { leaveUnknown(entry, error) }
    }

    /// Whether the entry is committed, or will be, is not known here.
    func leaveUnknown(_ entry: LoggedRequests.Entry, _ error: DatabaseError) {
        node.metrics.proposalsUnknown.increment()
        for waiter in entry.waiters { node.answer(waiter, error: error) }
    }

    /// Ends the requests that are in no log, so that routers repeat them elsewhere.
    func endUnlogged() {
        refusePending()
        for read in waitingReads.removeAll() { answerNotLeader(read.waiter) }
    }
}
