// What nodes tell the controllers: registration, heartbeats, outcomes.

import KVBase

/// A node introduces itself on every connection to a controller.
public struct NodeRegistration: Hashable, Sendable {
    /// From the identity file of the data directories; `.none` for a new or wiped node.
    public var node: NodeID
    /// Likewise; 0 for a new node.
    public var cluster: UInt64
    /// Random per process start.
    public var incarnation: UInt64
    public var name: String
    public var rpcAddress: String
    public var adminAddress: String
    public var zone: String
    /// Asked for by configuration; only heeded when the node is new.
    public var isSpare: Bool
    public var diskPaths: [String]

    public init(
        node: NodeID, cluster: UInt64, incarnation: UInt64, name: String, rpcAddress: String,
        adminAddress: String, zone: String, isSpare: Bool, diskPaths: [String]
    ) {
        self.node = node
        self.cluster = cluster
        self.incarnation = incarnation
        self.name = name
        self.rpcAddress = rpcAddress
        self.adminAddress = adminAddress
        self.zone = zone
        self.isSpare = isSpare
        self.diskPaths = diskPaths
    }

    public func encode(into writer: inout ByteWriter) {
        writer.write(node)
        writer.write(cluster)
        writer.write(incarnation)
        writer.write(name)
        writer.write(rpcAddress)
        writer.write(adminAddress)
        writer.write(zone)
        writer.write(isSpare)
        writer.write(list: diskPaths) { writer, path in writer.write(path) }
    }

    public init(from reader: inout ByteReader) throws(DatabaseError) {
        node = try reader.read()
        cluster = try reader.readUInt64()
        incarnation = try reader.readUInt64()
        name = try reader.readString()
        rpcAddress = try reader.readString()
        adminAddress = try reader.readString()
        zone = try reader.readString()
        isSpare = try reader.readBool()
        diskPaths = try reader.readList(elementBytesMin: 4) { (reader) throws(DatabaseError) in
            try reader.readString()
        }
    }
}

/// The controller's answer: the identity to keep.
public struct NodeAdmission: Hashable, Sendable {
    public var node: NodeID
    public var cluster: UInt64
    public var controllerTerm: Term

    public init(node: NodeID, cluster: UInt64, controllerTerm: Term) {
        self.node = node
        self.cluster = cluster
        self.controllerTerm = controllerTerm
    }

    public func encode(into writer: inout ByteWriter) {
        writer.write(node)
        writer.write(cluster)
        writer.write(controllerTerm)
    }

    public init(from reader: inout ByteReader) throws(DatabaseError) {
        node = try reader.read()
        cluster = try reader.readUInt64()
        controllerTerm = try reader.read()
    }
}

/// One data directory.
public struct DiskReport: Hashable, Sendable {
    public enum State: UInt8, Sendable {
        case healthy = 1
        /// Probes take longer than the bound.
        case slow = 2
        /// An error was seen: final until the node restarts.
        case failed = 3
    }

    public var path: String
    public var state: State
    /// Equal for directories of a node that share a file system; 0 when it is not known.
    public var fileSystem: UInt64
    /// Of the file system.
    public var totalBytes: UInt64
    public var freeBytes: UInt64
    /// In engine and log of this directory.
    public var dataBytes: UInt64
    /// How long the newest probe took or has been waiting: an fsynced write through the log, and a
    /// read through the engine.
    public var logDelay: Nanoseconds
    public var engineDelay: Nanoseconds

    public init(
        path: String, state: State, fileSystem: UInt64 = 0, totalBytes: UInt64, freeBytes: UInt64,
        dataBytes: UInt64, logDelay: Nanoseconds = .zero, engineDelay: Nanoseconds = .zero
    ) {
        self.path = path
        self.state = state
        self.fileSystem = fileSystem
        self.totalBytes = totalBytes
        self.freeBytes = freeBytes
        self.dataBytes = dataBytes
        self.logDelay = logDelay
        self.engineDelay = engineDelay
    }
}

/// One member of a group, as the group's leader sees it.
public struct MemberReport: Hashable, Sendable {
    /// Raw values are on the wire.
    public enum Role: UInt8, Sendable {
        case voter = 1
        /// A voter of the membership that is being left.
        case outgoing = 2
        case learner = 3
    }

