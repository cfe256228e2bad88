// Frames: how daemons cut a TCP stream into messages.

import Checksum
import KVBase

/// What a frame carries. Raw values are on the wire: never renumber.
public enum FrameKind: UInt8, Sendable {
    /// First frame of each side: who is speaking (`Hello`).
    case hello = 1
    /// Router to node: operations, each behind a 4-byte token.
    case requests = 2
    /// Node to router: answers by token.
    case responses = 3
    /// Node to node: replication messages of many groups.
    case peerMessages = 4
    /// Node to node: one piece of a snapshot, and its acknowledgement.
    case snapshotChunk = 5
    case snapshotAck = 6
    /// Node to controller and back.
    case register = 7
    case registered = 8
    case nodeHeartbeat = 9
    case nodeCommands = 10
    case commandOutcomes = 11
    /// Follower of the map to controller, and back.
    case watchMap = 12
    case mapUpdate = 13
    /// Whoever to controller: a request in JSON, and its answer.
    case adminRequest = 14
    case adminResponse = 15
    /// Node or router to controller: a node that refused or reset a connection.
    case unreachable = 16
    /// Either way: the sender is about to close, and why (code 1, message).
    case goodbye = 17
    /// Router to controller: create or drop a table, and the answer.
    case tableRequest = 18
    case tableResponse = 19
    /// Node to router: a group that the node leads and serves from now on (`GroupLeader`). Routers
    /// learn of a new leader without a controller in between.
    case leaderNotice = 20
    /// Node to node: reading records of a shard that moves, and the answer.
    case shardRead = 21
    case shardRecords = 22
    /// Operators' tool to node: what do you know of the cluster by yourself (no body); the answer is
    /// one frame with the head of `NodeHoldings`, one for each `ReplicaHolding`, and an empty one.
    case holdingsRequest = 23
    case holdings = 24
    /// Node to router, no body: the last frame before a planned end. What was not answered by now was
    /// not carried out and will not be.
    case finished = 25
    /// Controller to node or router: whether it acts, and if not, who does (`ControllerStanding`).
    case standing = 40
    /// Controller to controller: who dials and which replica it means to reach, and the answer of one
    /// that is this replica (`ControllerIntroduction`, a replica id).
    case introduction = 41
    case introduced = 42
    /// Whoever dialled to whoever accepted: how long does an answer take, and what is the time there
    /// (`Ping`, `Pong`).
    case ping = 43
    case pong = 44
    /// Operators' tool to node: check your disks, or how far is that (`ScrubRequest`), and the answer,
    /// a list of `ScrubStatus`.
    case scrubRequest = 45
    case scrubStatus = 46
}

/// A frame is a header of 12 bytes (body length 4, CRC32C of the rest of header and body 4, kind 1,
/// protocol version 1, zero 2) and a body of at most `Limits.frameBytesMax`.
public enum Frame {
    public static let headerByteCount = 12
    public static let version: UInt8 = 1

    /// Appends one frame whose body `body` writes.
    public static func append(
        _ kind: FrameKind, to writer: inout ByteWriter, _ body: (inout ByteWriter) -> Void
    ) {
        let start = begin(kind, in: &writer)
        body(&writer)
        end(start, in: &writer)
    }

    /// Starts a frame; its body follows, then `end` with the offset that this returns.
    public static func begin(_ kind: FrameKind, in writer: inout ByteWriter) -> Int {
        let start = writer.count
        writer.write(UInt32(0))
        writer.write(UInt32(0))
        writer.write(kind.rawValue)
        writer.write(version)
        writer.write(UInt16(0))
        return start
    }

    /// Fills in length and checksum. Precondition: the body is within the limit.
    public static func end(_ start: Int, in writer: inout ByteWriter) {
        let bodyCount = writer.count - start - headerByteCount
        precondition(bodyCount >= 0 && bodyCount <= Limits.frameBytesMax)
        writer.patch(UInt32(bodyCount), at: start)
        let checksum = writer.bytes.withUnsafeBytes { bytes in
            crc32c(UnsafeRawBufferPointer(rebasing: bytes[(start + 8)...]))
        }
        writer.patch(checksum, at: start + 4)
    }

