// What a router shows of its inside: its queues, as the loop published them last.

import AdminHTTP
import Daemon
import KVBase
import RouterCore
import ShardCore

extension RouterStatus {
    /// Adds `/debug/queues` and `/debug/problems`.
    func addPages(to daemon: DaemonContext) {
        daemon.addDebugPage("queues") { [self] _ in queuesPage() }
        daemon.addDebugPage("problems") { [self] _ in
            let problems = current.problems.map(JSONText.quoted).joined(separator: ",")
            return .json("{\"problems\":[\(problems)]}\n")
        }
    }

    private func queuesPage() -> AdminResponse {
        let snapshot = current
        let nodes = snapshot.links.map {
            "{\"node\":\"\($0.node)\",\"name\":\(JSONText.quoted($0.name))"
                + ",\"connected\":\($0.isOpen),\"unsent_bytes\":\($0.unsentBytes)}"
        }
        return .json(
            "{\"operations\":\(snapshot.pendingOperations)"
                + ",\"operation_bytes\":\(snapshot.pendingBytes)"
                + ",\"clients\":\(snapshot.clients)"
                + ",\"map_revision\":\"\(snapshot.revision.ofMap)\""
                + ",\"groups_unroutable\":\(snapshot.groupsUnroutable)"
                + ",\"controller_connected\":\(snapshot.controllerIsConnected)"
                + ",\"nodes\":[\(nodes.joined(separator: ","))]}\n")
    }
}