    public var replica: ReplicaID
    public var role: Role
    /// Its log is known to equal the leader's up to here.
    public var match: LogIndex
    /// Bytes of the snapshot under way that were sent; nil when none is.
    public var snapshotBytes: UInt64?

    public init(replica: ReplicaID, role: Role, match: LogIndex, snapshotBytes: UInt64?) {
        self.replica = replica
        self.role = role
        self.match = match
        self.snapshotBytes = snapshotBytes
    }

    func encode(into writer: inout ByteWriter) {
        writer.write(replica)
        writer.write(role.rawValue)
        writer.write(match)
        writer.write(snapshotBytes != nil)
        if let snapshotBytes { writer.write(snapshotBytes) }
    }

    init(from reader: inout ByteReader) throws(DatabaseError) {
        replica = try reader.read()
        role = try reader.readEnum()
        match = try reader.read()
        snapshotBytes = try reader.readBool() ? try reader.readUInt64() : nil
    }
}

/// One replica, as its node sees it.
public struct ReplicaReport: Hashable, Sendable {
    public enum Role: UInt8, Sendable {
        case follower = 1
        case candidate = 2
        case leader = 3
        case learner = 4
    }

    public enum State: UInt8, Sendable {
        case active = 1
        /// Receiving a snapshot.
        case restoring = 2
        /// Its disk failed.
        case failed = 3
    }

    public var group: GroupID
    public var replica: ReplicaID
    public var role: Role
    public var state: State
    public var term: Term
    /// The last entry in its log: decides who may be nominated.
    public var lastTerm: Term
    public var lastIndex: LogIndex
    public var commit: LogIndex
    public var applied: LogIndex
    /// The leader it follows; `.none` when it knows none.
    public var leader: ReplicaID
    /// A leader that can serve: its own term's first entry is applied.
    public var isServing: Bool
    /// Of a leader: who belongs to the group by the newest membership that is committed. Empty for
    /// other roles.
    public var members: [MemberReport]

    public init(
        group: GroupID, replica: ReplicaID, role: Role, state: State, term: Term, lastTerm: Term,
        lastIndex: LogIndex, commit: LogIndex, applied: LogIndex, leader: ReplicaID,
        isServing: Bool, members: [MemberReport] = []
    ) {
        self.group = group
        self.replica = replica
        self.role = role
        self.state = state
        self.term = term
        self.lastTerm = lastTerm
        self.lastIndex = lastIndex
        self.commit = commit
        self.applied = applied
        self.leader = leader
        self.isServing = isServing
        self.members = members
    }
}

/// The size of one shard, counted by the node that leads its group.
public struct ShardReport: Hashable, Sendable {
    public var shard: ShardID
    public var epoch: Epoch
    /// Keys, values and record overhead, without the engine's own.
    public var bytes: UInt64
    public var records: UInt64
    /// A routed key that halves the bytes; inside the shard and not its start. Nil when there is none.
    public var middle: Bytes?
    /// Of the bytes.
    public var spread: KeySpread

    public init(
        shard: ShardID, epoch: Epoch, bytes: UInt64, records: UInt64, middle: Bytes? = nil,
        spread: KeySpread = KeySpread()
    ) {
        self.shard = shard
        self.epoch = epoch
        self.bytes = bytes
        self.records = records
        self.middle = middle
        self.spread = spread
    }
}

/// What a node sends every `heartbeatInterval` to every controller.
public struct NodeHeartbeat: Hashable, Sendable {
    public var node: NodeID
    public var incarnation: UInt64
    public var sequence: UInt64
    /// The revision of the map it follows.
    public var mapRevision: Revision
    /// Longest turn of its event loop since the last heartbeat.
    public var loopDelay: Nanoseconds
    public var disks: [DiskReport]
    public var replicas: [ReplicaReport]
    /// Those whose figures changed since the last heartbeat (all of them on a new connection).
    public var shards: [ShardReport]
    /// About once a second.
    public var load: LoadReport?
    public var copies: [CopyReport]
    public var digests: [ShardDigest]

