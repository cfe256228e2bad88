// Replication messages between nodes: a `peerMessages` body is a sequence of
// (group 4, sender replica 4, receiver replica 4, message).

import KVBase
import ReplicationCore

/// The envelope of one replication message.
public struct PeerMessage: Hashable, Sendable {
    public var group: GroupID
    public var from: ReplicaID
    public var to: ReplicaID
    public var message: Message

    public init(group: GroupID, from: ReplicaID, to: ReplicaID, message: Message) {
        self.group = group
        self.from = from
        self.to = to
        self.message = message
    }

    public func encode(into writer: inout ByteWriter) {
        writer.write(group)
        writer.write(from)
        writer.write(to)
        message.encode(into: &writer)
    }

    public init(from reader: inout ByteReader) throws(DatabaseError) {
        group = try reader.read()
        from = try reader.read()
        to = try reader.read()
        message = try Message(from: &reader)
    }
}

extension Message {
    func encode(into writer: inout ByteWriter) {
        switch self {
        case .voteRequest(let term, let last, let isPreVote, let leaseReleased):
            writer.write(UInt8(1))
            writer.write(term)
            writer.write(last)
            writer.write(isPreVote)
            writer.write(leaseReleased)
        case .voteResponse(let term, let isPreVote, let granted, let retryAfter):
            writer.write(UInt8(2))
            writer.write(term)
            writer.write(isPreVote)
            writer.write(granted)
            writer.write(retryAfter.count)
        case .append(let term, let previous, let entries, let commit):
            writer.write(UInt8(3))
            writer.write(term)
            writer.write(previous)
            writer.write(list: entries) { writer, entry in
                writer.write(entry.term)
                writer.write(entry.index)
                writer.write(entry.kind.rawValue)
                writer.write(entry.payload)
            }
            writer.write(commit)
        case .appendResponse(let term, let accepted, let match, let hint):
            writer.write(UInt8(4))
            writer.write(term)
            writer.write(accepted)
            writer.write(match)
            writer.write(hint)
        case .heartbeat(let term, let commit, let sentAt, let round):
            writer.write(UInt8(5))
            writer.write(term)
            writer.write(commit)
            writer.write(sentAt.nanoseconds)
            writer.write(round)
        case .heartbeatResponse(let term, let accepted, let sentAt, let round, let match):
            writer.write(UInt8(6))
            writer.write(term)
            writer.write(accepted)
            writer.write(sentAt.nanoseconds)
            writer.write(round)
            writer.write(match)
        case .timeoutNow(let term):
            writer.write(UInt8(7))
            writer.write(term)
        case .snapshotInstalled(let term, let position):
            writer.write(UInt8(8))
            writer.write(term)
            writer.write(position)
        }
    }

    init(from reader: inout ByteReader) throws(DatabaseError) {
        let kind = try reader.readUInt8()
        let term: Term = try reader.read()
        switch kind {
        case 1:
            self = .voteRequest(
                term: term, lastPosition: try reader.readPosition(),
                isPreVote: try reader.readBool(), leaseReleased: try reader.readBool())
        case 2:
            self = .voteResponse(
                term: term, isPreVote: try reader.readBool(), granted: try reader.readBool(),
                retryAfter: Nanoseconds(try reader.readUInt64()))
        case 3:
            let previous = try reader.readPosition()
            let entries = try reader.readList(elementBytesMin: 21) {
                (reader) throws(DatabaseError) in
                LogEntry(
                    term: try reader.read(), index: try reader.readIndex(),
                    kind: try reader.readEnum(),
                    payload: try reader.readBytes())
            }
            self = .append(
                term: term, previous: previous, entries: entries, commit: try reader.readIndex())
        case 4:
            self = .appendResponse(
                term: term, accepted: try reader.readBool(), match: try reader.readIndex(),
                hint: try reader.readPosition())
        case 5:
            self = .heartbeat(
                term: term, commit: try reader.readIndex(),
                sentAt: Instant(nanoseconds: try reader.readUInt64()),
                round: try reader.readUInt64())
        case 6:
            self = .heartbeatResponse(
                term: term, accepted: try reader.readBool(),
                sentAt: Instant(nanoseconds: try reader.readUInt64()),
                round: try reader.readUInt64(), match: try reader.readIndex())
        case 7: self = .timeoutNow(term: term)
        case 8: self = .snapshotInstalled(term: term, position: try reader.readPosition())
        default: throw DatabaseError(.malformed, "replication message of kind \(kind)")
        }
    }
}

extension ByteWriter {
    mutating func write(_ position: LogPosition) {
        write(position.index)
        write(position.term)
    }
}

extension ByteReader {
    public mutating func readPosition() throws(DatabaseError) -> LogPosition {
        LogPosition(index: try readIndex(), term: try read())
    }

    /// An index that leaves room to count on from it: no log comes near the bound.
    mutating func readIndex() throws(DatabaseError) -> LogIndex {
        let index: LogIndex = try read()
        guard index.rawValue <= UInt64.max / 2 else {
            throw DatabaseError(.malformed, "log index \(index)")
        }
        return index
    }
}
