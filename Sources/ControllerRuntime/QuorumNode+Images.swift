// Whole images of the metadata on their way between controllers: a member that lags too far gets one.

import EventLoop
import KVBase
import MetadataCore
import MetadataStore
import Metrics
import ReplicationCore
import SystemdSupport
import WireProtocol

extension QuorumNode {
    func sendImage(to target: ReplicaID) {
        guard let identity, let image = replica?.image, !encoding.contains(target),
            !senders.contains(where: { $0.target == target })
        else { return }
        let position = image.position
        encoding.insert(target)
        jobs.run("meta-encode") { () throws(DatabaseError) in
            QuorumFiles.encode(image)
        } _: { [unowned self] result in
            encoding.remove(target)
            guard case .success(let bytes) = result else {
                return sent(to: target, position, false)
            }
            let sender = ImageSender(
                from: identity.replica, to: target, position: position, bytes: bytes,
                snapshot: UInt64.random(in: 0...UInt64.max), now: loop.now)
            senders.append(sender)
            log.notice(
                "sends a metadata snapshot",
                [LogField("to", target), LogField("bytes", bytes.count)])
            if let link = links[target], link.isIntroduced {
                sender.pump(link)
            } else {
                end(sender, false)
            }
        }
    }

    func receive(_ chunk: MetadataChunk, from sender: ReplicaID) throws(DatabaseError) {
        guard chunk.sender == sender, chunk.total <= MetadataChunk.snapshotBytesMax else {
            throw DatabaseError(.malformed, "a snapshot that is not taken")
        }
        guard !isInstalling else { return }
        if receiver == nil || receiver?.snapshot != chunk.snapshot {
            guard chunk.offset == 0 else { return }
            receiver = ImageReceiver(chunk)
        }
        guard let next = receiver?.take(chunk), let identity else { return }
        let ack = MetadataChunkAck(
            receiver: identity.replica, snapshot: chunk.snapshot, next: next)
        links[sender]?.send(.snapshotAck) { ack.encode(into: &$0) }
        guard let whole = receiver, whole.isComplete else { return }
        receiver = nil
        install(whole)
    }

    private func install(_ whole: ImageReceiver) {
        isInstalling = true
        let bytes = whole.bytes
        let now = loop.now
        let files = files
        let applied = replica?.image.position.index ?? .none
        jobs.run("meta-install") { () throws(DatabaseError) -> MetadataImage in
            let image = try QuorumFiles.decode(bytes, now: now)
            // An older one must not replace a newer file.
            if image.position.index > applied {
                _ = try files.write(encoded: bytes, index: image.position.index)
            }
            return image
        } _: { [unowned self] result in
            isInstalling = false
            switch result {
            case .success(let image):
                metrics.snapshotBytes.set(Int64(bytes.count))
                bytesSinceSnapshot = 0
                store?.handle(.installed(image, from: whole.sender))
            case .failure(let error) where error.code == .malformed:
                log.error(
                    "a metadata snapshot cannot be read", [LogField("reason", error.message)])
            case .failure(let error): store?.fail(error)
            }
        }
    }

    func receive(_ ack: MetadataChunkAck, from replica: ReplicaID) {
        guard ack.receiver == replica,
            let sender = senders.first(where: {
                $0.target == replica && $0.snapshot == ack.snapshot
            })
        else { return }
        sender.receive(ack, now: loop.now)
        if sender.isDone {
            end(sender, true)
        } else if let link = links[replica] {
            sender.pump(link)
        }
    }

    func end(_ sender: ImageSender, _ succeeded: Bool) {
        guard senders.contains(where: { $0 === sender }) else { return }
        senders.removeAll { $0 === sender }
        sent(to: sender.target, sender.position, succeeded)
    }

    private func sent(to target: ReplicaID, _ position: LogPosition, _ succeeded: Bool) {
        store?.handle(
            .replication(.snapshotSent(to: target, position: position, succeeded: succeeded)))
    }
}
