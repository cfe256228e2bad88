// Everything a node knows of the cluster by itself: what a map can be rebuilt from.

import KVBase

/// Where a group stands with a shard, without what only its replicas need.
public enum ShardStanding: Hashable, Sendable {
    /// Serves it alone.
    case owned
    /// Frozen for `to`. Not `isWhole`: on the way back, with records here and there.
    case fenced(to: GroupID, isWhole: Bool)
    /// Serves it while records of `from` are still being copied.
    case importing(from: GroupID)
}

/// A shard as a group's replicated state has it.
public struct ShardHolding: Hashable, Sendable {
    public var shard: Shard
    public var partitioning: Partitioning
    public var standing: ShardStanding

    public init(shard: Shard, partitioning: Partitioning, standing: ShardStanding) {
        self.shard = shard
        self.partitioning = partitioning
        self.standing = standing
    }

    /// Answers requests.
    public var isServing: Bool {
        if case .fenced = standing { return false }
        return true
    }

    func encode(into writer: inout ByteWriter) {
        shard.encode(into: &writer)
        partitioning.encode(into: &writer)
        switch standing {
        case .owned: writer.write(UInt8(0))
        case .fenced(let group, let isWhole):
            writer.write(UInt8(1))
            writer.write(group)
            writer.write(isWhole)
        case .importing(let group):
            writer.write(UInt8(2))
            writer.write(group)
        }
    }

    init(from reader: inout ByteReader) throws(DatabaseError) {
        shard = try Shard(from: &reader)
        partitioning = try Partitioning(from: &reader)
        switch try reader.readUInt8() {
        case 0: standing = .owned
        case 1: standing = .fenced(to: try reader.read(), isWhole: try reader.readBool())
        case 2: standing = .importing(from: try reader.read())
        case let kind: throw DatabaseError(.malformed, "standing \(kind) of a shard")
        }
    }
}

/// One replica with its group's state as far as it has applied the log.
public struct ReplicaHolding: Hashable, Sendable {
    public var group: GroupID
    public var replica: ReplicaID
    public var engine: EngineKind
    public var disk: UInt8
    /// Leads and serves: its state is the group's.
    public var isServing: Bool
    public var term: Term
    public var applied: LogIndex
    /// In force at `applied`; replica and node of each.
    public var voters: [Placement]
    public var learners: [ReplicaID]
    /// A change of the members is logged and not done.
    public var isChanging: Bool
    public var shards: [ShardHolding]

    public init(
        group: GroupID, replica: ReplicaID, engine: EngineKind, disk: UInt8, isServing: Bool,
        term: Term, applied: LogIndex, voters: [Placement], learners: [ReplicaID],
        isChanging: Bool = false, shards: [ShardHolding]
    ) {
        self.group = group
        self.replica = replica
        self.engine = engine
        self.disk = disk
        self.isServing = isServing
        self.term = term
        self.applied = applied
        self.voters = voters
        self.learners = learners
        self.isChanging = isChanging
        self.shards = shards
    }

    public func encode(into writer: inout ByteWriter) {
        writer.write(group)
        writer.write(replica)
        writer.write(engine.rawValue)
        writer.write(disk)
        writer.write(isServing)
        writer.write(term)
        writer.write(applied)
        writer.write(list: voters) { writer, voter in voter.encode(into: &writer) }
        writer.write(list: learners) { writer, replica in writer.write(replica) }
        writer.write(isChanging)
        writer.write(list: shards) { writer, shard in shard.encode(into: &writer) }
    }

    public init(from reader: inout ByteReader) throws(DatabaseError) {
        group = try reader.read()
        replica = try reader.read()
        engine = try reader.readEnum()
        disk = try reader.readUInt8()
        isServing = try reader.readBool()
        term = try reader.read()
        applied = try reader.read()
        voters = try reader.readList(elementBytesMin: 9) { (reader) throws(DatabaseError) in
            try Placement(from: &reader)
        }
        learners = try reader.readList(elementBytesMin: 4) { (reader) throws(DatabaseError) in
            try reader.read()
        }
        isChanging = try reader.readBool()
        shards = try reader.readList(elementBytesMin: 20) { (reader) throws(DatabaseError) in
            try ShardHolding(from: &reader)
        }
    }
}

/// A node's own records. On the wire the head comes first, then each replica by itself.
public struct NodeHoldings: Hashable, Sendable {
    public var cluster: UInt64
    /// As the node registers.
    public var node: Node
    /// The highest term of a controller that it obeyed since its start.
    public var controllerTerm: Term
    /// A controller that acts answers it now.
    public var isControlled: Bool
    /// The newest map that it saw, kept over restarts, without shards and leaders.
    public var mapRevision: Revision
    public var nodes: [Node]
    public var tables: [Table]
    /// Of these only while it runs.
    public var groups: [Group]
    public var replicas: [ReplicaHolding] = []

    public init(
        cluster: UInt64, node: Node, controllerTerm: Term, isControlled: Bool,
        mapRevision: Revision, nodes: [Node], tables: [Table], groups: [Group]
    ) {
        self.cluster = cluster
        self.node = node
        self.controllerTerm = controllerTerm
        self.isControlled = isControlled
        self.mapRevision = mapRevision
        self.nodes = nodes
        self.tables = tables
        self.groups = groups
    }

    /// Everything but the replicas.
    public func encodeHead(into writer: inout ByteWriter) {
        writer.write(cluster)
        node.encode(into: &writer)
        writer.write(controllerTerm)
        writer.write(isControlled)
        writer.write(mapRevision)
        writer.write(list: nodes) { writer, node in node.encode(into: &writer) }
        writer.write(list: tables) { writer, table in table.encode(into: &writer) }
        writer.write(list: groups) { writer, group in group.encode(into: &writer) }
    }

    public init(headFrom reader: inout ByteReader) throws(DatabaseError) {
        cluster = try reader.readUInt64()
        node = try Node(from: &reader)
        controllerTerm = try reader.read()
        isControlled = try reader.readBool()
        mapRevision = try reader.read()
        nodes = try reader.readList(elementBytesMin: 18) { (reader) throws(DatabaseError) in
            try Node(from: &reader)
        }
        tables = try reader.readList(elementBytesMin: 12) { (reader) throws(DatabaseError) in
            try Table(from: &reader)
        }
        groups = try reader.readList(elementBytesMin: 10) { (reader) throws(DatabaseError) in
            try Group(from: &reader)
        }
    }
}
