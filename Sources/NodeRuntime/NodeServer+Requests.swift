// Requests of routers, and replication messages of peers.

import EventLoop
import KVBase
import Metrics
import NodeCore
import ReplicationCore
import ShardCore
import WireProtocol

extension NodeServer {
    /// Every operation of one frame. Writes wait for the end of the turn; reads are answered now.
    func receiveRequests(
        _ reader: inout ByteReader, _ session: RouterSession
    ) throws(DatabaseError) {
        metrics.requestFrames.increment()
        let received = arrival()
        let waited = Nanoseconds.microseconds(UInt64(microseconds(now) &- received))
        var count: UInt64 = 0
        defer { metrics.loopWait.observe(waited, count: count) }
        while !reader.isAtEnd {
            let token = try reader.readUInt32()
            let operation = try Operation(from: &reader)
            guard !operation.code.isControl, !operation.flags.contains(.previousImported) else {
                throw DatabaseError(.malformed, "\(operation.code) from a router")
            }
            count += 1
            let waiter = Waiter(
                slot: session.slot, generation: session.generation, token: UInt64(token),
                received: received, kind: RequestKind(operation.code))
            guard let replica = replicas[operation.group], !replica.isFailed else {
                answer(
                    waiter,
                    error: DatabaseError(.notLeader, "no replica of group \(operation.group)"))
                continue
            }
            if refusesRequests {
                replica.answerNotLeader(waiter)
            } else {
                carryOut(operation, on: replica, waiter)
            }
        }
    }

    /// When the frame at hand can have come at the earliest. What came while the loop was busy with
    /// its last turn has waited since, and the copy of a shard may be what kept it busy.
    private func arrival() -> UInt32 {
        let now = now
        let busy = Nanoseconds(loop.busyNanoseconds) - Nanoseconds(busyBefore)
        let waited = now - lastTurnEnd <= busy ? busy : .zero
        return microseconds(now) &- UInt32(truncatingIfNeeded: waited.count / 1_000)
    }

    /// Whether requests here may be slower than they are without copies of shards.
    var isDisturbed: Bool { now < disturbedUntil }

    /// A chunk of a copy was read or logged here, in a copy that is not at its slowest.
    func noteDisturbance() { disturbedUntil = now + .seconds(2) }

    /// Logs a write with this turn's entry, answers a read as soon as it may be answered.
    func carryOut(_ operation: Operation, on replica: GroupReplica, _ waiter: Waiter) {
        if operation.code.isWrite {
            write(operation, to: replica, waiter)
        } else {
            replica.read(operation, waiter: waiter)
        }
    }

    /// Checks what can be checked now, so that a stale request costs no log entry; applying checks
    /// again, since the group's state may change in between.
    private func write(_ operation: Operation, to replica: GroupReplica, _ waiter: Waiter) {
        guard replica.core.canPropose else {
            replica.answerNotLeader(waiter)
            return
        }
        do throws(DatabaseError) {
            let owned = try replica.state.owned(operation.shard, operation.epoch)
            storageKey.set(
                replica.store, owned.shard.table, owned.partitioning, key: operation.key)
            guard owned.shard.range.contains(storageKey.routedKey) else {
                throw DatabaseError(.staleEpoch, "the key is not in shard \(operation.shard)")
            }
            replica.count(operation, owned)
            if try replica.holds(operation, owned, waiter: waiter) { return }
            try replica.enqueue(
                operation.bytes, keyHash: stableHash(storageKey.bytes), waiter: waiter)
        } catch {
            answer(waiter, error: error)
        }
    }

    /// Another node's leader reads a shard that moves there.
    func receive(_ request: ShardReadRequest, from sender: NodeID) {
        guard let replica = replicas[request.source] else { return }
        if request.to == nil, !request.isGentle { noteDisturbance() }
        let answer = replica.answer(request)
        peers.send(.shardRecords, to: sender) { answer.encode(into: &$0) }
    }

    func receive(_ answer: ShardRecords) {
        guard let replica = replicas[answer.target] else { return }
        replica.receive(answer)
        replica.continueCopies()
    }

    func receive(_ message: PeerMessage, from sender: NodeID) {
        metrics.peerMessages.increment()
        guard let replica = replicas[message.group], replica.id == message.to else { return }
        replica.receive(message.message, from: message.from, node: sender)
    }
}
