// The router's connection to one node.

import EventLoop
import KVBase
import RPC
import RouterCore
import ShardCore
import WireProtocol

/// Keeps a connection to one node up, passes frames on and answers in.
final class NodeClient: RPCConnectionDelegate {
    let node: NodeID
    let address: String
    private unowned let router: RouterLoop
    private var client: RPCClient?
    private var isClosed = false
    /// The last thing that was seen of the node is a connection refused or broken.
    private(set) var isLost = false

    init(node: NodeID, address: SocketAddress, text: String, router: RouterLoop) {
        self.node = node
        self.address = text
        self.router = router
        let hello: () -> Hello = { [unowned router] in router.hello(expecting: node) }
        client = RPCClient(
            transport: router.transport, address: address, hello: hello, delegate: self)
    }

    var isOpen: Bool { client?.connection != nil }

    var unsentBytes: Int { client?.connection?.pendingBytes ?? 0 }

    func send(_ body: UnsafeRawBufferPointer) {
        client?.connection?.send(.requests) { $0.writeRaw(body) }
    }

    /// Closes for good, as when the node left the cluster.
    func close() {
        isClosed = true
        router.nodeDidClose(node, wasRefused: false)
        client?.close()
    }

    func connectionDidOpen(_ connection: RPCConnection) {
        isLost = false
        if !isClosed { router.nodeDidOpen(node) }
    }

    func connection(
        _ connection: RPCConnection, didReceive kind: FrameKind, body: UnsafeRawBufferPointer
    ) throws(DatabaseError) {
        guard !isClosed else { return }
        switch kind {
        case .responses: try router.receiveResponses(from: node, body)
        case .leaderNotice:
            var reader = ByteReader(body)
            router.observe(try GroupLeader(from: &reader))
        case .finished: router.nodeDidFinish(node)
        default: throw DatabaseError(.malformed, "a node sent \(kind) to a router")
        }
    }

    func connectionDidClose(_ connection: RPCConnection, reason: DatabaseError?) {
        isLost = true
        if !isClosed { router.nodeDidClose(node, wasRefused: true) }
    }
}
