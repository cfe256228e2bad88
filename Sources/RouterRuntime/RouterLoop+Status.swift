// What a router tells of itself: how long requests take, which are slow, and how it stands.

import KVBase
import Metrics
import RouterCore
import ShardCore
import SystemdSupport

extension RouterLoop {
    func observe(_ code: OperationCode, took duration: Nanoseconds) {
        guard options.upstreamDurations.count == 4 else { return }
        let place =
            switch code {
            case .get: 0
            case .put: 1
            case .delete: 2
            default: 3
            }
        options.upstreamDurations[place].observe(duration)
    }

    /// Notes how long a command took that was read at `since`.
    func observe(_ operation: OperationClass, since: Instant, _ result: CommandResult) {
        let took = now - since
        if options.slowRequest > .zero, took > options.slowRequest {
            tellSlow(operation, since: since, result)
        }
        guard operation.rawValue < options.requestDurations.count else { return }
        options.requestDurations[operation.rawValue].observe(took)
    }

    /// Of a command with several operations the times are those of the last that was answered.
    private func tellSlow(_ operation: OperationClass, since: Instant, _ result: CommandResult) {
        statistics.countSlow(operation)
        func milliseconds(_ name: String, _ duration: Nanoseconds) -> LogField {
            LogField("\(name)_ms", duration.count / 1_000_000)
        }
        var fields = [
            LogField("op", operation.name), LogField("result", result.name),
            milliseconds("took", now - since),
        ]
        if let (node, submitted) = answering {
            fields += [
                milliseconds("queue", submitted - since),
                milliseconds("upstream", now - submitted),
                LogField("node", core.map.nodes[node]?.name ?? "\(node)"),
            ]
        }
        log.warning("slow request", fields, event: .slowRequest)
    }

    func publishStatus() {
        lastPublished = now
        var problems: [String] = []
        if core.map.revision == .none {
            problems.append("no cluster map yet: no controller has answered")
        }
        var groupsUnroutable = 0
        for group in core.map.groups.elements {
            groupsUnroutable += 1
            guard let leader = core.map.leader(of: group.id), leader.node != .none else {
                problems.append("group \(group.id) has no leader")
                continue
            }
            if !core.isOpen(leader.node) {
                let name = core.map.nodes[leader.node]?.name ?? "\(leader.node)"
                problems.append("no connection to \(name), which leads group \(group.id)")
            } else {
                groupsUnroutable -= 1
            }
        }
        status.publish(
            RouterSnapshot(
                problems: problems, statistics: statistics, core: core.counters,
                revision: core.map.revision, clients: sessionCount,
                nodesOpen: nodes.values.count { $0.isOpen }, nodes: nodes.count,
                controllerIsConnected: controllers.isConnected,
                pendingOperations: core.pendingOperations, pendingBytes: core.pendingBytes,
                groupsUnroutable: groupsUnroutable,
                links: nodes.sorted { $0.key < $1.key }.map { id, client in
                    RouterSnapshot.NodePicture(
                        node: id, name: core.map.nodes[id]?.name ?? "\(id)",
                        isOpen: client.isOpen, unsentBytes: client.unsentBytes)
                }))
    }
}
