// Rebuilds the metadata from what the nodes hold and, where there is one, from an older state of the
// metadata: for controllers that were all lost (docs/decisions/0012-restored-metadata-follows-the-groups.md).
//
// What a group has applied to its own log decides about its members and its shards. The older state
// tells what no group knows: names, settings, what nodes are to hold. Ids, epochs and terms go on above
// everything that can have been issued.

import KVBase
import ShardCore

/// What became of the metadata, and what was found on the way.
public struct RecoveredMetadata: Sendable {
    public struct Finding: Hashable, Sendable, Encodable {
        /// `refused`: nothing may be restored from this. `incomplete`: something is missing, and only an
        /// operator can say that it may be. `changed`: differs from the older state, as it must. `silent`:
        /// a node that does not answer. `damaged`: a part of the backup that was not needed.
        public var kind: String
        public var text: String
    }

    public var cluster: UInt64
    /// Of every record; above all revisions of the older state.
    public var revision: Revision
    /// In order of key.
    public var records: [MetadataRecord]
    public var controllerTerm: Term
    public var findings: [Finding]
    public var nodes: Int
    public var groups: Int
    /// Groups whose state is not sure, because no leader of theirs was heard.
    public var unconfirmed: [GroupID]
    public var tables: Int
    public var shards: Int
    /// Moves of shards that go on where they were.
    public var moves: Int

    public mutating func note(_ kind: String, _ texts: [String]) {
        findings += texts.map { Finding(kind: kind, text: $0) }
    }
}

public struct MetadataRecovery {
    /// What the audit log is to say of the request.
    public struct Request: Sendable {
        /// `alice@host`.
        public var caller: String
        /// `restore` or `recover`.
        public var verb: String
        /// As JSON.
        public var arguments: String
        /// SHA-256: cores import no library.
        public var hash: @Sendable (Bytes) -> Bytes

        public init(
            caller: String, verb: String, arguments: String,
            hash: @escaping @Sendable (Bytes) -> Bytes
        ) {
            self.caller = caller
            self.verb = verb
            self.arguments = arguments
            self.hash = hash
        }
    }

    /// Added to what is known to have been issued: more than can have been issued unseen.
    static let idJump: UInt32 = 1_000_000
    static let shardJump: UInt32 = 4_000_000
    static let termJump: UInt64 = 1_000_000
    static let revisionJump: UInt64 = 1_000_000

    /// A group as the nodes tell of it.
    struct KnownGroup {
        var id: GroupID
        /// Its state counts: of the leader, or else of whoever applied most.
        var authority: ReplicaHolding?
        /// A leader that serves told it. Without one nothing is sure: a replica that was just started
        /// knows what it has in its log, not what of it is committed.
        var isConfirmed = false
        var highestTerm = Term.none
    }

    /// A shard in a group.
    struct Claim {
        var group: GroupID
        var isConfirmed: Bool
        var holding: ShardHolding
        var shard: Shard {
            var shard = holding.shard
            shard.group = group
            return shard
        }
    }

    let base: DurableState
    /// Of the older state.
    let olderShards: SortedRecords<ShardID, Shard>
    let olderTables: SortedRecords<TableID, Table>
    let holdings: [NodeHoldings]
    /// Wall clock in milliseconds since 1970.
    let clock: UInt64
    let origin: String
    let request: Request
    /// Where the older state's audit log ends.
    let auditHead: AuditHead
    var findings: [RecoveredMetadata.Finding] = []
    /// The newest map that a node kept.
    var book: NodeHoldings?
    /// The map is as new as the older state, or newer.
    var isBookNewer = false

    var nodes = SortedRecords<NodeID, Node>()
    var known = SortedRecords<GroupID, KnownGroup>()
    var groups = SortedRecords<GroupID, GroupRecord>()
    var tables = SortedRecords<TableID, Table>()
    var shards = SortedRecords<ShardID, Shard>()
    var operations: [OperationRecord] = []
    /// Those that the restore ends.
    var ended: [OperationID] = []
    var former: [FormerShard] = []
    var retired = SortedRecords<ReplicaID, RetiredReplica>()
    var ids: IDAllocators
    var nextOperation: UInt32

    /// `older`: the records of a backup, empty when there is none; `revision` is above everything that
    /// the backup holds. `holdings` of one node each. `origin` says where the older state is from.
    ///
    /// Throws when the older state cannot be read or nothing tells which cluster this is.
    public static func recover(
        older: [MetadataRecord], revision: Revision, holdings: [NodeHoldings], clock: UInt64,
        origin: String, request: Request
    ) throws(DatabaseError) -> RecoveredMetadata {
        var recovery = try MetadataRecovery(
            older: older, holdings: holdings, clock: clock, origin: origin, request: request)
        let cluster = try recovery.findCluster()
        recovery.findGroups()
        recovery.findNodes()
        recovery.findTables()
        recovery.settleOperations()
        recovery.retireLeftovers()
        recovery.noteRestore()
        return recovery.result(cluster, older, Revision(revision.rawValue + Self.revisionJump))
    }

