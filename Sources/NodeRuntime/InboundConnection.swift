// What others dial: routers with requests, nodes with replication messages.

import KVBase
import RPC
import ReplicationCore
import ShardCore
import WireProtocol

final class InboundConnection: RPCConnectionDelegate {
    private unowned let node: NodeServer
    private var session: RouterSession?

    init(node: NodeServer) { self.node = node }

    func connectionDidOpen(_ connection: RPCConnection) {
        guard let peer = connection.peer else { return }
        switch peer.role {
        case .router, .operatorTool: session = node.openSession(connection)
        case .node, .controller: break
        }
    }

    func connection(
        _ connection: RPCConnection, didReceive kind: FrameKind, body: UnsafeRawBufferPointer
    ) throws(DatabaseError) {
        var reader = ByteReader(body)
        switch (kind, connection.peer?.role) {
        case (.requests, .router), (.requests, .operatorTool):
            guard let session else { return }
            try node.receiveRequests(&reader, session)
        case (.peerMessages, .node):
            guard let sender = connection.peer?.node, sender != .none else { return }
            while !reader.isAtEnd {
                let message = try PeerMessage(from: &reader)
                node.receive(message, from: sender)
            }
        case (.snapshotChunk, .node):
            guard let sender = connection.peer?.node, sender != .none else { return }
            let chunk = try SnapshotChunk(from: &reader)
            try node.replica(chunk.group)?.receive(chunk, from: sender)
        case (.snapshotAck, .node):
            let ack = try SnapshotAck(from: &reader)
            guard let replica = node.replica(ack.group), ack.to == replica.id,
                let sender = replica.snapshotSenders[ack.from], sender.snapshot == ack.snapshot
            else { return }
            sender.receive(ack)
        case (.shardRead, .node):
            guard let sender = connection.peer?.node, sender != .none else { return }
            node.receive(try ShardReadRequest(from: &reader), from: sender)
        case (.shardRecords, .node):
            node.receive(try ShardRecords(from: &reader))
        case (.holdingsRequest, .operatorTool):
            node.tellHoldings(to: connection)
        case (.scrubRequest, .operatorTool):
            let disks = node.scrub(try ScrubRequest(from: &reader))
            connection.send(.scrubStatus) { writer in
                writer.write(list: disks) { writer, disk in disk.encode(into: &writer) }
            }
        default:
            throw DatabaseError(.malformed, "\(kind) is not for a node")
        }
    }

    func connectionDidClose(_ connection: RPCConnection, reason: DatabaseError?) {
        if let session { node.sessions.close(session) }
        node.forget(self)
    }
}
