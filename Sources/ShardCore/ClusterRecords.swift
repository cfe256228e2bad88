// The other records of the cluster map: shards, groups and nodes.

import KVBase

/// A shard as the cluster map holds it. Invariant: the shards of a table tile its routed keys.
public struct Shard: Hashable, Sendable {
    public enum State: UInt8, Sendable {
        /// Being created in its group.
        case creating = 1
        case active = 2
        case dropping = 3
    }

    public var id: ShardID
    public var table: TableID
    /// Of routed keys (see `Partitioning`).
    public var range: KeyRange
    public var group: GroupID
    public var epoch: Epoch
    public var state: State

    public init(
        id: ShardID, table: TableID, range: KeyRange, group: GroupID, epoch: Epoch, state: State
    ) {
        self.id = id
        self.table = table
        self.range = range
        self.group = group
        self.epoch = epoch
        self.state = state
    }

    public func encode(into writer: inout ByteWriter) {
        writer.write(id)
        writer.write(table)
        writer.write(range)
        writer.write(group)
        writer.write(epoch)
        writer.write(state.rawValue)
    }

    public init(from reader: inout ByteReader) throws(DatabaseError) {
        id = try reader.read()
        table = try reader.read()
        range = try reader.readKeyRange()
        group = try reader.read()
        epoch = try reader.read()
        state = try reader.readEnum()
    }
}

/// Where one replica of a group lives.
public struct Placement: Hashable, Sendable {
    public var replica: ReplicaID
    public var node: NodeID
    /// Position of the data directory in the node's configuration.
    public var disk: UInt8

    public init(replica: ReplicaID, node: NodeID, disk: UInt8) {
        self.replica = replica
        self.node = node
        self.disk = disk
    }

    public func encode(into writer: inout ByteWriter) {
        writer.write(replica)
        writer.write(node)
        writer.write(disk)
    }

    public init(from reader: inout ByteReader) throws(DatabaseError) {
        replica = try reader.read()
        node = try reader.read()
        disk = try reader.readUInt8()
    }
}

/// A replication group as the cluster map holds it.
public struct Group: Hashable, Sendable {
    public enum State: UInt8, Sendable {
        /// Its replicas are being created, or it has not had a leader yet.
        case creating = 1
        case active = 2
    }

    public var id: GroupID
    public var engine: EngineKind
    /// The voters, in order of replica id.
    public var placements: [Placement]
    public var state: State

    public init(id: GroupID, engine: EngineKind, placements: [Placement], state: State) {
        self.id = id
        self.engine = engine
        self.placements = placements
        self.state = state
    }

    public func encode(into writer: inout ByteWriter) {
        writer.write(id)
        writer.write(engine.rawValue)
        writer.write(list: placements) { writer, placement in placement.encode(into: &writer) }
        writer.write(state.rawValue)
    }

    public init(from reader: inout ByteReader) throws(DatabaseError) {
        id = try reader.read()
        engine = try reader.readEnum()
        placements = try reader.readList(elementBytesMin: 9) { (reader) throws(DatabaseError) in
            try Placement(from: &reader)
        }
        state = try reader.readEnum()
    }
}

/// A node as the cluster map holds it: what others need to reach it.
public struct Node: Hashable, Sendable {
    public var id: NodeID
    public var name: String
    /// `host:port` for routers, peers and controllers.
    public var rpcAddress: String
    /// `host:port` of its admin HTTP server.
    public var adminAddress: String
    /// Failure domain; groups spread over zones where zones are given. May be empty.
    public var zone: String
    /// Holds no replica and waits in the spare pool.
    public var isSpare: Bool
    /// Number of its data directories.
    public var diskCount: UInt8

    public init(
        id: NodeID, name: String, rpcAddress: String, adminAddress: String, zone: String,
        isSpare: Bool, diskCount: UInt8
    ) {
        self.id = id
        self.name = name
        self.rpcAddress = rpcAddress
        self.adminAddress = adminAddress
        self.zone = zone
        self.isSpare = isSpare
        self.diskCount = diskCount
    }

    public func encode(into writer: inout ByteWriter) {
        writer.write(id)
        writer.write(name)
        writer.write(rpcAddress)
        writer.write(adminAddress)
        writer.write(zone)
        writer.write(isSpare)
        writer.write(diskCount)
    }

    public init(from reader: inout ByteReader) throws(DatabaseError) {
        id = try reader.read()
        name = try reader.readString()
        rpcAddress = try reader.readString()
        adminAddress = try reader.readString()
        zone = try reader.readString()
        isSpare = try reader.readBool()
        diskCount = try reader.readUInt8()
    }
}

/// Who leads a group, as last heard. Not durable: the higher term wins.
public struct GroupLeader: Hashable, Sendable {
    public var group: GroupID
    public var term: Term
    /// `.none`: the leader of that term is known to be gone.
    public var node: NodeID

    public init(group: GroupID, term: Term, node: NodeID) {
        self.group = group
        self.term = term
        self.node = node
    }

    public func encode(into writer: inout ByteWriter) {
        writer.write(group)
        writer.write(term)
        writer.write(node)
    }

    public init(from reader: inout ByteReader) throws(DatabaseError) {
        group = try reader.read()
        term = try reader.read()
        node = try reader.read()
    }
}

extension ByteWriter {
    public mutating func write(_ range: KeyRange) {
        write(range.start)
        write(range.end)
    }
}

extension ByteReader {
    public mutating func readKeyRange() throws(DatabaseError) -> KeyRange {
        KeyRange(start: try readBytes(), end: try readOptionalBytes())
    }
}
