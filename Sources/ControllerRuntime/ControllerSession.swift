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
    /// What waited to be sent when it began to follow: a whole map may take its time.
    var wholeMapBytes = 0

    /// Table requests of one connection that wait for their answers.
    static let requestsWaitingMax = 1_000
    var requestsWaiting = 0

    init(id: ConnectionID, connection: RPCConnection, server: ControllerServer) {
        self.id = id
        self.connection = connection
        self.server = server
    }

    func connectionDidOpen(_ connection: RPCConnection) {
        if server.controller == nil {
            connection.close(DatabaseError(.unavailable, "this controller stands by"))
        }
    }

    func connection(
        _ connection: RPCConnection, didReceive kind: FrameKind, body: UnsafeRawBufferPointer
    ) throws(DatabaseError) {
        var reader = ByteReader(body)
        switch kind {
        case .register:
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
            server.watchMap(self, from: try reader.read())
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

    func connectionDidClose(_ connection: RPCConnection, reason: DatabaseError?) {
        server.closed(self)
    }
}
