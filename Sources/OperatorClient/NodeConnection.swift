// Asking a node what it knows of the cluster by itself.

import KVBase
import ShardCore
import WireProtocol

public enum NodeConnection {
    /// Everything the node at `address` (`host:port` of its RPC) knows.
    public static func holdings(
        address: String, deadline: Deadline
    ) throws(ClientError) -> NodeHoldings {
        let socket = try BlockingSocket(address: address, deadline: deadline)
        var received: Bytes = []
        let peer = try ToolGreeting.exchange(socket, &received, deadline: deadline)
        guard peer.role == .node else {
            throw ClientError(
                .answered(.invalidRequest), "\(address) is no node but a \(peer.role)")
        }
        var writer = ByteWriter()
        Frame.append(.holdingsRequest, to: &writer) { _ in }
        try socket.send(writer.take(), deadline: deadline)
        var holdings: NodeHoldings?
        while true {
            let (kind, body) = try ToolGreeting.readFrame(socket, &received, deadline)
            // A node tells whoever is connected about leaders.
            guard kind == .holdings else { continue }
            if body.isEmpty, let holdings { return holdings }
            do throws(DatabaseError) {
                if holdings == nil {
                    holdings = try ByteReader.decode(body) { (reader) throws(DatabaseError) in
                        try NodeHoldings(headFrom: &reader)
                    }
                } else {
                    holdings?.replicas.append(
                        try ByteReader.decode(body) { (reader) throws(DatabaseError) in
                            try ReplicaHolding(from: &reader)
                        })
                }
            } catch {
                throw ClientError(.malformed, "holdings of \(address): \(error.message)")
            }
        }
    }
}
