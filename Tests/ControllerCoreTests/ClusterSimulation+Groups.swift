// How simulated groups get replicas, change their members and elect leaders.

import KVBase
import ShardCore

@testable import ControllerCore

extension ClusterSimulation {
    func create(_ replica: ReplicaID, of group: Group, at index: Int) -> DatabaseError? {
        if nodes[index].refusesReplicas { return DatabaseError(.storageFailed, "disk /a failed") }
        if nodes[index].buried.contains(replica) { return DatabaseError(.fenced, "was removed") }
        if let held = nodes[index].replicas.first(where: { $0.group.id == group.id }) {
            return held.replica.id == replica ? nil : DatabaseError(.refused, "holds another")
        }
        nodes[index].replicas.append((group, Replica(id: replica)))
        return nil
    }

    /// Whether a majority of the voters runs.
    func hasMajority(_ group: GroupID, of voters: [ReplicaID]? = nil) -> Bool {
        guard let voters = voters ?? memberships[group]?.voters else { return false }
        let running = voters.count { voter in
            nodes.contains { $0.isRunning && $0.replicas.contains { $0.replica.id == voter } }
        }
        return running > voters.count / 2
    }

    func swap(_ group: GroupID, to voters: [ReplicaID], at index: Int) -> DatabaseError? {
        guard let term = nodes[index].leads[group], let before = memberships[group],
            hasMajority(group)
        else { return DatabaseError(.notLeader, "not leader") }
        if Set(before.voters) == Set(voters) { return nil }
        for voter in voters where !before.voters.contains(voter) {
            guard before.learners.contains(voter), before.beats[voter] ?? 0 >= 3 else {
                return DatabaseError(.refused, "replica \(voter) is unknown or behind")
            }
        }
        guard hasMajority(group, of: voters) else {
            return DatabaseError(.refused, "would stop the group")
        }
        let isGrowth =
            voters.count == before.voters.count + 1 && before.voters.allSatisfy(voters.contains)
        if voters.count != before.voters.count, !isGrowth {
            violations.append("voters \(before.voters) were changed to \(voters)")
        }
        memberships[group] = Members(
            voters: voters, learners: before.learners.filter { !voters.contains($0) })
        let own = nodes[index].replicas.first { $0.group.id == group }?.replica.id
        if let own, !voters.contains(own) {
            // A leader that is no voter any more hands over.
            nodes[index].leads[group] = nil
            for (other, node) in nodes.enumerated() where node.isRunning {
                guard
                    let held = node.replicas.first(where: { voters.contains($0.replica.id) })?
                        .replica.id
                else { continue }
                _ = elect(group, held, term.next(), at: other)
                if nodes[other].leads[group] != nil { break }
            }
        }
        return nil
    }

    func elect(_ group: GroupID, _ replica: ReplicaID, _ term: Term, at index: Int)
        -> DatabaseError?
    {
        guard let position = nodes[index].replicas.firstIndex(where: { $0.replica.id == replica })
        else { return DatabaseError(.fenced, "unknown replica") }
        guard term > nodes[index].replicas[position].replica.term else {
            return DatabaseError(.fenced, "old term")
        }
        let own = nodes[index].replicas[position].replica
        let electors = memberships[group]?.voters ?? []
        guard electors.contains(replica) else { return DatabaseError(.refused, "not a voter") }
        var voters: [(node: Int, replica: Int)] = []
        for (other, node) in nodes.enumerated() where node.isRunning {
            for (slot, held) in node.replicas.enumerated() where held.group.id == group {
                let behind =
                    (held.replica.lastTerm, held.replica.lastIndex) <= (own.lastTerm, own.lastIndex)
                guard electors.contains(held.replica.id) else { continue }
                if held.replica.term < term, behind { voters.append((other, slot)) }
            }
        }
        nodes[index].replicas[position].replica.term = term
        guard voters.count > electors.count / 2 else { return nil }
        let key = "\(group)/\(term)"
        if leaderOfTerm[key] != nil { violations.append("two leaders of \(key)") }
        leaderOfTerm[key] = nodes[index].id
        for (other, slot) in voters {
            nodes[other].replicas[slot].replica.term = term
            nodes[other].replicas[slot].replica.lastTerm = term
            nodes[other].replicas[slot].replica.lastIndex = own.lastIndex.next()
        }
        for other in nodes.indices { nodes[other].leads[group] = nil }
        nodes[index].leads[group] = term
        return nil
    }
}