    private init(
        older: [MetadataRecord], holdings: [NodeHoldings], clock: UInt64, origin: String,
        request: Request
    ) throws(DatabaseError) {
        let base = try DurableState(MetadataSnapshot(revision: .none, records: older))
        var shards = SortedRecords<ShardID, Shard>()
        for shard in base.shards { shards.set(shard, for: shard.id) }
        var tables = SortedRecords<TableID, Table>()
        for table in base.tables { tables.set(table, for: table.id) }
        self.base = base
        olderShards = shards
        olderTables = tables
        self.holdings = holdings.sorted { $0.node.id < $1.node.id }
        self.clock = clock
        self.origin = origin
        self.request = request
        auditHead = try AuditHead(older.first { $0.key == StoreKey.auditHead })
        ids = base.ids
        nextOperation = base.nextOperation
        for holding in self.holdings where holding.mapRevision > book?.mapRevision ?? .none {
            book = holding
        }
        // A revision of the map is the controller's term and a number of that term.
        if let book { isBookNewer = book.mapRevision.rawValue >> 32 >= base.term.rawValue }
    }

    mutating func note(_ kind: String, _ text: String) {
        findings.append(RecoveredMetadata.Finding(kind: kind, text: text))
    }

    private mutating func findCluster() throws(DatabaseError) -> UInt64 {
        let named = ([base.cluster] + holdings.map(\.cluster)).first { $0 != 0 }
        guard let cluster = named else {
            throw DatabaseError(
                .refused, "no node that answered belongs to a cluster: there is nothing to recover")
        }
        for holding in holdings where holding.cluster != 0 && holding.cluster != cluster {
            note(
                "refused",
                "node \(holding.node.name) at \(holding.node.rpcAddress) belongs to cluster "
                    + "\(hex(holding.cluster)), not \(hex(cluster))")
        }
        for holding in holdings where holding.isControlled {
            note(
                "refused",
                "node \(holding.node.name) answers to a controller that acts: stop all "
                    + "controllers of this cluster first, and never start them again with their data"
            )
        }
        return cluster
    }

    // MARK: Groups

    private mutating func findGroups() {
        var replicas = SortedRecords<GroupID, [ReplicaHolding]>()
        for holding in holdings {
            for replica in holding.replicas {
                replicas.set((replicas[replica.group] ?? []) + [replica], for: replica.group)
            }
        }
        for heard in replicas.elements {
            guard let first = heard.first else { continue }
            known.set(Self.weigh(first.group, heard), for: first.group)
        }
        for stored in base.groups + (book?.groups ?? []).map({ GroupRecord(group: $0) })
        where known[stored.group.id] == nil {
            known.set(KnownGroup(id: stored.group.id), for: stored.group.id)
        }
        for group in known.elements {
            if let authority = group.authority { place(group, authority) } else { keep(group.id) }
        }
    }

    private static func weigh(_ id: GroupID, _ heard: [ReplicaHolding]) -> KnownGroup {
        var group = KnownGroup(id: id)
        group.highestTerm = heard.map(\.term).max() ?? .none
        let leader = heard.filter(\.isServing).max { $0.term < $1.term }
        let furthest = heard.filter { !$0.voters.isEmpty }.max { $0.applied < $1.applied }
        group.authority = leader ?? furthest
        group.isConfirmed = leader != nil
        return group
    }

    /// Its own membership says where its replicas are.
    private mutating func place(_ group: KnownGroup, _ authority: ReplicaHolding) {
        let stored = base.groups.first { $0.group.id == group.id }?.group
        let mapped = book?.groups.first { $0.id == group.id }
        var record = Group(
            id: group.id, engine: authority.engine, placements: authority.voters, state: .active)
        for index in record.placements.indices {
            let voter = record.placements[index]
            let own = holdings.first { $0.node.id == voter.node }?.replicas
                .first { $0.replica == voter.replica }?.disk
            let told = [mapped, stored].compactMap { group in
                group?.placements.first { $0.replica == voter.replica }?.disk
            }
            record.placements[index].disk = own ?? told.first ?? 0
        }
        if let stored, stored.placements.map(\.replica) != record.placements.map(\.replica) {
            note(
                "changed",
                "group \(group.id) has the replicas \(Self.list(record.placements)), not "
                    + "\(Self.list(stored.placements))")
        } else if stored == nil, !base.nodes.isEmpty {
            note("changed", "group \(group.id) was formed after the older state")
        }
        if authority.isChanging {
            note(
                "incomplete",
                "group \(group.id) is changing its members: repeat this in a moment")
        }
        if !group.isConfirmed {
            note(
                "incomplete",
                "group \(group.id): of its replicas \(Self.list(record.placements)) none that answers "
                    + "leads; what is known of it may be old")
        }
        // Created for good: an empty replica under an old id must never come into being.
        set(record, createdMask: UInt8((1 << record.placements.count) - 1))
    }

