// What a controller shows of its inside: its queues, as the loop published them last.

import AdminHTTP
import ControllerCore
import Daemon
import KVBase
import MetadataCore
import MetadataStore
import RPC
import Synchronization

/// Published by the loop; read by the admin server's thread.
final class ControllerPages: Sendable {
    private let queues = Mutex("{}\n")
    private let reason = Mutex<String?>(nil)

    /// Why the controller cannot act, when there is more to say than that another one does.
    var obstacle: String? { reason.withLock { $0 } }

    /// Adds `/debug/queues`.
    func add(to daemon: DaemonContext) {
        daemon.addDebugPage("queues") { [self] _ in .json(queues.withLock { $0 }) }
    }

    func publish(_ server: ControllerServer) {
        let sessions = server.sessions.values
        let waiting = sessions.reduce(0) { $0 + $1.requestsWaiting }
        let unsent = sessions.reduce(0) { $0 + $1.connection.pendingBytes }
        let controller = server.controller
        let open = controller?.storedOperations.count { !$0.record.isFinished } ?? 0
        let page =
            "{\"acting\":\(controller?.isActing ?? false)"
            + ",\"connections\":\(sessions.count)"
            + ",\"map_followers\":\(sessions.count(where: \.followsMap))"
            + ",\"requests_waiting\":\(waiting),\"unsent_bytes\":\(unsent)"
            + ",\"table_procedures\":\(controller?.proceduresInFlight ?? 0)"
            + ",\"operations_open\":\(open)"
            + ",\"metadata_revision\":"
            + "\"\(server.home.state?.revision.rawValue ?? 0)\"}\n"
        queues.withLock { $0 = page }
        let obstacle = server.home.obstacle
        reason.withLock { $0 = obstacle }
    }
}