    /// Reads the frame at the start of `buffer`; nil when it is not complete yet.
    public static func parse(_ buffer: UnsafeRawBufferPointer) throws(DatabaseError)
        -> (kind: FrameKind, body: UnsafeRawBufferPointer, byteCount: Int)?
    {
        guard buffer.count >= headerByteCount else { return nil }
        let bodyCount = Int(
            UInt32(littleEndian: buffer.loadUnaligned(fromByteOffset: 0, as: UInt32.self)))
        guard bodyCount <= Limits.frameBytesMax else {
            throw DatabaseError(.malformed, "frame of \(bodyCount) bytes")
        }
        guard buffer[9] == version else {
            throw DatabaseError(.malformed, "frame version \(buffer[9]), expected \(version)")
        }
        guard let kind = FrameKind(rawValue: buffer[8]) else {
            throw DatabaseError(.malformed, "frame kind \(buffer[8])")
        }
        let total = headerByteCount + bodyCount
        guard buffer.count >= total else { return nil }
        let expected = UInt32(
            littleEndian: buffer.loadUnaligned(fromByteOffset: 4, as: UInt32.self))
        guard crc32c(UnsafeRawBufferPointer(rebasing: buffer[8..<total])) == expected else {
            throw DatabaseError(.malformed, "\(checksumMismatch) \(kind)")
        }
        return (kind, UnsafeRawBufferPointer(rebasing: buffer[headerByteCount..<total]), total)
    }

    private static let checksumMismatch = "wrong checksum of a frame of kind"

    /// Whether `parse` threw the error because a frame came with other bytes than it was sent with.
    public static func isChecksumMismatch(_ error: DatabaseError) -> Bool {
        error.code == .malformed && error.message.hasPrefix(checksumMismatch)
    }

    /// Bytes the frame at the start of `buffer` needs in all, once its header is there.
    public static func expectedByteCount(_ buffer: UnsafeRawBufferPointer) -> Int? {
        guard buffer.count >= headerByteCount else { return nil }
        return headerByteCount
            + Int(UInt32(littleEndian: buffer.loadUnaligned(fromByteOffset: 0, as: UInt32.self)))
    }
}

/// The first frame of each side of a connection.
public struct Hello: Hashable, Sendable {
    public enum Role: UInt8, Sendable {
        case node = 1
        case router = 2
        case controller = 3
        case operatorTool = 4
    }

    public var role: Role
    /// Random, drawn when the cluster was founded; 0 while unknown. Two different non-zero values
    /// never talk.
    public var cluster: UInt64
    /// The speaker when it is a node.
    public var node: NodeID
    /// The node that the speaker means to reach; `.none` when any will do. A node that is another
    /// one says goodbye: an address may have been taken over.
    public var expects: NodeID
    /// For logs: `node-1`, `router-1`.
    public var name: String
    /// Routers: where clients reach it and where its admin server is. Empty otherwise.
    public var addresses: [String]

    public init(
        role: Role, cluster: UInt64, node: NodeID = .none, expects: NodeID = .none, name: String,
        addresses: [String] = []
    ) {
        self.role = role
        self.cluster = cluster
        self.node = node
        self.expects = expects
        self.name = name
        self.addresses = addresses
    }

    public func encode(into writer: inout ByteWriter) {
        writer.write(role.rawValue)
        writer.write(cluster)
        writer.write(node)
        writer.write(expects)
        writer.write(name)
        writer.write(list: addresses) { writer, address in writer.write(address) }
    }

    public init(from reader: inout ByteReader) throws(DatabaseError) {
        role = try reader.readEnum()
        cluster = try reader.readUInt64()
        node = try reader.read()
        expects = try reader.read()
        name = try reader.readString()
        addresses = try reader.readList(elementBytesMin: 4) { (reader) throws(DatabaseError) in
            try reader.readString()
        }
    }
}
