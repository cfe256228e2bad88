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
/// Order of a turn: requests collect in `proposals`; `propose` gives them to the core as entries;
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

    /// Most entry bytes applied in one turn, but for a single larger entry: some 5 ms of work, so that
    /// heartbeats and votes stay in time. More than a turn under full load brings.
    static let applyBytesMax = 256 << 10
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
    var proposals = ProposalQueue()
    var pendingKeys = PendingKeys()
    /// Where this turn's reads expect its first batch.
    var proposalPrediction = LogIndex.none
    var logged = LoggedRequests()
    /// Until then what is in `logged` may still be answered although another replica leads.
    var orphansUntil = Instant.distantFuture
    var waitingReads = WaitingReads()

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
    var hasLoggedRequests: Bool { !logged.isEmpty }

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
        for reason in effects.leadershipChanges { node.metrics.countLeaderChange(reason) }
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
        if !isLeader {
            endUnlogged()
            if !logged.isEmpty { orphansUntil = node.now + Self.orphansKept }
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

    var leaderNode: NodeID { nodeOf(core.leader) ?? .none }
}
