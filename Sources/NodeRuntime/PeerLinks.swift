// Outgoing connections to other nodes: each node speaks on connections that it dialled and listens
// on those it accepted.

import EventLoop
import KVBase
import RPC
import ReplicationCore
import WireProtocol

/// One outgoing connection and the messages that this turn collected for it.
final class PeerLink {
    static let frameBytes = 4 << 20
    /// Beyond this many unsent bytes messages are dropped: replication repeats what matters.
    static let backlogBytesMax = 64 << 20

    let target: NodeID
    let address: SocketAddress
    fileprivate var client: RPCClient?
    private unowned let links: PeerLinks
    private var output = ByteWriter()
    private var frameStart = -1
    private(set) var isQueued = false
    /// The last thing that was seen of the peer is a connection refused or broken.
    fileprivate(set) var isLost = false
    /// Messages that were dropped: no connection, or too much unsent.
    fileprivate(set) var sendFailures: UInt64 = 0

    init(target: NodeID, address: SocketAddress, links: PeerLinks) {
        self.target = target
        self.address = address
        self.links = links
    }

    var isOpen: Bool { client?.connection != nil }

    func append(_ message: PeerMessage) {
        guard let connection = client?.connection,
            connection.pendingBytes < Self.backlogBytesMax
        else {
            sendFailures += 1
            return
        }
        if frameStart < 0 { frameStart = Frame.begin(.peerMessages, in: &output) }
        message.encode(into: &output)
        if output.count - frameStart > Self.frameBytes { endFrame() }
        queue()
    }

    func append(_ kind: FrameKind, _ body: (inout ByteWriter) -> Void) {
        guard isOpen else {
            sendFailures += 1
            return
        }
        endFrame()
        Frame.append(kind, to: &output, body)
        queue()
    }

    func flush() {
        isQueued = false
        endFrame()
        guard output.count > 0 else { return }
        client?.connection?.sendFrames(output.take())
    }

    private func queue() {
        guard !isQueued else { return }
        isQueued = true
        links.queued.append(self)
    }

    private func endFrame() {
        guard frameStart >= 0 else { return }
        Frame.end(frameStart, in: &output)
        frameStart = -1
    }
}

extension PeerLink: RPCConnectionDelegate {
    func connectionDidOpen(_ connection: RPCConnection) {
        isLost = false
        connection.didMeasure = { [unowned links] in links.didMeasure($0) }
        links.didConnect(target)
    }

    func connection(
        _ connection: RPCConnection, didReceive kind: FrameKind, body: UnsafeRawBufferPointer
    ) throws(DatabaseError) {
        throw DatabaseError(.malformed, "\(kind) on an outgoing peer connection")
    }

    func connectionDidClose(_ connection: RPCConnection, reason: DatabaseError?) {
        isLost = true
        links.didDisconnect(target, reason)
    }
}

/// All outgoing connections, kept in step with the cluster map.
final class PeerLinks {
    fileprivate var queued: [PeerLink] = []
    private var links: [NodeID: PeerLink] = [:]
    private let transport: RPCTransport
    private let hello: (_ expects: NodeID) -> Hello
    /// A connection broke or could not be made.
    var didLose: (NodeID, DatabaseError?) -> Void = { _, _ in }
    var didOpen: (NodeID) -> Void = { _ in }
    /// A ping was answered.
    var didMeasure: (RoundTrip) -> Void = { _ in }

    init(transport: RPCTransport, hello: @escaping (_ expects: NodeID) -> Hello) {
        self.transport = transport
        self.hello = hello
    }

    /// Makes `addresses` the nodes that are reachable; connections to others are closed.
    func update(_ addresses: [(NodeID, SocketAddress)]) {
        for (node, address) in addresses where links[node]?.address != address {
            links[node]?.client?.close()
            let link = PeerLink(target: node, address: address, links: self)
            // Counters do not go back when a node has a new address.
            link.sendFailures = links[node]?.sendFailures ?? 0
            links[node] = link
            link.client = RPCClient(
                transport: transport, address: address, hello: { [hello] in hello(node) },
                delegate: link)
        }
        for node in links.keys.sorted() where !addresses.contains(where: { $0.0 == node }) {
            links.removeValue(forKey: node)?.client?.close()
        }
    }

    /// Peers whose connection was refused or broke and is not made again, in order.
    var lost: [NodeID] { links.keys.sorted().filter { links[$0]?.isLost == true } }

    func isOpen(_ node: NodeID) -> Bool { links[node]?.isOpen ?? false }

    /// Every other node, in order.
    var pictures: [(node: NodeID, isOpen: Bool, sendFailures: UInt64, pendingBytes: Int)] {
        links.keys.sorted().compactMap { node in
            links[node].map {
                (node, $0.isOpen, $0.sendFailures, $0.client?.connection?.pendingBytes ?? 0)
            }
        }
    }

    func send(
        _ message: Message, group: GroupID, from: ReplicaID, to: ReplicaID, node: NodeID
    ) {
        links[node]?.append(PeerMessage(group: group, from: from, to: to, message: message))
    }

    func send(_ kind: FrameKind, to node: NodeID, _ body: (inout ByteWriter) -> Void) {
        links[node]?.append(kind, body)
    }

    /// Asks every peer that there is a connection to.
    func ping() {
        for node in links.keys.sorted() { links[node]?.client?.connection?.ping() }
    }

    /// Hands the turn's messages to the connections.
    func flush() {
        var batch: [PeerLink] = []
        swap(&batch, &queued)
        for link in batch { link.flush() }
    }

    func close() {
        for node in links.keys.sorted() { links[node]?.client?.close() }
        links.removeAll()
    }

    fileprivate func didConnect(_ node: NodeID) { didOpen(node) }
    fileprivate func didDisconnect(_ node: NodeID, _ reason: DatabaseError?) {
        didLose(node, reason)
    }
}
