// The acting controller as a deterministic state machine: what it knows, and the one door in.
//
// Nothing is acted on before it is stored: a decision becomes a `store` effect with a continuation,
// and the continuation runs when the store answers. The store answers in the order of the effects,
// so a later decision may build on an earlier one that is still on its way. A refused or failed
// transaction means another controller acts, or the store is gone: this one resigns.

import KVBase
import ShardCore

public struct Controller: Sendable {
    enum Standing: Sendable { case idle, takingOver, acting, resigned }

    /// What to do once a transaction is durable.
    enum Continuation: Sendable {
        case takenOver
        case admission(Admission)
        case groupsFormed([GroupRecord])
        case groupChanged(GroupRecord)
        case nominated([(group: GroupID, nomination: Nomination)])
        case table(TableID)
        case operation(OperationChange)
        /// A node is not held any more; who asked, and what is answered.
        case released(NodeID, RequestID, OperationID)
        case configured(RuntimeSettings, RequestID)
        case nodeChanged(NodeChange, RequestID?)
        case dissolved(GroupID, [RetiredReplica], leader: NodeID)
        case nothing
    }

    public let settings: ControllerSettings
    var standing = Standing.idle
    /// Drawn when the cluster was founded.
    public internal(set) var cluster: UInt64
    /// The term in which this controller acts.
    public internal(set) var term: Term
    let lease: LeaseID
    /// As found in the snapshot, for taking over.
    let isFounding: Bool
    let actingBefore: (holder: String, revision: Revision)?
    /// The revision of the term record: every transaction compares it, so a deposed controller
    /// changes nothing.
    var termRevision: Revision
    var actingSince: Instant = .origin
    /// The newest revision of the metadata store that this controller knows of.
    public internal(set) var revision: Revision

    var ids: IDAllocators
    /// After a restore: nodes with an id below it may be known to metadata that was lost.
    let issuedBelow: NodeID
    /// When the metadata was restored last, in milliseconds since 1970; 0 for never.
    public let restoredAt: UInt64
    public internal(set) var nodes = SortedRecords<NodeID, NodeStatus>()
    public internal(set) var groups = SortedRecords<GroupID, GroupStatus>()
    /// As stored, whatever their state.
    public internal(set) var tables = SortedRecords<TableID, Table>()
    public internal(set) var shards = SortedRecords<ShardID, Shard>()
    public internal(set) var shardReports = SortedRecords<ShardID, ShardReport>()
    /// Shards with an estimate in the place of a report, since they were cut or joined. For look-up only.
    var estimatedShards: Set<ShardID> = []
    /// What leaders reported last of the load on groups, and on the shards that have any.
    public internal(set) var groupLoads = SortedRecords<GroupID, GroupLoad>()
    public internal(set) var shardLoads = SortedRecords<ShardID, ShardLoad>()
    /// The shards that each node named in its newest report of load.
    var loadedShards = SortedRecords<NodeID, [ShardID]>()
    /// Of shards that are being copied, from the leaders that copy.
    public internal(set) var copyReports = SortedRecords<ShardID, CopyReport>()
    /// Bytes per second of the newest copy of a shard, and of a group to a new replica, that was watched
    /// long enough; nil when none was.
    var shardCopyPace: UInt64?
    var replicaCopyPace: UInt64?
    /// Of shards that are being verified: the newest of each replica.
    public internal(set) var digests = SortedRecords<ShardID, [ShardDigest]>()

    /// Tables that are not being dropped, by name; those being created included. For look-up only.
    var names: [String: TableID] = [:]
    /// For look-up only.
    var connections: [ConnectionID: NodeID] = [:]
    var admissions: [Admission] = []
    /// What nodes that were refused were told last, by name. For look-up only.
    var refusals: [String: String] = [:]
    /// Groups on their way to the store.
    var plannedGroups: [GroupRecord] = []
    /// Shards per group, those of procedures included. For look-up only.
    var shardCounts: [GroupID: Int] = [:]
    /// Sum of what `shardReports` tell of the shards of each group. For look-up only.
    var ownedBytes: [GroupID: UInt64] = [:]
    /// Groups that want a leader, replicas or an activation; sorted.
    var attention: [GroupID] = []
    var procedures = SortedRecords<TableID, TableProcedure>()
    /// Procedures whose commands want a look in this step; sorted.
    var touchedProcedures: [TableID] = []
    /// Requests that wait until enough nodes are there, while the cluster starts.
    var parked: [(waiter: TableProcedure.Waiter, request: TableRequest)] = []
    var firstNodeAt: Instant?
    var lastNodeAt: Instant = .origin
    /// There are groups of the default kind.
    var hasFormed = false
    /// The last change of leaders or nodes that was not this controller's own balancing.
    var lastUnrest: Instant = .origin
    var rebalanceAt: Instant = .origin
    /// The leader move for balance under way.
    var transfer: (group: GroupID, to: NodeID, command: UInt64)?

