// The leader's side of a snapshot: reads a consistent view of the group and streams it.

import EventLoop
import KVBase
import Metrics
import NodeCore
import ReplicationCore
import ShardCore
import StorageAPI
import SystemdSupport
import WireProtocol

/// Streams one group to one follower, a few chunks ahead of its acknowledgements. Chunks not yet
/// acknowledged are kept and repeated, so a broken connection costs no restart. Gives up when the
/// follower is silent for `silenceMax`. Its pace follows how long requests take on both nodes.
final class SnapshotSender {
    static let window = 4
    static let silenceMax = Nanoseconds.seconds(20)
    static let repeatAfter = Nanoseconds.seconds(1)

    let snapshot: UInt64
    let target: ReplicaID
    let position: LogPosition
    private unowned let replica: GroupReplica
    private let view: any EngineSnapshot
    private let storeBytes = 4
    /// Ranges still to be read, the first of them from where the last chunk ended. Tombstones of
    /// owned shards mean nothing and are left out.
    private var ranges: [(range: KeyRange, isOwned: Bool)]
    private let state: Bytes
    private let floor: Sequencer
    private var unacknowledged: [SnapshotChunk] = []
    private var nextSequence: UInt32 = 0
    private var isRead = false
    private var lastHeard: Instant
    private var timer: LoopTimer?
    private var pace: CopyPace
    /// No chunk is read before.
    private var notBefore = Instant.origin
    private var pause: LoopTimer?
    /// Of the follower's node, as it said last.
    private var strainThere: UInt32 = 0
    private(set) var sentBytes = 0

    init(replica: GroupReplica, target: ReplicaID) throws(DatabaseError) {
        self.replica = replica
        self.target = target
        position = replica.state.applied
        view = try replica.engine.snapshot()
        let store = replica.store
        ranges = replica.state.shards.elements.map {
            (StorageLayout.range(store, $0.shard.table, $0.shard.range), $0.phase == .owned)
        }
        var writer = ByteWriter()
        replica.state.encode(into: &writer)
        state = writer.take()
        floor = replica.state.floor
        snapshot = replica.node.random.next()
        pace = CopyPace(ofGroup: replica.node.settings.copyBytesPerSecond)
        lastHeard = replica.node.now
        timer = replica.node.loop.schedule(
            after: Self.repeatAfter, repeating: Self.repeatAfter
        ) { [unowned self] in repeatOrGiveUp() }
    }

    deinit {
        cancel()
        view.release()
    }

    func cancel() {
        timer?.cancel()
        pause?.cancel()
    }

    /// The bound of its pace has changed.
    func follow(bytesPerSecond: UInt64) { pace = CopyPace(ofGroup: bytesPerSecond) }

    /// Reads and sends until the window is full or the pace wants a pause.
    func pump() {
        while !isRead, unacknowledged.count < Self.window {
            let now = replica.node.now
            guard now >= notBefore else { return pauseUntil(notBefore, now) }
            do throws(DatabaseError) {
                let before = sentBytes
                let chunk = try readChunk()
                pace.observe(strain: max(strainThere, replica.node.foreground.strain), now: now)
                if !pace.isSlowest { replica.node.noteDisturbance() }
                let duration = pace.duration(bytes: UInt64(sentBytes - before))
                // Timers come late: what is missed of one chunk is caught up on with the next.
                notBefore = max(notBefore + duration, now)
                unacknowledged.append(chunk)
                send(chunk)
            } catch {
                replica.snapshotEnded(self, succeeded: false)
                replica.disk.fail(error)
                return
            }
        }
    }

    private func pauseUntil(_ end: Instant, _ now: Instant) {
        guard pause == nil else { return }
        pause = replica.node.loop.schedule(after: end - now) { [unowned self] in
            pause = nil
            pump()
        }
    }

    func receive(_ ack: SnapshotAck) {
        lastHeard = replica.node.now
        strainThere = ack.strain
        guard !ack.isRefused else {
            replica.snapshotEnded(self, succeeded: false)
            return
        }
        unacknowledged.removeAll { $0.sequence < ack.next }
        if isRead, unacknowledged.isEmpty {
            replica.snapshotEnded(self, succeeded: true)
        } else {
            pump()
        }
    }

    private func readChunk() throws(DatabaseError) -> SnapshotChunk {
        var records: [(key: Bytes, value: Bytes)] = []
        var bytes = 0
        let bytesMax = Int(pace.chunkBytes)
        while let (range, isOwned) = ranges.first, bytes < bytesMax {
            var last: Bytes?
            var isCut = false
            try view.scan(range) { key, value in
                if bytes >= bytesMax {
                    isCut = true
                    return false
                }
                last = Bytes(key)
                if isOwned, StoredRecord(value)?.isTombstone == true {
                    // Counted, so that a chunk is not read for long.
                    bytes += key.count
                    return true
                }
                records.append((key: Bytes(key[storeBytes...]), value: Bytes(value)))
                bytes += key.count + value.count
                return true
            }
            if isCut, let last {
                ranges[0].range.start = last + [0]
            } else {
                ranges.removeFirst()
            }
        }
        isRead = ranges.isEmpty
        sentBytes += bytes
        replica.node.metrics.snapshotBytesSent.increment(by: UInt64(bytes))
        defer { nextSequence += 1 }
        return SnapshotChunk(
            group: replica.group, from: replica.id, to: target, term: replica.core.term,
            snapshot: snapshot, sequence: nextSequence, position: position, isLast: isRead,
            state: nextSequence == 0 ? state : [], floor: floor, records: records)
    }

    private func send(_ chunk: SnapshotChunk) {
        guard let node = replica.nodeOf(target) else { return }
        replica.node.peers.send(.snapshotChunk, to: node) { chunk.encode(into: &$0) }
    }

    private func repeatOrGiveUp() {
        if replica.node.now - lastHeard > Self.silenceMax {
            replica.snapshotEnded(self, succeeded: false)
        } else if replica.node.now - lastHeard >= Self.repeatAfter {
            for chunk in unacknowledged { send(chunk) }
        }
    }
}

extension GroupReplica {
    func startSnapshot(to target: ReplicaID) {
        guard snapshotSenders[target] == nil else { return }
        do throws(DatabaseError) {
            let sender = try SnapshotSender(replica: self, target: target)
            snapshotSenders[target] = sender
            node.log.notice(
                "sending a snapshot",
                [
                    LogField("group", group), LogField("to", target),
                    LogField("index", sender.position.index),
                ])
            sender.pump()
        } catch {
            disk.fail(error)
        }
    }

    func snapshotEnded(_ sender: SnapshotSender, succeeded: Bool) {
        guard snapshotSenders[sender.target] === sender else { return }
        snapshotSenders[sender.target] = nil
        sender.cancel()
        (succeeded ? node.metrics.snapshotsSent : node.metrics.snapshotsNotSent).increment()
        node.log.notice(
            succeeded ? "snapshot received" : "snapshot not received",
            [
                LogField("group", group), LogField("to", sender.target),
                LogField("bytes", sender.sentBytes),
            ], event: .snapshotSent)
        step(
            .snapshotSent(to: sender.target, position: sender.position, succeeded: succeeded))
    }
}
