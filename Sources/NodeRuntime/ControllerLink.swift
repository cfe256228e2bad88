// The node's side of its controllers: registration, heartbeats, commands, and the cluster map.

import EventLoop
import KVBase
import RPC
import ShardCore
import SystemdSupport
import WireProtocol

/// One connection to one controller. The node keeps one for each configured controller and registers
/// with the one that acts; heartbeats go where it is registered.
final class ControllerLink {
    private unowned let node: NodeServer
    private var client: RPCClient?
    private(set) var isRegistered = false
    private var sequence: UInt64 = 0
    /// Shards that this controller has no figures of yet.
    private var reportsAllShards = true
    private var lastError: DatabaseError?

    init(node: NodeServer, address: SocketAddress) {
        self.node = node
        client = RPCClient(
            transport: node.transport, address: address, hello: { [unowned node] in node.hello() },
            delegate: self)
    }

    func close() { client?.close() }

    func sendHeartbeat() {
        guard isRegistered, let connection = client?.connection, !connection.isCongested else {
            return
        }
        sequence += 1
        let heartbeat = node.heartbeat(sequence: sequence, allShards: reportsAllShards)
        reportsAllShards = false
        connection.send(.nodeHeartbeat) { heartbeat.encode(into: &$0) }
    }

    func send(_ outcomes: [CommandOutcome]) {
        guard isRegistered else { return }
        client?.connection?.send(.commandOutcomes) { writer in
            writer.write(list: outcomes) { writer, outcome in outcome.encode(into: &writer) }
        }
    }

    func reportUnreachable(_ peer: NodeID) {
        guard isRegistered else { return }
        client?.connection?.send(.unreachable) { $0.write(peer) }
    }

    private func watch() {
        client?.connection?.send(.watchMap) { [node] writer in writer.write(node.map.revision) }
    }
}

extension ControllerLink: RPCConnectionDelegate {
    func connectionDidOpen(_ connection: RPCConnection) { register(connection) }

    private func register(_ connection: RPCConnection) {
        connection.send(.register) { [node] writer in node.registration().encode(into: &writer) }
    }

    func connection(
        _ connection: RPCConnection, didReceive kind: FrameKind, body: UnsafeRawBufferPointer
    ) throws(DatabaseError) {
        var reader = ByteReader(body)
        switch kind {
        case .registered:
            let admission = try NodeAdmission(from: &reader)
            try node.admitted(admission)
            isRegistered = true
            reportsAllShards = true
            lastError = nil
            watch()
            sendHeartbeat()
        case .standing:
            // A standby knows no registrations; when it comes to act it wants one.
            if try !ControllerStanding(from: &reader).isActing {
                isRegistered = false
            } else if !isRegistered {
                register(connection)
            }
        case .nodeCommands:
            node.receive(try NodeCommands(from: &reader))
        case .mapUpdate:
            // A map that does not follow ours: ask for all of it.
            if !node.follow(try MapUpdate(from: &reader)) {
                connection.send(.watchMap) { $0.write(Revision.none) }
            }
        default:
            throw DatabaseError(.malformed, "\(kind) from a controller")
        }
    }

    func connectionDidClose(_ connection: RPCConnection, reason: DatabaseError?) {
        let wasRegistered = isRegistered
        isRegistered = false
        // Refused registrations repeat with every attempt: say it once.
        if let reason, wasRegistered || reason != lastError {
            node.log.warning(
                "controller connection closed",
                [LogField("address", connection.remoteAddress), LogField("reason", reason.message)])
        }
        lastError = reason
    }
}
