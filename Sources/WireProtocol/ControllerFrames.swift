// What controllers say about themselves: to nodes and routers, and to each other.

import KVBase

/// Whether the speaking controller acts. A node registers, and a router asks for the map, when it does.
public struct ControllerStanding: Hashable, Sendable {
    public var isActing: Bool
    /// Who acts as far as the speaker knows; empty when it does not know.
    public var acting: String
    public var address: String

    public init(isActing: Bool, acting: String, address: String) {
        self.isActing = isActing
        self.acting = acting
        self.address = address
    }

    public func encode(into writer: inout ByteWriter) {
        writer.write(isActing)
        writer.write(acting)
        writer.write(address)
    }

    public init(from reader: inout ByteReader) throws(DatabaseError) {
        isActing = try reader.readBool()
        acting = try reader.readString()
        address = try reader.readString()
    }
}

/// The first frame on a connection from controller to controller.
public struct ControllerIntroduction: Hashable, Sendable {
    /// One controller as the speaker knows it.
    public struct Place: Hashable, Sendable {
        public var replica: ReplicaID
        public var name: String
        public var address: String

        public init(replica: ReplicaID, name: String, address: String) {
            self.replica = replica
            self.name = name
            self.address = address
        }
    }

    public var cluster: UInt64
    public var sender: Place
    public var target: Place
    /// The target, when its directory is empty, becomes the replica it is addressed as.
    public var mayAdopt: Bool
    /// All that the speaker knows, itself included.
    public var known: [Place]

    public init(
        cluster: UInt64, sender: Place, target: Place, mayAdopt: Bool, known: [Place]
    ) {
        self.cluster = cluster
        self.sender = sender
        self.target = target
        self.mayAdopt = mayAdopt
        self.known = known
    }

    public func encode(into writer: inout ByteWriter) {
        writer.write(cluster)
        sender.encode(into: &writer)
        target.encode(into: &writer)
        writer.write(mayAdopt)
        writer.write(list: known) { writer, place in place.encode(into: &writer) }
    }

    public init(from reader: inout ByteReader) throws(DatabaseError) {
        cluster = try reader.readUInt64()
        sender = try Place(from: &reader)
        target = try Place(from: &reader)
        mayAdopt = try reader.readBool()
        known = try reader.readList(elementBytesMin: 12) { (reader) throws(DatabaseError) in
            try Place(from: &reader)
        }
    }
}

extension ControllerIntroduction.Place {
    func encode(into writer: inout ByteWriter) {
        writer.write(replica)
        writer.write(name)
        writer.write(address)
    }

    init(from reader: inout ByteReader) throws(DatabaseError) {
        replica = try reader.read()
        name = try reader.readString()
        address = try reader.readString()
    }
}

/// A piece of a metadata snapshot on its way to a controller that is too far behind for the log.
public struct MetadataChunk: Hashable, Sendable {
    /// Bytes of a snapshot in one chunk, and chunks on their way at a time.
    public static let byteCount = 1 << 20
    public static let window = 4
    /// Longest snapshot that is taken.
    public static let snapshotBytesMax: UInt64 = 4 << 30

    public var sender: ReplicaID
    /// Drawn per sending.
    public var snapshot: UInt64
    public var total: UInt64
    public var offset: UInt64
    public var bytes: Bytes

    public init(
        sender: ReplicaID, snapshot: UInt64, total: UInt64, offset: UInt64, bytes: Bytes
    ) {
        self.sender = sender
        self.snapshot = snapshot
        self.total = total
        self.offset = offset
        self.bytes = bytes
    }

    public func encode(into writer: inout ByteWriter) {
        writer.write(sender)
        writer.write(snapshot)
        writer.write(total)
        writer.write(offset)
        writer.write(bytes)
    }

    public init(from reader: inout ByteReader) throws(DatabaseError) {
        sender = try reader.read()
        snapshot = try reader.readUInt64()
        total = try reader.readUInt64()
        offset = try reader.readUInt64()
        bytes = try reader.readBytes()
    }
}

/// The receiver has everything of a snapshot below `next`.
public struct MetadataChunkAck: Hashable, Sendable {
    public var receiver: ReplicaID
    public var snapshot: UInt64
    public var next: UInt64

    public init(receiver: ReplicaID, snapshot: UInt64, next: UInt64) {
        self.receiver = receiver
        self.snapshot = snapshot
        self.next = next
    }

    public func encode(into writer: inout ByteWriter) {
        writer.write(receiver)
        writer.write(snapshot)
        writer.write(next)
    }

    public init(from reader: inout ByteReader) throws(DatabaseError) {
        receiver = try reader.read()
        snapshot = try reader.readUInt64()
        next = try reader.readUInt64()
    }
}