    /// No replica of it was heard of.
    private mutating func keep(_ id: GroupID) {
        let mapped = book?.groups.first { $0.id == id }
        let stored = base.groups.first { $0.group.id == id }
        guard var record = (isBookNewer ? mapped : nil) ?? stored?.group ?? mapped else { return }
        let answered = record.placements.filter { place in
            holdings.contains { $0.node.id == place.node }
        }
        guard answered.count < record.placements.count else {
            note(
                "changed", "group \(id): all its nodes answer and none has a replica: it is gone")
            known.remove(id)
            return
        }
        note(
            "incomplete",
            "group \(id): none of its replicas \(Self.list(record.placements)) answers; it stays as "
                + "the older state has it")
        record.state = .active
        set(record, createdMask: UInt8((1 << record.placements.count) - 1))
    }

    private mutating func set(_ group: Group, createdMask: UInt8) {
        groups.set(GroupRecord(group: group, createdMask: createdMask), for: group.id)
    }

    // MARK: Nodes

    private mutating func findNodes() {
        for node in base.nodes { nodes.set(node, for: node.id) }
        if let book {
            for node in book.nodes where isBookNewer || nodes[node.id] == nil {
                nodes.set(node, for: node.id)
            }
        }
        for holding in holdings where holding.node.id != .none {
            var node = holding.node
            // Operators change it, nodes do not know.
            if let known = nodes[node.id] {
                node.isSpare = known.isSpare
            } else {
                note("changed", "node \(node.name) was admitted after the older state")
            }
            nodes.set(node, for: node.id)
        }
        for record in groups.elements {
            for place in record.group.placements {
                if nodes[place.node] == nil {
                    note(
                        "incomplete",
                        "node \(place.node), where replica \(place.replica) of group "
                            + "\(record.group.id) is, is known to nobody; it is taken in when it "
                            + "comes")
                    nodes.set(
                        Node(
                            id: place.node, name: Controller.unknownNode(place.node),
                            rpcAddress: "", adminAddress: "", zone: "", isSpare: false,
                            diskCount: place.disk + 1), for: place.node)
                }
                nodes.update(place.node) { $0.isSpare = false }
            }
        }
        for node in nodes.elements {
            let isHere = holdings.contains { $0.node.id == node.id }
            let isUsed = groups.elements.contains { $0.group.placementIndex(node: node.id) != nil }
            if !isHere, !isUsed, isBookNewer,
                book?.nodes.contains(where: { $0.id == node.id }) == false
            {
                note("changed", "node \(node.name) was removed after the older state")
                nodes.remove(node.id)
            } else if !isHere {
                note(
                    "silent",
                    "node \(node.name) does not answer; it stays as the older state has it")
            }
        }
        // Of several with one name the one that answers keeps it, else the newest.
        for node in nodes.elements {
            let isHere = holdings.contains { $0.node.id == node.id }
            let hasOlderRight = nodes.elements.contains { other in
                guard other.id != node.id, other.name == node.name else { return false }
                let isOtherHere = holdings.contains { $0.node.id == other.id }
                return isOtherHere == isHere ? other.id > node.id : isOtherHere
            }
            if hasOlderRight { nodes.update(node.id) { $0.name = "\(node.name)~\(node.id)" } }
        }
    }

    // MARK: Leftovers

    /// Replicas that their group does not count as voters: those that were replaced, and learners of
    /// replacements that nobody goes on with.
    private mutating func retireLeftovers() {
        for replica in base.retired { retired.set(replica, for: replica.replica) }
        for holding in holdings {
            for replica in holding.replicas {
                guard let group = known[replica.group], group.isConfirmed,
                    let authority = group.authority,
                    !authority.isChanging,
                    !authority.voters.contains(where: { $0.replica == replica.replica })
                else { continue }
                let isLearner = authority.learners.contains(replica.replica)
                note(
                    "changed",
                    "replica \(replica.replica) of group \(replica.group) on node "
                        + "\(holding.node.name) is "
                        + (isLearner
                            ? "a learner of a replacement that ends, and is deleted"
                            : "no member any more, and is deleted"))
                retired.set(
                    RetiredReplica(
                        group: replica.group, replica: replica.replica, node: holding.node.id,
                        reason: "is no voter of its group, as found by the restore"),
                    for: replica.replica)
            }
        }
        let voters = groups.elements.flatMap { $0.group.placements.map(\.replica) }.sorted()
        for replica in retired.elements where voters.contains(replica.replica) {
            retired.remove(replica.replica)
        }
    }

    // MARK: Helpers

    static func list(_ placements: [Placement]) -> String {
        placements.map { "\($0.replica) on node \($0.node)" }.joined(separator: ", ")
    }
}

extension Group {
    func placementIndex(node: NodeID) -> Int? { placements.firstIndex { $0.node == node } }
}
