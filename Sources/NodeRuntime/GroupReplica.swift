// One replica as the node runs it: the replication core, its engine and the requests that wait.

import EventLoop
import KVBase
import Metrics
import NodeCore
import ReplicationCore
import ShardCore
import StorageAPI
import WireProtocol

/// Feeds events to the core and carries out its effects. Owned by the node's event loop.
///
/// Order of a turn: requests collect in `pending`; `propose` gives them to the core as entries;
/// committed entries collect in `committed`; `applyCommitted` writes them to the engine in one batch
/// and answers the waiters.
final class GroupReplica {
    let group: GroupID
    let id: ReplicaID
    let disk: Disk
    let engine: any StorageEngine
    let engineKind: EngineKind
    unowned let node: NodeServer
    /// The replica's place in the engine; a finished snapshot replaces it.
    var store: StoreID
    var core: Replica
    var state: GroupState
    var effects = Effects()

    /// Most operation bytes in one log entry; a larger turn makes several.
    static let entryBytes = 256 << 10
    /// Most entry bytes applied in one turn, but for a single larger entry: some 5 ms of work, so that
    /// heartbeats and votes stay in time. More than a turn under full load brings.
    static let applyBytesMax = 256 << 10
    static let pendingBytesMax = 64 << 20
    static let knownNodesMax = 256
    /// How long a replica that stopped to lead keeps the requests that it logged: the next leader
    /// commits them, or replaces them, within some round trips. Well below the routers' deadline.
    static let orphansKept = Nanoseconds.seconds(1)
    /// The answer to whoever waits for an entry that this leader may not see committed.
    static let leadershipLost = DatabaseError(
        .unknownOutcome, "the leader changed before the answer")

    static func outcomeUnknown(_ error: DatabaseError) -> DatabaseError {
        DatabaseError(.unknownOutcome, "the replica stopped before the answer: \(error.message)")
    }

    // Leader: requests on their way into the log.
    var clock: SequencerClock
    var pending = PendingBatch()
    var fullBatches: [PendingBatch] = []
    var pendingBytes = 0
    var pendingKeys = PendingKeys()
    /// Where this turn's reads expect its first batch.
    private var proposalPrediction = LogIndex.none
    var inFlight: [InFlightEntry] = []
    /// `inFlight` before this position is done; cut off now and then.
    var inFlightHead = 0
    /// Until then the entries in `inFlight` may still be answered although another replica leads.
    private(set) var orphansUntil = Instant.distantFuture

    // Reads that wait.
    var deferredReads: [DeferredRead] = []
    var quorumReads: [UInt64: DeferredRead] = [:]
    var nextReadToken: UInt64 = 1

    var committed: [LogEntry] = []
    /// When the first and the last of `committed` came.
    private(set) var committedFirst = Instant.origin
    private(set) var committedLast = Instant.origin
    /// The rest of `committed` waits for the next turn.
    var isPostponed = false
    /// Nothing was postponed since the replica was opened.
    var isFresh = true
    /// What was postponed first, after the start, is not all applied yet.
    var hasReplayed = false
    var isDirty = false
    var isFailed = false
    private var wasLeader = false
    /// The last term in which routers were told that this replica leads.
    private var announcedTerm = Term.none
    /// Nodes of replicas that spoke to this one and may not be in its membership yet.
    var knownNodes: [ReplicaID: NodeID] = [:]
    var snapshotSenders: [ReplicaID: SnapshotSender] = [:]
    var snapshotReceiver: SnapshotReceiver?
    /// Ranges whose records are still to be deleted, oldest first.
    var garbage: [KeyRange] = []
    /// Ranges whose tombstones are still to be forgotten, where shards are owned.
    var sweeps: [KeyRange] = []
    /// Shards that this leader is taking over from other groups.
    var copies: ShardCopies
    /// Shards that are being copied here; kept by `noteShards`.
    private(set) var imports: [ShardID] = []
    /// Shards whose records changed since they were last counted.
    var changedShards = true
    /// Requests of routers that were taken in here, ever since this object began.
    private(set) var admittedReads: UInt64 = 0
    private(set) var admittedWrites: UInt64 = 0
    /// Who waits for a change of membership, by the token given to the core.
    var membershipWaiters: [UInt64: Waiter] = [:]
    private var nextMembershipToken: UInt64 = 1

