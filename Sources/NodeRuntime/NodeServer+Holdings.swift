// What this node knows of the cluster by itself, for whoever rebuilds the map.

import KVBase
import NodeCore
import RPC
import ReplicationCore
import ShardCore
import WireProtocol

extension NodeServer {
    /// Answers `holdingsRequest`: the head, then each replica, then an empty frame.
    func tellHoldings(to connection: RPCConnection) {
        let registered = registration()
        let known = book
        let head = NodeHoldings(
            cluster: identity.cluster,
            node: Node(
                id: identity.node, name: registered.name, rpcAddress: registered.rpcAddress,
                adminAddress: registered.adminAddress, zone: registered.zone,
                isSpare: registered.isSpare, diskCount: UInt8(registered.diskPaths.count)),
            controllerTerm: controllerTerm, isControlled: isControlled,
            mapRevision: known.revision, nodes: known.nodes, tables: known.tables,
            groups: Array(map.groups.elements))
        connection.send(.holdings) { head.encodeHead(into: &$0) }
        for replica in replicas.elements {
            connection.send(.holdings) { replica.holding.encode(into: &$0) }
        }
        connection.send(.holdings) { _ in }
    }
}

extension GroupReplica {
    var holding: ReplicaHolding {
        let membership = state.membership
        return ReplicaHolding(
            group: group, replica: id, engine: engineKind, disk: UInt8(disk.index),
            isServing: isLeader && core.canPropose && !isFailed, term: core.term,
            applied: state.applied.index,
            voters: membership.voters.map { voter in
                Placement(
                    replica: voter.replica, node: voter.node,
                    disk: voter.replica == id ? UInt8(disk.index) : 0)
            },
            learners: membership.learners.map(\.replica),
            isChanging: membership.isJoint || membership != core.membership,
            shards: state.shards.elements.map { held in
                let standing: ShardStanding =
                    switch held.phase {
                    case .owned: .owned
                    case .fenced(let group, _, let isWhole): .fenced(to: group, isWhole: isWhole)
                    case .importing(let group, _, _): .importing(from: group)
                    }
                return ShardHolding(
                    shard: held.shard, partitioning: held.partitioning, standing: standing)
            })
    }
}
