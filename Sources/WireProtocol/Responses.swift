// Requests and responses between router and node.
//
// A `requests` body is a sequence of (token 4, Operation). A `responses` body is a sequence of
// (token 4, code 1, flags 1, zero 2, sequencer 16, payload length 4, payload). Tokens are the
// router's: unique among its requests in flight on the connection. Responses come in any order.

import KVBase
import ShardCore

public struct ResponseFlags: OptionSet, Hashable, Sendable {
    public var rawValue: UInt8
    public init(rawValue: UInt8) { self.rawValue = rawValue }
    /// get: there is a record. put, delete with `wantsPrevious`: there was one before.
    public static let found = ResponseFlags(rawValue: 1)
}

/// One response where it lies in a frame. Valid as long as those bytes.
public struct Response {
    public var token: UInt32
    /// Nil: the operation succeeded.
    public var error: ErrorCode?
    public var flags: ResponseFlags
    /// Of the record read or written; of the record found when a condition failed.
    public var sequencer: Sequencer
    /// get: the value. list: an encoded `ListPage`. An error: its message, except `.notLeader`,
    /// where it is an encoded `LeaderHint`.
    public var payload: UnsafeRawBufferPointer

    public init(from reader: inout ByteReader) throws(DatabaseError) {
        token = try reader.readUInt32()
        let code = try reader.readUInt8()
        if code == 0 {
            error = nil
        } else if let known = ErrorCode(rawValue: code) {
            error = known
        } else {
            throw DatabaseError(.malformed, "response code \(code)")
        }
        flags = ResponseFlags(rawValue: try reader.readUInt8())
        _ = try reader.readUInt16()
        sequencer = try reader.readSequencer()
        payload = try reader.readSlice()
    }
}

extension ByteWriter {
    /// Appends one response of the layout above.
    public mutating func writeResponse(
        token: UInt32, error: ErrorCode? = nil, flags: ResponseFlags = [],
        sequencer: Sequencer = .zero, payload: UnsafeRawBufferPointer
    ) {
        write(token)
        write(error?.rawValue ?? 0)
        write(flags.rawValue)
        write(UInt16(0))
        write(sequencer)
        write(payload)
    }

    /// Appends an error response with a sentence.
    public mutating func writeResponse(token: UInt32, _ error: DatabaseError) {
        let message = Bytes(error.message.utf8)
        message.withUnsafeBytes { writeResponse(token: token, error: error.code, payload: $0) }
    }
}

/// The payload of a `.notLeader` response: who leads, as far as the replica knows.
public struct LeaderHint: Hashable, Sendable {
    public var term: Term
    /// `.none` when unknown.
    public var node: NodeID

    public init(term: Term, node: NodeID) {
        self.term = term
        self.node = node
    }

    public func encode(into writer: inout ByteWriter) {
        writer.write(term)
        writer.write(node)
    }

    public init(from reader: inout ByteReader) throws(DatabaseError) {
        term = try reader.read()
        node = try reader.read()
    }
}
