// Metadata snapshots between controllers: for one that is too far behind for the log.

import EventLoop
import KVBase
import ReplicationCore
import WireProtocol

/// Sends one snapshot to one controller, a few chunks ahead of its acknowledgements.
final class ImageSender {
    static let silenceMax = Nanoseconds.seconds(10)

    let target: ReplicaID
    let position: LogPosition
    let snapshot: UInt64
    private let sender: ReplicaID
    private let bytes: Bytes
    private var sent: UInt64 = 0
    private var acknowledged: UInt64 = 0
    private var lastHeard: Instant

    init(
        from sender: ReplicaID, to target: ReplicaID, position: LogPosition, bytes: Bytes,
        snapshot: UInt64, now: Instant
    ) {
        self.sender = sender
        self.target = target
        self.position = position
        self.bytes = bytes
        self.snapshot = snapshot
        lastHeard = now
    }

    var isDone: Bool { acknowledged == UInt64(bytes.count) }
    func isSilent(at now: Instant) -> Bool { now - lastHeard > Self.silenceMax }

    func pump(_ link: QuorumLink) {
        let window = UInt64(MetadataChunk.window * MetadataChunk.byteCount)
        while sent < UInt64(bytes.count), sent - acknowledged < window {
            let end = min(bytes.count, Int(sent) + MetadataChunk.byteCount)
            let chunk = MetadataChunk(
                sender: sender, snapshot: snapshot, total: UInt64(bytes.count), offset: sent,
                bytes: Bytes(bytes[Int(sent)..<end]))
            link.send(.snapshotChunk) { chunk.encode(into: &$0) }
            sent = UInt64(end)
        }
    }

    func receive(_ ack: MetadataChunkAck, now: Instant) {
        lastHeard = now
        acknowledged = max(acknowledged, min(ack.next, sent))
    }
}

/// Puts one snapshot together.
struct ImageReceiver {
    let sender: ReplicaID
    let snapshot: UInt64
    private(set) var bytes: Bytes = []
    private let total: UInt64

    init(_ first: MetadataChunk) {
        sender = first.sender
        snapshot = first.snapshot
        total = first.total
    }

    var isComplete: Bool { UInt64(bytes.count) == total }

    /// Takes the chunk when it is the next one; returns where the next one starts.
    mutating func take(_ chunk: MetadataChunk) -> UInt64 {
        if chunk.offset == UInt64(bytes.count), chunk.total == total,
            UInt64(bytes.count + chunk.bytes.count) <= total
        {
            bytes += chunk.bytes
        }
        return UInt64(bytes.count)
    }
}