    /// Operations of one log entry and who waits for them, in the same order.
    struct PendingBatch {
        var writer = ByteWriter()
        var count: UInt32 = 0
        var waiters: [Waiter] = []
        /// Hashes of the keys written, for `PendingKeys`.
        var hashes: [UInt64] = []
    }

    struct InFlightEntry {
        var index: LogIndex
        var term: Term
        var proposed: Instant
        var waiters: [Waiter]
    }

    struct DeferredRead {
        /// Serve once this is applied.
        var index: LogIndex
        var waiter: Waiter
        var operation: Bytes
    }

    init(
        node: NodeServer, disk: Disk, group: GroupID, id: ReplicaID, engineKind: EngineKind,
        store: StoreID, state: GroupState, restored: RestoredState, seed: UInt64, now: Instant
    ) {
        self.node = node
        self.disk = disk
        self.group = group
        self.id = id
        self.engineKind = engineKind
        engine = disk.engine(engineKind)
        self.store = store
        self.state = state
        copies = ShardCopies(bytesPerSecond: node.settings.copyBytesPerSecond)
        clock = SequencerClock(node: node.identity.node)
        clock.observe(state.floor)
        core = Replica(
            group: group, id: id, tuning: node.tuning, restored: restored, seed: seed, now: now)
        noteShards()
    }

    var isLeader: Bool { core.role == .leader }

    /// Somebody waits for an entry in the log.
    var hasLoggedRequests: Bool { inFlightHead < inFlight.count }

    /// Counts a request for one record; `node.storageKey` holds its key. What is carried out again
    /// after it waited for the former owner was counted before.
    func count(_ operation: Operation, _ owned: OwnedShard) {
        guard !operation.flags.contains(.previousImported) else { return }
        if operation.code.isWrite { admittedWrites += 1 } else { admittedReads += 1 }
        node.load.count(
            owned, group: group, isWrite: operation.code.isWrite,
            routedKey: node.storageKey.routedKey)
    }

    /// Counts one page of a list.
    func countList(_ parts: [OwnedShard], from: Bytes) {
        admittedReads += 1
        node.load.countList(parts, group: group, from: from)
    }

    /// The shards, or what the group may do with them, changed.
    func noteShards() {
        imports = state.shards.elements.filter(\.isImporting).map(\.shard.id)
    }

    var hasImports: Bool { !imports.isEmpty }

    // MARK: Events

    func step(_ event: Event) {
        guard !isFailed else { return }
        core.step(event, now: node.now, into: &effects)
        performEffects()
    }

    /// Changes who belongs to the group; the waiter hears how that ended, unless this replica stops to
    /// lead before that.
    func changeMembership(_ change: MembershipChange, _ waiter: Waiter) {
        let token = nextMembershipToken
        nextMembershipToken += 1
        membershipWaiters[token] = waiter
        step(.changeMembership(change, token: token))
    }

    func didPersist(_ ticket: PersistTicket) { step(.persisted(ticket)) }

    func receive(_ message: Message, from: ReplicaID, node sender: NodeID) {
        guard isPlausible(message.term) else { return }
        note(from, at: sender)
        step(.message(from: from, message))
    }

    /// Whether elections can have led from the own term to this one. A broken sender could otherwise
    /// use up all terms there are.
    func isPlausible(_ term: Term) -> Bool {
        term <= core.term || term.rawValue - core.term.rawValue < 1 << 32
    }

    /// Where a replica spoke from, for answers to it.
    func note(_ replica: ReplicaID, at sender: NodeID) {
        guard knownNodes[replica] != nil || knownNodes.count < Self.knownNodesMax else { return }
        knownNodes[replica] = sender
    }

    /// The disk is gone: nothing more is promised or answered from it. What was proposed may have
    /// reached the followers, so it must not be answered as if it could be repeated.
    func fail(_ error: DatabaseError) {
        end(DatabaseError(.unavailable, "the disk of group \(group) failed: \(error.message)"))
    }