    /// Unfinished ones and the last that ended; those included that were never stored yet.
    var operations = SortedRecords<OperationID, OperationStatus>()
    var nextOperation: UInt32 = 1
    /// Replicas to delete when their nodes answer.
    public internal(set) var retired = SortedRecords<ReplicaID, RetiredReplica>()
    /// Shards that groups still hold after they moved away, by the operation that moved them.
    public internal(set) var former = SortedRecords<OperationID, FormerShardStatus>()
    var formerCheckAt: Instant = .origin
    /// Reports of replicas that operations bring in.
    public internal(set) var extraReports = SortedRecords<ReplicaID, ReplicaReport>()
    var touchedOperations: [OperationID] = []
    var operationAnswers: [(RequestID, Result<OperationID, DatabaseError>)] = []
    /// Stored, or on their way to the store; the newest last.
    var decisions: [Decision] = []
    /// The newest that is stored; 0 for none.
    var storedDecision: UInt64 = 0
    var newDecisions: [Decision] = []
    var nextDecision: UInt64 = 1
    public internal(set) var auditHead = AuditHead()
    /// The wall clock as the shell last told it.
    var clock: (at: Instant, milliseconds: UInt64)?
    var repairCheckAt: Instant = .origin
    /// Where the next look of repair begins.
    var repairCursor: GroupID = .none
    /// When the refusal to repair a group was last noted. For look-up only.
    var repairRefusedAt: [GroupID: Instant] = [:]
    var retirementCheckAt: Instant = .origin
    /// As stored, and with the changes that are on their way to the store.
    var runtime: RuntimeSettings
    var configured: RuntimeSettings
    /// What the rules remember.
    var rules = RuleState()
    /// The time of the step under way.
    var stepTime: Instant = .origin

    /// Transactions on their way to the store, each with the newest decision of it or before it.
    var continuations: [(ticket: StoreTicket, continuation: Continuation, decision: UInt64)] = []
    var ticketsIssued: UInt64 = 0
    var commandsIssued: UInt64 = 0
    /// For look-up only.
    var commands: [UInt64: CommandTarget] = [:]

    var map = MapJournal()
    // Gathered in a step, sent at its end.
    var changes: [MapChange] = []
    var nominations: [(group: GroupID, nomination: Nomination)] = []
    var outgoing = SortedRecords<NodeID, [NodeCommand]>()
    var answers: [(RequestID, DatabaseError?)] = []

    // Counters since the start, for metrics.
    public internal(set) var nominationCount: UInt64 = 0
    public internal(set) var leaderChangeCount: UInt64 = 0
    public internal(set) var heartbeatCount: UInt64 = 0
    public internal(set) var heartbeatsIgnoredCount: UInt64 = 0

    /// Reads everything durable from `snapshot`, which holds all keys, except those of shards when
    /// `standby` has them, of the same revision. `lease` is a fresh lease of this process;
    /// `clusterCandidate` becomes the cluster id when the store is empty (not zero).
    public init(
        settings: ControllerSettings, snapshot: MetadataSnapshot, standby: StandbyShards? = nil,
        lease: LeaseID, clusterCandidate: UInt64, now: Instant
    ) throws(DatabaseError) {
        precondition(clusterCandidate != 0)
        let durable = try DurableState(snapshot)
        self.settings = settings
        runtime = RuntimeSettings(settings)
        configured = runtime
        self.lease = lease
        isFounding = durable.cluster == 0
        cluster = isFounding ? clusterCandidate : durable.cluster
        term = durable.term
        termRevision = durable.termRevision
        actingBefore = durable.acting
        ids = durable.ids
        issuedBelow = durable.issuedBelow
        restoredAt = durable.restoredAt
        revision = snapshot.revision
        for node in durable.nodes {
            nodes.set(NodeStatus(record: node, lastHeard: now), for: node.id)
        }
        for record in durable.groups { insert(record) }
        for (group, nomination) in durable.nominations {
            groups.update(group) { $0.nomination = nomination }
        }
        for table in durable.tables { tables.set(table, for: table.id) }
        if let standby {
            precondition(standby.revision == snapshot.revision)
            shards = standby.shards
            shardCounts = standby.counts
        }
        for shard in durable.shards {
            shards.set(shard, for: shard.id)
            shardCounts[shard.group, default: 0] += 1
        }
        for id in durable.held { nodes.update(id) { $0.isHeld = true } }
        for replica in durable.retired { retired.set(replica, for: replica.replica) }
        for record in durable.former {
            former.set(FormerShardStatus(record: record), for: record.operation)
        }
        nextOperation = durable.nextOperation
        decisions = durable.decisions
        storedDecision = decisions.last?.number ?? 0
        nextDecision = storedDecision + 1
        auditHead = durable.auditHead
        for record in durable.operations {
            var status = OperationStatus(record: record, reachedAt: now)
            status.isStoring = false
            status.isStored = true
            operations.set(status, for: record.id)
        }
        resumeProcedures()
        rules.objections = adopt(durable.settings)
        for history in durable.histories { rules.histories.set(history, for: history.shard) }
        for seam in durable.cold { rules.cold.set(seam, for: seam.upper) }
        for (node, weight) in durable.weights { nodes.update(node) { $0.weight = weight } }
        for (node, until) in durable.maintenances {
            nodes.update(node) { $0.maintenanceUntil = until }
        }
    }

