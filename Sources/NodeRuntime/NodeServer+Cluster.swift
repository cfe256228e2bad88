// The node's place in the cluster: the identity that a controller gave it, and the map that it follows.

import EventLoop
import KVBase
import RPC
import ShardCore
import SystemdSupport
import WireProtocol

extension NodeServer {
    /// Takes over the identity that a controller gave; durable before it is used.
    func admitted(_ admission: NodeAdmission) throws(DatabaseError) {
        guard identity.node != admission.node || identity.cluster != admission.cluster else {
            return
        }
        guard identity.node == .none else {
            throw DatabaseError(
                .fenced, "a controller takes node \(identity.node) for \(admission.node)")
        }
        for disk in disks {
            let own = NodeIdentity(
                node: admission.node, cluster: admission.cluster, disk: disk.index,
                diskCount: disks.count)
            try own.write(directory: disk.path)
        }
        identity.node = admission.node
        identity.cluster = admission.cluster
        publishStatus()
        log.notice(
            "admitted to the cluster", [LogField("node", admission.node)], event: .nodeAdmitted)
    }

    func registration() -> NodeRegistration {
        NodeRegistration(
            node: identity.node, cluster: identity.cluster, incarnation: incarnation,
            name: settings.name, rpcAddress: server?.localAddress.description ?? "",
            adminAddress: settings.adminAddress, zone: settings.zone, isSpare: settings.isSpare,
            diskPaths: settings.dataDirectories)
    }

    /// Takes over a step of the cluster map; false when it does not fit.
    func follow(_ update: MapUpdate) -> Bool {
        guard map.apply(update) else { return false }
        updatePeers(Array(map.nodes.elements))
        // Of a whole map in pieces the nodes are known with the last.
        let touchesBook =
            (update.isFull && update.isLast)
            || update.changes.contains {
                switch $0 {
                case .node, .nodeRemoved, .table, .tableRemoved: true
                default: false
                }
            }
        if touchesBook { writeAddressBook() }
        return true
    }

    func updatePeers(_ nodes: [Node]) {
        var addresses: [(NodeID, SocketAddress)] = []
        for peer in nodes where peer.id != identity.node {
            if let address = try? SocketAddress.parse(peer.rpcAddress) {
                addresses.append((peer.id, address))
            }
        }
        peers.update(addresses)
    }
}
