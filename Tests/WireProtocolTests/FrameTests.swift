import KVBase
import ReplicationCore
import Testing
import WireProtocol

@Suite struct FrameTests {
    private func frame(_ body: Bytes) -> Bytes {
        var writer = ByteWriter()
        Frame.append(.requests, to: &writer) { $0.writeRaw(body) }
        return writer.bytes
    }

    @Test func aFrameComesBack() throws {
        let bytes = frame([1, 2, 3]) + frame([])
        try bytes.withUnsafeBytes { buffer in
            let first = try #require(try Frame.parse(buffer))
            #expect(first.kind == .requests)
            #expect(Bytes(first.body) == [1, 2, 3])
            let rest = UnsafeRawBufferPointer(rebasing: buffer[first.byteCount...])
            let second = try #require(try Frame.parse(rest))
            #expect(second.body.isEmpty)
            #expect(second.byteCount == rest.count)
        }
    }

    @Test func aCutFrameIsIncomplete() throws {
        let bytes = frame([1, 2, 3])
        for count in 0..<bytes.count {
            let parsed = try Bytes(bytes[..<count]).withUnsafeBytes { try Frame.parse($0) }
            #expect(parsed == nil, "\(count) bytes")
        }
    }

    @Test func everyFlippedBitIsFound() {
        let bytes = frame([1, 2, 3])
        for bit in 0..<bytes.count * 8 {
            var damaged = bytes
            damaged[bit / 8] ^= 1 << UInt8(bit % 8)
            // A longer length makes it incomplete; everything else is an error.
            let outcome = Result { try damaged.withUnsafeBytes { try Frame.parse($0) } }
            if case .success(let parsed?) = outcome { Issue.record("bit \(bit): \(parsed.kind)") }
        }
    }

    @Test func messagesComeBackAndCutsThrow() throws {
        let position = LogPosition(index: LogIndex(5), term: Term(2))
        let messages: [Message] = [
            .voteRequest(
                term: Term(3), lastPosition: position, isPreVote: true, leaseReleased: false),
            .voteResponse(
                term: Term(3), isPreVote: false, granted: true, retryAfter: .milliseconds(7)),
            .append(
                term: Term(3), previous: position,
                entries: [
                    LogEntry(term: Term(3), index: LogIndex(6), kind: .command, payload: [1, 2])
                ], commit: LogIndex(4)),
            .appendResponse(term: Term(3), accepted: true, match: LogIndex(6), hint: position),
            .heartbeat(
                term: Term(3), commit: LogIndex(4), sentAt: Instant(nanoseconds: 9), round: 2),
            .heartbeatResponse(
                term: Term(3), accepted: true, sentAt: Instant(nanoseconds: 9), round: 2,
                match: LogIndex(6)),
            .timeoutNow(term: Term(3)),
            .snapshotInstalled(term: Term(3), position: position),
        ]
        for message in messages {
            let envelope = PeerMessage(
                group: GroupID(1), from: ReplicaID(2), to: ReplicaID(3), message: message)
            var writer = ByteWriter()
            envelope.encode(into: &writer)
            let decode = { (bytes: Bytes) throws(DatabaseError) -> PeerMessage in
                try ByteReader.decode(bytes) { (reader) throws(DatabaseError) in
                    try PeerMessage(from: &reader)
                }
            }
            #expect(try decode(writer.bytes) == envelope)
            for count in 0..<writer.count {
                #expect(throws: DatabaseError.self) { try decode(Bytes(writer.bytes[..<count])) }
            }
        }
    }

    /// Random bytes never trap a decoder.
    @Test func randomBytesAreRefused() {
        for seed in 0..<3_000 as Range<UInt64> {
            var random = SeededRandom(seed: seed)
            let bytes = (0..<random.below(80)).map { _ in UInt8(random.below(12)) }
            bytes.withUnsafeBytes { buffer in
                var reader = ByteReader(buffer)
                _ = try? PeerMessage(from: &reader)
                reader = ByteReader(buffer)
                _ = try? Hello(from: &reader)
                reader = ByteReader(buffer)
                _ = try? Response(from: &reader)
                _ = try? Frame.parse(buffer)
            }
        }
    }
}