    public var isActing: Bool { standing == .acting }
    public var hasResigned: Bool { standing == .resigned }
    public var proceduresInFlight: Int { procedures.count }

    /// Takes one event. Effects are appended in the order in which they must be carried out.
    public mutating func step(
        _ event: ControllerEvent, now: Instant, into effects: inout ControllerEffects
    ) {
        if standing == .resigned {
            switch event {
            case .tableRequest(let request, _): effects.append(.answer(request, notActing))
            case .operationRequest(let request, _):
                effects.append(.operationAnswer(request, .failure(notActing)))
            default: break
            }
            return
        }
        stepTime = now
        switch event {
        case .start: takeOver(into: &effects)
        case .tick: if isActing { tick(now: now, into: &effects) }
        case .stored(let ticket, let revision):
            stored(ticket, at: revision, now: now, into: &effects)
        case .storeFailed(_, let error): return resign(error, into: &effects)
        case .leaseLost:
            return resign(
                DatabaseError(.fenced, "the lease to act has ended"), into: &effects)
        case .register(let connection, let registration):
            register(connection, registration, now: now, into: &effects)
        case .heartbeat(let connection, let heartbeat):
            observe(heartbeat, on: connection, now: now, into: &effects)
        case .outcomes(let connection, let outcomes):
            observe(outcomes, on: connection, now: now, into: &effects)
        case .unreachable(let connection, let node):
            observeUnreachable(node, by: connection, now: now, into: &effects)
        case .connectionClosed(let connection): closed(connection, now: now, into: &effects)
        case .tableRequest(let request, let body):
            handle(request, body, now: now, into: &effects)
        case .operationRequest(let request, let body):
            handle(request, body, now: now, into: &effects)
        case .backupEnded(let id, let result):
            backupEnded(id, result, now: now, into: &effects)
        case .audit(let entry): audit(entry, into: &effects)
        case .clock(let milliseconds): clock = (now, milliseconds)
        }
        flush(now: now, into: &effects)
    }

    // MARK: The end of a step

    private mutating func flush(now: Instant, into effects: inout ControllerEffects) {
        guard standing != .idle else { return }
        let touched = touchedProcedures
        touchedProcedures.removeAll()
        for table in touched { pump(table, now: now, into: &effects) }
        let moved = touchedOperations
        touchedOperations.removeAll()
        for operation in moved { pump(operation, now: now, into: &effects) }
        if !nominations.isEmpty {
            let list = nominations
            nominations.removeAll()
            var transaction = MetadataTransaction()
            for (group, nomination) in list {
                transaction.put(StoreKey.nomination(group)) { nomination.encode(into: &$0) }
            }
            store(transaction, then: .nominated(list), into: &effects)
            let named = list.prefix(8).map {
                "replica \($0.nomination.nominee) of group \($0.group) for term \($0.nomination.term)"
            }
            effects.append(
                .decided(
                    "nominates " + named.joined(separator: ", ")
                        + (list.count > 8 ? " and \(list.count - 8) more" : "")))
        }
        storeDecisions(into: &effects)
        if !changes.isEmpty {
            effects.append(.publish(map.append(changes)))
            changes.removeAll()
        }
        if !outgoing.isEmpty {
            for node in nodes.elements {
                guard let commands = outgoing[node.record.id], let connection = node.connection
                else { continue }
                effects.append(
                    .send(
                        connection,
                        NodeCommands(
                            controllerTerm: term, sequence: node.sequence, commands: commands)))
            }
            outgoing = SortedRecords()
        }
        for (request, error) in answers { effects.append(.answer(request, error)) }
        answers.removeAll()
        for (request, result) in operationAnswers {
            effects.append(.operationAnswer(request, result))
        }
        operationAnswers.removeAll()
    }

    // MARK: Time

    private mutating func tick(now: Instant, into effects: inout ControllerEffects) {
        checkNodes(now: now, into: &effects)
        maybeForm(now: now, into: &effects)
        for group in attention { consider(group, now: now, into: &effects) }
        for procedure in procedures.elements where procedure.phase == .commanding {
            touch(procedure.table.id)
        }
        expireWaiters(now: now)
        retryParked(now: now, into: &effects)
        moveLeadersOffIllNodes(now: now, into: &effects)
        maybeRebalance(now: now, into: &effects)
        judgeLags(now: now, into: &effects)
        repair(now: now, into: &effects)
        applyRules(now: now, into: &effects)
        for operation in openOperations {
            pump(operation.record.id, now: now, into: &effects)
        }
        sweepRetired(now: now, into: &effects)
        releaseFormerShards(now: now, into: &effects)
    }

    // MARK: Small helpers

    mutating func attend(_ group: GroupID) { Self.insert(group, into: &attention) }
    mutating func touch(_ table: TableID) { Self.insert(table, into: &touchedProcedures) }

    static func insert<ID: Comparable>(_ id: ID, into list: inout [ID]) {
        if let last = list.last, last < id { return list.append(id) }
        let position = list.firstIndex { $0 >= id } ?? list.count
        if position < list.count, list[position] == id { return }
        list.insert(id, at: position)
    }
}
