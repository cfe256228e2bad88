// What `status` can say while no controller acts: what the nodes themselves know.

import KVBase
import OperatorClient
import ShardCore

/// A status made of the nodes' own records. It has the shape of a controller's answer, without what
/// only a controller knows.
struct NodesStatus {
    private let census: NodeCensus
    /// Why no controller was asked.
    private let reason: String

    /// Nil when none of the nodes at `addresses` answers.
    init?(_ addresses: [String], timeout: Double, reason: String) {
        census = NodeCensus(addresses, timeout: timeout)
        self.reason = reason
        guard !census.holdings.isEmpty else { return nil }
    }

    var json: JSONValue {
        let groups = self.groups
        var findings = [reason + "; asked the nodes themselves"]
        findings += nodes.filter { answer(of: $0.id) == nil }.map { "\($0.name) does not answer" }
        findings += groups.filter { $0["leader"] == .null }.map {
            "group \($0["id"].text) has no leader"
        }
        return [
            "verdict": "uncontrolled", "findings": .array(findings.map { .string($0) }),
            "cluster": .string(hex(newest.cluster)),
            "revision": .unsigned(newest.mapRevision.rawValue),
            "controllers": [], "routers": [],
            "nodes": .array(nodes.map(describe)), "groups": .array(groups),
            "tables": .integer(Int64(newest.tables.count)),
        ]
    }

    /// The answer with the newest map.
    private var newest: NodeHoldings {
        census.holdings.max { $0.mapRevision < $1.mapRevision }!
    }

    private var nodes: [Node] { newest.nodes.sorted { $0.id < $1.id } }

    private func answer(of node: NodeID) -> NodeHoldings? {
        census.holdings.first { $0.node.id == node }
    }

    private func describe(_ node: Node) -> JSONValue {
        let answer = answer(of: node.id)
        let state = answer == nil ? "unreachable" : node.isSpare ? "spare" : "up"
        return [
            "name": .string(node.name), "id": .integer(Int64(node.id.rawValue)),
            "state": .string(state), "zone": .string(node.zone),
            "rpc": .string(node.rpcAddress), "admin": .string(node.adminAddress),
            "replicas": Self.count(answer?.replicas.count),
            "leaders": Self.count(answer?.replicas.count { $0.isServing }),
        ]
    }

    private static func count(_ count: Int?) -> JSONValue {
        count.map { .integer(Int64($0)) } ?? .null
    }

    /// Every group of which a replica answered, as its leader has it, or else the replica that has
    /// applied most.
    private var groups: [JSONValue] {
        let replicas = census.holdings.flatMap { answer in
            answer.replicas.map { (node: answer.node, holding: $0) }
        }
        return Set(replicas.map(\.holding.group)).sorted().map { group in
            let members = replicas.filter { $0.holding.group == group }
            let leader = members.filter(\.holding.isServing).max {
                $0.holding.term < $1.holding.term
            }
            let (_, view) = leader ?? members.max { $0.holding.applied < $1.holding.applied }!
            let voters = view.voters.map { voter -> JSONValue in
                let present = members.contains { $0.holding.replica == voter.replica }
                let name = nodes.first { $0.id == voter.node }?.name
                return [
                    "node": .string(name ?? "node \(voter.node)"),
                    "replica": .integer(Int64(voter.replica.rawValue)),
                    "state": present ? "active" : "unreachable",
                ]
            }
            return [
                "id": .integer(Int64(group.rawValue)), "engine": .string("\(view.engine)"),
                "state": leader == nil ? "unavailable" : "active",
                "term": .unsigned(view.term.rawValue),
                "leader": leader.map { .string($0.node.name) } ?? .null,
                "replicas": .array(voters),
            ]
        }
    }
}
