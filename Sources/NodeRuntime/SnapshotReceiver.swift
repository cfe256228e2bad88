// The follower's side of a snapshot: fills a new store and switches to it in one batch.

import KVBase
import Metrics
import NodeCore
import ReplicationCore
import ShardCore
import StorageAPI
import SystemdSupport
import WireProtocol

/// Receives one snapshot. Until the switch the replica's own store is untouched; a crash before it
/// leaves garbage in an unused store, never a half-filled replica.
final class SnapshotReceiver {
    let snapshot: UInt64
    let sender: ReplicaID
    let position: LogPosition
    let store: StoreID
    private(set) var next: UInt32 = 0
    private(set) var receivedBytes: UInt64 = 0
    private(set) var state: GroupState
    /// Everything came; the engine is being made durable and nothing may be applied.
    fileprivate(set) var isInstalling = false

    init(first chunk: SnapshotChunk, store: StoreID) throws(DatabaseError) {
        snapshot = chunk.snapshot
        sender = chunk.from
        position = chunk.position
        self.store = store
        state = try ByteReader.decode(chunk.state) { (reader) throws(DatabaseError) in
            try GroupState(from: &reader, applied: chunk.position, floor: chunk.floor)
        }
    }

    /// Writes the chunk when it is the next one.
    func install(_ chunk: SnapshotChunk, into engine: any StorageEngine) throws(DatabaseError) {
        guard chunk.sequence == next, !isInstalling else { return }
        var batch = EngineBatch()
        if next == 0 {
            // A receiver that died with an earlier process may have left records in it.
            let range = StorageLayout.range(store)
            range.start.withUnsafeBytes { from in
                (range.end ?? []).withUnsafeBytes { to in batch.deleteRange(from: from, to: to) }
            }
        }
        let prefix = withUnsafeBytes(of: store.rawValue.bigEndian) { Bytes($0) }
        for record in chunk.records {
            (prefix + record.key).withUnsafeBytes { key in
                record.value.withUnsafeBytes { value in batch.put(key: key, value: value) }
            }
        }
        try engine.apply(batch)
        receivedBytes += UInt64(batch.byteCount)
        next += 1
    }
}

extension GroupReplica {
    /// Throws `.malformed` for a snapshot that cannot be read.
    func receive(_ chunk: SnapshotChunk, from sender: NodeID) throws(DatabaseError) {
        guard !isFailed, chunk.to == id else { return }
        note(chunk.from, at: sender)
        do throws(DatabaseError) {
            guard let receiver = try receiver(for: chunk) else {
                acknowledge(chunk.snapshot, of: chunk.from, next: 0, isRefused: true)
                return
            }
            node.noteDisturbance()
            let before = receiver.receivedBytes
            try receiver.install(chunk, into: engine)
            node.metrics.snapshotBytesReceived.increment(by: receiver.receivedBytes - before)
            if chunk.isLast, receiver.next == chunk.sequence + 1, !receiver.isInstalling {
                return try install(receiver)
            }
            // The last chunk is acknowledged once everything is installed: the leader looks for the place
            // in the log then, and would send a snapshot again to a log that is still without it.
            let next = receiver.isInstalling ? receiver.next - 1 : receiver.next
            acknowledge(receiver.snapshot, of: receiver.sender, next: next)
        } catch {
            if error.code == .malformed { throw error }
            disk.fail(error)
        }
    }

    /// The receiver of the chunk's snapshot, a new one for a first chunk; nil when it is not wanted.
    private func receiver(for chunk: SnapshotChunk) throws(DatabaseError) -> SnapshotReceiver? {
        if let present = snapshotReceiver, present.snapshot == chunk.snapshot { return present }
        guard chunk.sequence == 0, chunk.term >= core.term,
            core.needsSnapshot(at: chunk.position), snapshotReceiver?.isInstalling != true
        else { return nil }
        let receiver = try SnapshotReceiver(first: chunk, store: disk.allocateStore())
        if let old = snapshotReceiver {
            node.metrics.snapshotsNotReceived.increment()
            discard(old.store)
        }
        snapshotReceiver = receiver
        node.log.notice(
            "receiving a snapshot",
            [LogField("group", group), LogField("index", chunk.position.index)])
        return receiver
    }

    private func acknowledge(
        _ snapshot: UInt64, of sender: ReplicaID, next: UInt32, isRefused: Bool = false
    ) {
        guard let target = nodeOf(sender) else { return }
        let ack = SnapshotAck(
            group: group, from: id, to: sender, snapshot: snapshot, next: next,
            isRefused: isRefused, strain: node.foreground.strain)
        node.peers.send(.snapshotAck, to: target) { ack.encode(into: &$0) }
    }

    /// Switches to the received store, makes it durable, then tells the core.
    private func install(_ receiver: SnapshotReceiver) throws(DatabaseError) {
        guard core.needsSnapshot(at: receiver.position) else {
            snapshotReceiver = nil
            discard(receiver.store)
            return acknowledge(receiver.snapshot, of: receiver.sender, next: receiver.next)
        }
        receiver.isInstalling = true
        let oldStore = store
        store = receiver.store
        state = receiver.state
        noteShards()
        garbage.append(StorageLayout.range(oldStore))
        // The sender left such tombstones out.
        sweeps = []
        let scratch = node.applyScratch
        scratch.reset()
        putState(scratch)
        putCatalog(scratch)
        try engine.apply(scratch.batch)
        disk.checkpoint(engine) { [weak self] in
            guard let self, !isFailed else { return }
            snapshotReceiver = nil
            committed.removeAll { $0.index <= receiver.position.index }
            step(
                .snapshotInstalled(
                    position: receiver.position, membership: receiver.state.membership,
                    from: receiver.sender))
            acknowledge(receiver.snapshot, of: receiver.sender, next: receiver.next)
            // In case the log brought the core this far meanwhile, so that it let the snapshot be.
            step(.applied(state.applied.index))
            node.garbageAppeared(self)
            node.metrics.snapshotsReceived.increment()
            node.log.notice(
                "snapshot installed",
                [LogField("group", group), LogField("index", receiver.position.index)],
                event: .snapshotInstalled)
            markDirty()
        }
    }

    /// Ends the receipt of a snapshot whose sender gave up, once the log has brought what it held.
    func dropUnneededSnapshot() {
        guard let receiver = snapshotReceiver, !receiver.isInstalling,
            !core.needsSnapshot(at: receiver.position)
        else { return }
        snapshotReceiver = nil
        node.metrics.snapshotsNotReceived.increment()
        discard(receiver.store)
        node.reportSoon()
    }

    /// Where the store of this replica is, and how far it is applied.
    func putCatalog(_ scratch: ApplyScratch) {
        let entries: [(Bytes, Bytes)] = [
            (
                StorageLayout.appliedKey(store),
                StorageLayout.encodeApplied(state.applied, floor: state.floor)
            ),
            (
                StorageLayout.catalogKey(group, id),
                withUnsafeBytes(of: store.rawValue.bigEndian) { Bytes($0) }
            ),
        ]
        for (key, value) in entries {
            key.withUnsafeBytes { key in
                value.withUnsafeBytes { value in scratch.batch.put(key: key, value: value) }
            }
        }
    }

    private func discard(_ store: StoreID) {
        garbage.append(StorageLayout.range(store))
        node.garbageAppeared(self)
    }

    var isInstallingSnapshot: Bool { snapshotReceiver?.isInstalling ?? false }
}
