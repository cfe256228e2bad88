// One connection to the controller: of a node, a router, or an operator's tool.

import ControllerCore
import KVBase
import RPC
import ShardCore
import WireProtocol

final class ControllerSession: RPCConnectionDelegate {
    let id: ConnectionID
    let connection: RPCConnection
    private unowned let server: ControllerServer
    /// Gets every update of the map.
    var followsMap = false
    /// Asked for the whole map, which is being made.
    var waitsForMap = false
    var mapScope = MapScope.whole
    /// What waited to be sent when it began to follow: a whole map may take its time.
    var wholeMapBytes = 0
    /// Table requests that wait until the map has been sent.
    var held: [(request: TableRequest, token: UInt32)] = []

    /// Table requests of one connection that wait for their answers.
    static let requestsWaitingMax = 1_000
    var requestsWaiting = 0

    /// The replica of the metadata group that speaks here, once it has introduced itself.
    private var member: ReplicaID?

    init(id: ConnectionID, connection: RPCConnection, server: ControllerServer) {
        self.id = id
        self.connection = connection
        self.server = server
    }

    func connectionDidOpen(_ connection: RPCConnection) {
        if server.controller?.isActing != true { stands(server.standing) }
    }

    func connection(
        _ connection: RPCConnection, didReceive kind: FrameKind, body: UnsafeRawBufferPointer
    ) throws(DatabaseError) {
        var reader = ByteReader(body)
        if connection.peer?.role == .controller { return try receive(kind, &reader, connection) }
        switch kind {
        case .register:
            // A node registers again when this controller says that it acts.
            guard server.controller?.isActing == true else { return }
            server.step(.register(id, try NodeRegistration(from: &reader)))
        case .nodeHeartbeat:
            server.step(.heartbeat(id, try NodeHeartbeat(from: &reader)))
        case .commandOutcomes:
            let outcomes = try reader.readList(elementBytesMin: 17) {
                (reader) throws(DatabaseError) in try CommandOutcome(from: &reader)
            }
            server.step(.outcomes(id, outcomes))
        case .unreachable:
            server.step(.unreachable(id, node: try reader.read()))
        case .watchMap:
            let revision: Revision = try reader.read()
            server.watchMap(self, from: revision, reader.isAtEnd ? .whole : try reader.readEnum())
        case .tableRequest:
            let token = try reader.readUInt32()
            server.tableRequest(try TableRequest(from: &reader), token: token, of: self)
        case .adminRequest:
            let token = try reader.readUInt32()
            server.adminRequest(Bytes(try reader.readRaw(reader.remaining)), token, of: self)
        default:
            throw DatabaseError(.malformed, "\(kind) to a controller")
        }
    }

    /// From another controller.
    private func receive(
        _ kind: FrameKind, _ reader: inout ByteReader, _ connection: RPCConnection
    ) throws(DatabaseError) {
        guard let quorum = server.quorum else {
            throw DatabaseError(
                .refused, "this controller keeps its metadata in etcd and is in no metadata group")
        }
        if kind == .introduction {
            member = try quorum.receive(
                try ControllerIntroduction(from: &reader), on: connection)
            return
        }
        guard let member else { return }
        switch kind {
        case .peerMessages: try quorum.receive(&reader, from: member)
        case .snapshotChunk:
            try quorum.receive(try MetadataChunk(from: &reader), from: member)
        case .snapshotAck: quorum.receive(try MetadataChunkAck(from: &reader), from: member)
        default: throw DatabaseError(.malformed, "\(kind) from a controller")
        }
    }

    /// Tells nodes and routers whether this controller acts. One that does not is not asked for the map
    /// and knows no registration.
    func stands(_ standing: ControllerStanding) {
        guard let role = connection.peer?.role, role == .node || role == .router else { return }
        if !standing.isActing {
            (followsMap, waitsForMap) = (false, false)
            for (_, token) in takeHeld() { answer(token, server.notActing) }
        }
        connection.send(.standing) { standing.encode(into: &$0) }
    }

    func takeHeld() -> [(request: TableRequest, token: UInt32)] {
        let taken = held
        held = []
        return taken
    }

    func connectionDidClose(_ connection: RPCConnection, reason: DatabaseError?) {
        server.closed(self)
    }
}
