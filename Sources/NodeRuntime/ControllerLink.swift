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
    /// This controller has figures of all shards up to this one; nil: of all.
    private var toldThrough: ShardID? = ShardID.none
    /// The newest report of the load that was sent here.
    private var loadNumber: UInt64 = 0
    private var lastError: DatabaseError?

    init(node: NodeServer, address: SocketAddress) {
        self.node = node
        client = RPCClient(
            transport: node.transport, address: address, hello: { [unowned node] in node.hello() },
            delegate: self)
    }

    var isConnected: Bool { client?.connection != nil }

    func close() { client?.close() }

    func sendHeartbeat() {
        guard isRegistered, let connection = client?.connection, !connection.isCongested else {
            // What changed is not told twice.
            toldThrough = ShardID.none
            return
        }
        sequence += 1
        let heartbeat = node.heartbeat(
            sequence: sequence, shards: takeReports(), withLoad: loadNumber != node.loadNumber)
        loadNumber = node.loadNumber
        connection.send(.nodeHeartbeat) { heartbeat.encode(into: &$0) }
    }

    /// Figures that this controller lacks, as many as a frame holds; the rest comes with the next
    /// heartbeats.
    private func takeReports() -> [ShardReport] {
        var reports: [ShardReport] = []
        var bytes = 0
        func take(_ report: ShardReport) -> Bool {
            guard bytes < Limits.pieceBytesMax else { return false }
            reports.append(report)
            bytes += 36 + (report.middle?.count ?? 0) + report.spread.byteCount
            return true
        }
        for shard in node.changedReports {
            guard let report = node.shardReports[shard] else { continue }
            if !take(report) {
                toldThrough = ShardID.none
                return reports
            }
        }
        guard let told = toldThrough else { return reports }
        for report in node.shardReports.elements where report.shard > told {
            guard take(report) else { return reports }
            toldThrough = report.shard
        }
        toldThrough = nil
        return reports
    }

    /// Compares clocks with the controller, when it acts.
    func ping(clockOffset: Int64?) {
        guard isRegistered else { return }
        client?.connection?.ping(clockOffset: clockOffset)
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
        guard let connection = client?.connection else { return }
        watch(connection, from: node.map.revision)
    }

    private func watch(_ connection: RPCConnection, from revision: Revision) {
        connection.send(.watchMap) { writer in
            writer.write(revision)
            writer.write(MapScope.withoutShards.rawValue)
        }
    }
}

extension ControllerLink: RPCConnectionDelegate {
    func connectionDidOpen(_ connection: RPCConnection) {
        let name = connection.peer?.name ?? ""
        connection.didMeasure = { [unowned self] in
            if isRegistered { node.compareClock($0, with: name) }
        }
        register(connection)
    }

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
            toldThrough = ShardID.none
            lastError = nil
            node.refusal = nil
            watch()
            sendHeartbeat()
            ping(clockOffset: nil)
            // A controller that begins waits for every node, unless it is told that one is gone.
            for peer in node.peers.lost { reportUnreachable(peer) }
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
                watch(connection, from: .none)
            }
        default:
            throw DatabaseError(.malformed, "\(kind) from a controller")
        }
    }

    func connectionDidClose(_ connection: RPCConnection, reason: DatabaseError?) {
        let wasRegistered = isRegistered
        isRegistered = false
        if let reason, reason.isRefusal { node.refusal = reason.message }
        // Refused registrations repeat with every attempt: say it once.
        if let reason, wasRegistered || reason != lastError {
            node.log.warning(
                "controller connection closed",
                [
                    LogField("address", connection.remoteAddress),
                    LogField("reason", reason.message),
                ],
                event: .controllerLost)
        }
        lastError = reason
    }
}

extension DatabaseError {
    /// Whether a controller does not want this node, rather than not being there or not acting.
    fileprivate var isRefusal: Bool {
        switch code {
        case .refused, .fenced, .invalidRequest: true
        default: false
        }
    }
}