    /// Nothing happens here any more; whoever waits is told `error`.
    func end(_ error: DatabaseError) {
        isFailed = true
        failWaiters(Self.outcomeUnknown(error))
        committed.removeAll()
        abandonCopies()
        snapshotSenders.removeAll()
        snapshotReceiver = nil
    }

    func nodeOf(_ replica: ReplicaID) -> NodeID? {
        core.membership.node(of: replica) ?? knownNodes[replica]
    }

    // MARK: Effects

    private func performEffects() {
        for persist in effects.persists { disk.stage(self, persist) }
        for (to, message) in effects.messages {
            if let target = nodeOf(to) {
                node.peers.send(message, group: group, from: id, to: to, node: target)
            }
        }
        if !effects.committed.isEmpty {
            committedLast = node.now
            if committed.isEmpty { committedFirst = committedLast }
            committed.append(contentsOf: effects.committed)
            markDirty()
        }
        if let proposed = effects.proposed { didPropose(proposed) }
        let refusedProposals = effects.proposalsRefused
        let ready = effects.readsReady
        let refused = effects.readsRefused
        let snapshots = effects.snapshotsNeeded
        let roleChanged = effects.roleChanged
        let membershipOutcomes = effects.membershipOutcomes
        effects.removeAll()

        if refusedProposals { refusePending() }
        for (token, index) in ready { quorumReadReady(token, index) }
        for (token, _) in refused { quorumReadRefused(token) }
        for (token, error) in membershipOutcomes {
            guard let waiter = membershipWaiters.removeValue(forKey: token) else { continue }
            node.finishCommand(waiter, error: error)
        }
        for replica in snapshots { startSnapshot(to: replica) }
        if roleChanged { didChangeRole() }
    }

    private func didChangeRole() {
        if wasLeader != isLeader {
            wasLeader = isLeader
            node.metrics.leaderChanges.increment()
        }
        if !isLeader {
            endUnlogged()
            if inFlightHead < inFlight.count { orphansUntil = node.now + Self.orphansKept }
            abandonCopies()
            for sender in snapshotSenders.values { sender.cancel() }
            snapshotSenders.removeAll()
        } else {
            orphansUntil = .distantFuture
            clock.observe(state.floor)
            // What an earlier leadership noted may have been replaced; all that is in the log now is
            // applied before the first read.
            pendingKeys = PendingKeys()
            changedShards = true
        }
        node.reportSoon()
    }

    /// Tells routers and controllers once per term that this replica leads and serves.
    func announceLeadership() {
        guard isLeader, core.canPropose, announcedTerm != core.term else { return }
        announcedTerm = core.term
        node.announce(self)
    }

    func markDirty() {
        guard !isDirty else { return }
        isDirty = true
        node.dirty.append(self)
    }

    // MARK: Proposing

    /// Queues a write for this turn's entry. `key` is the storage key, nil for controller commands.
    func enqueue(
        _ operation: UnsafeRawBufferPointer, keyHash: UInt64?, waiter: Waiter
    ) throws(DatabaseError) {
        guard pendingBytes + operation.count <= Self.pendingBytesMax else {
            node.metrics.groupQueueFull.increment()
            throw DatabaseError(.overloaded, "too many bytes wait in group \(group)")
        }
        if pending.count > 0, pending.writer.count + operation.count > Self.entryBytes {
            fullBatches.append(pending)
            pending = PendingBatch()
        }
        if pending.count == 0 {
            pending.writer.write(Sequencer.zero)
            pending.writer.write(UInt32(0))
        }
        pending.writer.writeRaw(operation)
        pending.count += 1
        pendingBytes += operation.count
        pending.waiters.append(waiter)
        if let keyHash {
            pending.hashes.append(keyHash)
            pendingKeys.note(hash: keyHash, index: predictedIndex(batch: fullBatches.count))
        }
        markDirty()
    }

    /// The index that the turn's batch number `batch` will have unless something else is logged first.
    private func predictedIndex(batch: Int) -> LogIndex {
        LogIndex(core.lastPosition.index.rawValue + 1 + UInt64(batch))
    }

