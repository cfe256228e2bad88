// Connections between controllers. Each speaks on the connections that it dialled and listens on those
// it accepted, like nodes do.

import EventLoop
import KVBase
import MetadataCore
import RPC
import ReplicationCore
import SystemdSupport
import WireProtocol

/// One outgoing connection to another controller.
final class QuorumLink: RPCConnectionDelegate {
    /// Beyond this many unsent bytes messages are dropped: replication repeats what matters.
    static let backlogBytesMax = 64 << 20

    let place: ControllerIntroduction.Place
    private var client: RPCClient?
    private unowned let links: QuorumLinks
    /// The other side has said that it is the replica this link is for.
    private(set) var isIntroduced = false
    /// Why there is no connection, or none that is of use.
    private(set) var lastError: DatabaseError?

    init(_ place: ControllerIntroduction.Place, links: QuorumLinks, address: SocketAddress) {
        self.place = place
        self.links = links
        client = RPCClient(
            transport: links.transport, address: address,
            hello: { [unowned links] in links.hello() }, delegate: self)
    }

    /// What the other side said of itself; nil while there is no connection.
    var peer: Hello? { client?.connection?.peer }

    func close() { client?.close() }

    func send(_ kind: FrameKind, _ body: (inout ByteWriter) -> Void) {
        guard let connection = client?.connection, isIntroduced || kind == .introduction,
            connection.pendingBytes < Self.backlogBytesMax
        else { return }
        connection.send(kind, body)
    }

    func connectionDidOpen(_ connection: RPCConnection) { links.opened(self) }

    func connection(
        _ connection: RPCConnection, didReceive kind: FrameKind, body: UnsafeRawBufferPointer
    ) throws(DatabaseError) {
        var reader = ByteReader(body)
        switch kind {
        case .introduced:
            let replica: ReplicaID = try reader.read()
            guard replica == place.replica else { return }
            isIntroduced = true
            lastError = nil
            links.introduced(self)
        // What a standby tells whoever connects.
        case .standing: break
        default: throw DatabaseError(.malformed, "\(kind) on a connection between controllers")
        }
    }

    func connectionDidClose(_ connection: RPCConnection, reason: DatabaseError?) {
        let wasIntroduced = isIntroduced
        isIntroduced = false
        if let reason, wasIntroduced || reason != lastError {
            links.log.notice(
                "connection to a controller closed",
                [
                    LogField("controller", place.name), LogField("address", place.address),
                    LogField("reason", reason.message),
                ])
        }
        lastError = reason
        links.closed(self)
    }
}

/// All outgoing connections, kept in step with who is known.
final class QuorumLinks {
    let transport: RPCTransport
    let hello: () -> Hello
    let log: ComponentLog
    private(set) var links: [QuorumLink] = []
    var opened: (QuorumLink) -> Void = { _ in }
    var introduced: (QuorumLink) -> Void = { _ in }
    var closed: (QuorumLink) -> Void = { _ in }

    init(transport: RPCTransport, log: ComponentLog, hello: @escaping () -> Hello) {
        self.transport = transport
        self.log = log
        self.hello = hello
    }

    subscript(replica: ReplicaID) -> QuorumLink? {
        links.first { $0.place.replica == replica }
    }

    /// Makes `places` the controllers that are dialled; connections to others are closed.
    func update(_ places: [ControllerIntroduction.Place]) {
        let gone = links.filter { !places.contains($0.place) }
        links.removeAll { link in gone.contains { $0 === link } }
        for link in gone { link.close() }
        for place in places where !links.contains(where: { $0.place == place }) {
            do throws(DatabaseError) {
                let address = try SocketAddress.parse(place.address)
                links.append(QuorumLink(place, links: self, address: address))
            } catch {
                log.error(
                    "a controller cannot be reached",
                    [LogField("controller", place.name), LogField("reason", error.message)])
            }
        }
    }

    func close() {
        for link in links { link.close() }
        links.removeAll()
    }
}
