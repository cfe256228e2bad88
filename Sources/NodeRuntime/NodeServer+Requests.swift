// Requests of routers, and replication messages of peers.

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
        while !reader.isAtEnd {
            let token = try reader.readUInt32()
            let operation = try Operation(from: &reader)
            guard !operation.code.isControl else {
                throw DatabaseError(.malformed, "\(operation.code) from a router")
            }
            metrics.requests.increment()
            let waiter = Waiter(
                slot: session.slot, generation: session.generation, token: UInt64(token))
            guard let replica = replicas[operation.group], !replica.isFailed else {
                answer(
                    waiter,
                    error: DatabaseError(.notLeader, "no replica of group \(operation.group)"))
                continue
            }
            if operation.code.isWrite {
                write(operation, to: replica, waiter)
            } else {
                replica.read(operation, waiter: waiter)
            }
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
            try replica.enqueue(
                operation.bytes, keyHash: stableHash(storageKey.bytes), waiter: waiter)
        } catch {
            answer(waiter, error: error)
        }
    }

    func receive(_ message: PeerMessage, from sender: NodeID) {
        metrics.peerMessages.increment()
        guard let replica = replicas[message.group], replica.id == message.to else { return }
        replica.receive(message.message, from: message.from, node: sender)
    }
}