    /// Gives the turn's batches to the core. Their sequencers are issued here, in log order.
    func propose() {
        guard pending.count > 0 || !fullBatches.isEmpty else { return }
        if pending.count > 0 {
            fullBatches.append(pending)
            pending = PendingBatch()
        }
        guard core.canPropose else {
            refusePending()
            return
        }
        var payloads: [Bytes] = []
        let now = node.microseconds(node.now)
        for position in fullBatches.indices {
            if let oldest = fullBatches[position].waiters.first, oldest.slot >= 0 {
                node.metrics.proposeWait.observe(
                    .microseconds(UInt64(now &- oldest.received)))
            }
            let count = fullBatches[position].count
            let base = clock.issue(count, wallClock: EventLoop.wallClockNanoseconds())
            var writer = fullBatches[position].writer
            fullBatches[position].writer = ByteWriter()
            writer.patch(UInt32(truncatingIfNeeded: base.time), at: 0)
            writer.patch(UInt32(truncatingIfNeeded: base.time >> 32), at: 4)
            writer.patch(base.counter, at: 8)
            writer.patch(base.node.rawValue, at: 12)
            writer.patch(count, at: 16)
            payloads.append(writer.take())
            node.metrics.proposedOperations.increment(by: UInt64(count))
        }
        node.metrics.proposedEntries.increment(by: UInt64(payloads.count))
        proposalPrediction = predictedIndex(batch: 0)
        step(.propose(payloads))
    }

    private func didPropose(_ proposed: (term: Term, first: LogIndex, count: Int)) {
        precondition(proposed.count == fullBatches.count)
        // Entries of an earlier leadership that these replace will never be committed.
        while let stale = inFlight.last, stale.index >= proposed.first {
            inFlight.removeLast()
            for waiter in stale.waiters {
                node.answer(waiter, error: Self.leadershipLost)
            }
        }
        inFlightHead = min(inFlightHead, inFlight.count)
        var index = proposed.first
        if proposed.first != proposalPrediction {
            // Something else took the predicted place: reads of this turn wait that much longer.
            let shift = proposed.first.rawValue - proposalPrediction.rawValue
            for position in deferredReads.indices
            where deferredReads[position].index >= proposalPrediction {
                deferredReads[position].index = LogIndex(
                    deferredReads[position].index.rawValue + shift)
            }
        }
        let now = node.now
        for batch in fullBatches {
            for hash in batch.hashes { pendingKeys.note(hash: hash, index: index) }
            inFlight.append(
                InFlightEntry(
                    index: index, term: proposed.term, proposed: now, waiters: batch.waiters))
            index = index.next()
        }
        fullBatches.removeAll(keepingCapacity: true)
        pendingBytes = 0
    }

    /// None of the queued writes was logged: the router may repeat them.
    private func refusePending() {
        var batches = fullBatches
        if pending.count > 0 { batches.append(pending) }
        fullBatches.removeAll()
        pending = PendingBatch()
        pendingBytes = 0
        for batch in batches {
            for waiter in batch.waiters { answerNotLeader(waiter) }
        }
        // Nothing was logged, so reads that waited for it have nothing to wait for.
        let last = core.lastPosition.index
        pendingKeys.limit(to: last)
        for position in deferredReads.indices where deferredReads[position].index > last {
            deferredReads[position].index = last
        }
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

    var leaderNode: NodeID { nodeOf(core.leader) ?? .none }

    /// Ends every request that waits here: logged ones with `error`, the others as not applied.
    private func failWaiters(_ error: DatabaseError) {
        failLogged(error)
        endUnlogged()
    }

    /// Gives up on requests that were logged in a leadership which is over: nobody told what became
    /// of them.
    func failOrphans() { failLogged(Self.leadershipLost) }

    private func failLogged(_ error: DatabaseError) {
        orphansUntil = .distantFuture
        for entry in inFlight[inFlightHead...] {
            for waiter in entry.waiters { node.answer(waiter, error: error) }
        }
        inFlight.removeAll()
        inFlightHead = 0
    }

    /// Ends the requests that are in no log, so that routers repeat them elsewhere.
    private func endUnlogged() {
        refusePending()
        let reads = deferredReads
        deferredReads.removeAll()
        for read in reads { answerNotLeader(read.waiter) }
        let waiting = quorumReads.sorted { $0.key < $1.key }
        quorumReads.removeAll()
        for (_, read) in waiting { answerNotLeader(read.waiter) }
    }
}