    public init(
        node: NodeID, incarnation: UInt64, sequence: UInt64, mapRevision: Revision,
        loopDelay: Nanoseconds, disks: [DiskReport], replicas: [ReplicaReport],
        shards: [ShardReport], load: LoadReport? = nil, copies: [CopyReport] = [],
        digests: [ShardDigest] = []
    ) {
        self.node = node
        self.incarnation = incarnation
        self.sequence = sequence
        self.mapRevision = mapRevision
        self.loopDelay = loopDelay
        self.disks = disks
        self.replicas = replicas
        self.shards = shards
        self.load = load
        self.copies = copies
        self.digests = digests
    }

    public func encode(into writer: inout ByteWriter) {
        writer.write(node)
        writer.write(incarnation)
        writer.write(sequence)
        writer.write(mapRevision)
        writer.write(loopDelay.count)
        writer.write(list: disks) { writer, disk in
            writer.write(disk.path)
            writer.write(disk.state.rawValue)
            writer.write(disk.fileSystem)
            writer.write(disk.totalBytes)
            writer.write(disk.freeBytes)
            writer.write(disk.dataBytes)
            writer.write(disk.logDelay.count)
            writer.write(disk.engineDelay.count)
        }
        writer.write(list: replicas) { writer, replica in
            writer.write(replica.group)
            writer.write(replica.replica)
            writer.write(replica.role.rawValue)
            writer.write(replica.state.rawValue)
            writer.write(replica.term)
            writer.write(replica.lastTerm)
            writer.write(replica.lastIndex)
            writer.write(replica.commit)
            writer.write(replica.applied)
            writer.write(replica.leader)
            writer.write(replica.isServing)
            writer.write(list: replica.members) { writer, member in member.encode(into: &writer) }
        }
        writer.write(list: shards) { writer, shard in
            writer.write(shard.shard)
            writer.write(shard.epoch)
            writer.write(shard.bytes)
            writer.write(shard.records)
            writer.write(shard.middle)
            shard.spread.encode(into: &writer)
        }
        writer.write(load != nil)
        load?.encode(into: &writer)
        writer.write(list: copies) { writer, copy in copy.encode(into: &writer) }
        writer.write(list: digests) { writer, digest in digest.encode(into: &writer) }
    }

    public init(from reader: inout ByteReader) throws(DatabaseError) {
        node = try reader.read()
        incarnation = try reader.readUInt64()
        sequence = try reader.readUInt64()
        mapRevision = try reader.read()
        loopDelay = Nanoseconds(try reader.readUInt64())
        disks = try reader.readList(elementBytesMin: 53) { (reader) throws(DatabaseError) in
            DiskReport(
                path: try reader.readString(), state: try reader.readEnum(),
                fileSystem: try reader.readUInt64(), totalBytes: try reader.readUInt64(),
                freeBytes: try reader.readUInt64(),
                dataBytes: try reader.readUInt64(),
                logDelay: Nanoseconds(try reader.readUInt64()),
                engineDelay: Nanoseconds(try reader.readUInt64()))
        }
        replicas = try reader.readList(elementBytesMin: 59) { (reader) throws(DatabaseError) in
            ReplicaReport(
                group: try reader.read(), replica: try reader.read(), role: try reader.readEnum(),
                state: try reader.readEnum(), term: try reader.read(),
                lastTerm: try reader.read(), lastIndex: try reader.read(),
                commit: try reader.read(), applied: try reader.read(), leader: try reader.read(),
                isServing: try reader.readBool(),
                members: try reader.readList(elementBytesMin: 14) {
                    (reader) throws(DatabaseError) in try MemberReport(from: &reader)
                })
        }
        shards = try reader.readList(elementBytesMin: 29) { (reader) throws(DatabaseError) in
            ShardReport(
                shard: try reader.read(), epoch: try reader.read(),
                bytes: try reader.readUInt64(), records: try reader.readUInt64(),
                middle: try reader.readOptionalBytes(), spread: try KeySpread(from: &reader))
        }
        load = try reader.readBool() ? try LoadReport(from: &reader) : nil
        copies = try reader.readList(elementBytesMin: 26) { (reader) throws(DatabaseError) in
            try CopyReport(from: &reader)
        }
        digests = try reader.readList(elementBytesMin: 40) { (reader) throws(DatabaseError) in
            try ShardDigest(from: &reader)
        }
    }
}
