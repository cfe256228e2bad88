// Wall clocks: a controller that stands by compares its own with the acting one's, and the acting one
// knows what every daemon that is connected found.

import ControllerCore
import EventLoop
import KVBase
import RPC
import WireProtocol

/// A connection of a controller that stands by to the acting one; used for nothing else, so that it is
/// the same whatever keeps the metadata.
final class ClockLink: RPCConnectionDelegate {
    let address: String
    private var client: RPCClient?

    init(_ text: String, _ address: SocketAddress, server: ControllerServer) {
        self.address = text
        client = RPCClient(
            transport: server.transport, address: address,
            hello: { [unowned server] in server.hello() }, delegate: self)
        didMeasure = { [unowned server] in
            server.metrics.clockOffset.take(
                $0, from: $1, now: server.loop.now, wallClock: EventLoop.wallClockNanoseconds())
        }
    }

    private var didMeasure: (RoundTrip, String) -> Void = { _, _ in }

    func close() { client?.close() }
    func ping(clockOffset: Int64?) { client?.connection?.ping(clockOffset: clockOffset) }

    func connectionDidOpen(_ connection: RPCConnection) {
        let name = connection.peer?.name ?? ""
        connection.didMeasure = { [weak self] in self?.didMeasure($0, name) }
        connection.ping()
    }

    func connection(
        _ connection: RPCConnection, didReceive kind: FrameKind, body: UnsafeRawBufferPointer
    ) throws(DatabaseError) {
        throw DatabaseError(.malformed, "\(kind) on a connection for clocks")
    }

    func connectionDidClose(_ connection: RPCConnection, reason: DatabaseError?) {}
}

extension ControllerServer {
    /// Called twice a second.
    func compareClocks() {
        let standing = standing
        if standing.isActing { metrics.clockOffset.takeOwn(now: loop.now) }
        let wanted = standing.isActing ? "" : standing.address
        if clockLink?.address != wanted {
            clockLink?.close()
            clockLink = (try? SocketAddress.parse(wanted)).map {
                ClockLink(wanted, $0, server: self)
            }
        }
        clockLink?.ping(clockOffset: metrics.clockOffset.value(at: loop.now))
    }

    /// Daemons whose wall clock is too far from this controller's.
    func clockFindings() -> [FindingView] {
        var found: [String: Int64] = [:]
        for session in sessions.values {
            guard let peer = session.connection.peer,
                let offset = session.connection.peerClockOffset,
                offset.magnitude > ClockOffset.warningBound.count
            else { continue }
            found[peer.name] = offset
        }
        return found.sorted { $0.key < $1.key }.map { name, offset in
            let millis = offset.magnitude / 1_000_000
            return FindingView(
                code: "RK023", severity: "warning",
                text: "the clock of \(name) is \(millis) ms "
                    + (offset > 0 ? "ahead of" : "behind")
                    + " that of the acting controller, \(settings.core.name)",
                advice: found.count > 1
                    ? "several differ: look at the controller's clock first (timedatectl)"
                    : "set it: see to the time service there (timedatectl, chronyc tracking)")
        }
    }

    /// What wants an operator's eye and is not in the cluster's records.
    func ownFindings() -> [FindingView] {
        [routerFinding(), backupFinding(), stalenessFinding()].compactMap(\.self)
            + controllerFindings() + (quorum?.strayFindings(now: loop.now) ?? []) + clockFindings()
    }

    /// The routers that are connected to this controller.
    var routers: [Hello] {
        sessions.values.compactMap(\.connection.peer).filter { $0.role == .router }
    }

    private func routerFinding() -> FindingView? {
        guard routers.isEmpty else { return nil }
        return FindingView(
            code: "RK003", severity: "critical",
            text: "no router is connected: clients reach nothing",
            advice: "start one: systemctl start kvrouter; if one runs, see whether its controllers "
                + "setting names \(settings.ownAddress)")
    }
}
