// What simulated nodes report of themselves.

import KVBase
import ShardCore

@testable import ControllerCore

extension ClusterSimulation {
    func beat(_ index: Int) {
        guard nodes[index].isAdmitted, let connection = nodes[index].connection else { return }
        nodes[index].sequence += 1
        let node = nodes[index]
        if random.chance(lostPerMille, in: 1_000) { return }
        for group in node.leads.keys.sorted() { feedLearners(of: group, from: index) }
        let reports = nodes[index].replicas.map { held in
            ReplicaReport(
                group: held.group.id, replica: held.replica.id,
                role: node.leads[held.group.id] != nil
                    ? .leader
                    : memberships[held.group.id]?.voters.contains(held.replica.id) == true
                        ? .follower : .learner, state: node.diskFailed ? .failed : .active,
                term: held.replica.term, lastTerm: held.replica.lastTerm,
                lastIndex: held.replica.lastIndex, commit: held.replica.lastIndex,
                applied: LogIndex(states[held.group.id]?.index ?? 0), leader: .none,
                isServing: node.leads[held.group.id] != nil,
                members: node.leads[held.group.id] != nil
                    ? members(of: held.group.id, last: held.replica.lastIndex) : [])
        }
        schedule(
            .microseconds(200),
            .toController(
                .heartbeat(
                    connection,
                    NodeHeartbeat(
                        node: node.id, incarnation: node.incarnation, sequence: node.sequence,
                        mapRevision: .none, loopDelay: node.loopDelay, disks: disks(of: node),
                        replicas: reports,
                        shards: sizes(of: node),
                        load: load(of: node), copies: copies(of: node),
                        digests: isSilentAboutMoves
                            ? [] : node.digests.keys.sorted().compactMap { node.digests[$0] })),
                life: life))
    }

    private func disks(of node: SimNode) -> [DiskReport] {
        guard let free = node.freeBytes else { return [] }
        return ["/a", "/b"].map {
            DiskReport(
                path: $0, state: node.diskFailed ? .failed : .healthy, totalBytes: 1 << 40,
                freeBytes: free, dataBytes: 0)
        }
    }

    /// A running learner is as far as its leader after three of the leader's heartbeats.
    private func feedLearners(of group: GroupID, from index: Int) {
        guard let learners = memberships[group]?.learners,
            let own = nodes[index].replicas.first(where: { $0.group.id == group })?.replica
        else { return }
        for learner in learners {
            for (other, node) in nodes.enumerated() where node.isRunning && !node.isDeaf {
                guard let slot = node.replicas.firstIndex(where: { $0.replica.id == learner })
                else { continue }
                memberships[group]?.beats[learner, default: 0] += 1
                nodes[other].replicas[slot].replica.term = own.term
                nodes[other].replicas[slot].replica.lastTerm = own.lastTerm
                nodes[other].replicas[slot].replica.lastIndex = own.lastIndex
            }
        }
    }

    private func members(of group: GroupID, last: LogIndex) -> [MemberReport] {
        guard let members = memberships[group] else { return [] }
        return members.voters.map { voter in
            let isDeaf = nodes.contains {
                $0.isDeaf && $0.leads[group] == nil
                    && $0.replicas.contains { $0.replica.id == voter }
            }
            return MemberReport(
                replica: voter, role: .voter, match: isDeaf ? .none : last, snapshotBytes: nil)
        }
            + members.learners.map {
                MemberReport(
                    replica: $0, role: .learner,
                    match: members.beats[$0] ?? 0 >= 3 ? last : .none, snapshotBytes: nil)
            }
    }
}
