// The replicated metadata as a controller's server sees it.

import EventLoop
import KVBase
import MetadataCore
import MetadataStore
import ReplicationCore
import WireProtocol

extension QuorumNode: MetadataHome {
    var metadata: (any MetadataStore)? { store }
    var state: RevisionedState? { store?.state }
    var cluster: UInt64 { identity?.cluster ?? 0 }
    var clusterCandidate: UInt64 { cluster }
    var helloNode: NodeID { NodeID(identity?.replica.rawValue ?? 0) }

    /// The term of the metadata group that this controller's replica leads and serves.
    var leadership: UInt64? {
        guard let replica, replica.isServing else { return nil }
        return replica.core.term.rawValue
    }

    func isAlone(at now: Instant) -> Bool { replica?.isAlone(at: now) ?? false }

    var leader: (name: String, address: String)? {
        leadingMember.map { ($0.name, $0.address) }
    }

    var obstacle: String? {
        replica == nil ? "it is not a member of the controllers yet" : nil
    }

    /// This controller's copy is the store.
    func readStored(
        _ prefixes: [Bytes],
        _ completion: @escaping (Result<[MetadataRecord], DatabaseError>) -> Void
    ) {
        completion(.success(prefixes.flatMap { state?.range(prefix: $0) ?? [] }))
    }

    func updateMetrics() { metrics.update(replica, reachable: reachableCount) }

    /// Hands the metadata group to the member that is furthest; false when there is none to.
    func handOver() -> Bool {
        guard let replica, replica.isLeader else { return false }
        let voters = replica.core.membership.voters.map(\.replica)
        let successor =
            voters.compactMap { voter -> (ReplicaID, UInt64)? in
                guard voter != replica.id,
                    let seen = replica.progress(of: voter, now: loop.now), seen.isLive
                else { return nil }
                return (voter, seen.lag)
            }.min { $0.1 < $1.1 }
        guard let successor else { return false }
        store?.handle(.replication(.transferLeadership(to: successor.0)))
        return true
    }

    // MARK: Views

    func controllerViews(acting term: UInt64?, admin: String) -> [ControllerView] {
        guard let replica else { return [] }
        return replica.image.roster.members.map { member in
            let isOwn = member.replica == replica.id
            let seen = replica.isLeader ? replica.progress(of: member.replica, now: loop.now) : nil
            return ControllerView(
                name: member.name, rpc: member.address,
                admin: isOwn
                    ? admin
                    : links[member.replica]?.peer?.addresses.first ?? "",
                acting: isOwn && term != nil,
                term: isOwn ? term ?? 0 : 0,
                role: role(of: member.replica, replica),
                reachable: isReachable(member.replica),
                lag: seen?.lag ?? 0, state: state(of: member, replica),
                problem: isOwn ? nil : problem(of: member))
        }
    }

    /// What was said by its address, or by who answers there.
    private func problem(of member: ControllerMember) -> String? {
        if let stray = strays(now: loop.now).first(where: { $0.place.name == member.name }) {
            let finding = finding(about: stray)
            return "\(finding.text): \(finding.advice)"
        }
        guard let link = links[member.replica], !link.isIntroduced else { return nil }
        return link.lastError?.message
    }

    func strayFindings(now: Instant) -> [FindingView] { strays(now: now).map(finding) }

    private func finding(about stray: Stray) -> FindingView {
        let place = "controller \(stray.place.name) at \(stray.place.address)"
        return FindingView(
            code: "RK004", severity: "warning",
            text: place
                + (stray.isNewer
                    ? " belongs to a newer metadata group of this cluster"
                    : " runs on a copy of the metadata that is not of this group, and may act beside it"),
            advice: stray.isNewer
                ? "if the metadata was restored: stop \(settings.name) and empty its data directory"
                : "it was removed, or the metadata was restored without it: stop it and empty its data "
                    + "directory")
    }

    private func role(of member: ReplicaID, _ replica: MetadataReplica) -> String {
        if member == replica.id { return QuorumMetrics.name(replica.core.role) }
        if member == replica.core.leader { return "leader" }
        return replica.core.membership.isVoter(member) ? "follower" : "learner"
    }

    private func state(of member: ControllerMember, _ replica: MetadataReplica) -> String {
        if member.isLeaving { return "leaving" }
        if member.isJoined, let link = links[member.replica], !link.isIntroduced,
            link.peer?.node == NodeID.none
        {
            return "empty"
        }
        return replica.core.membership.isVoter(member.replica) ? "member" : "joining"
    }

    func controllersView(acting term: UInt64?, admin: String) -> ControllersView {
        let replica = replica
        return ControllersView(
            name: settings.name, rpc: settings.address,
            role: replica.map { QuorumMetrics.name($0.core.role) } ?? "empty",
            term: replica?.core.term.rawValue ?? 0, form: "\(MetadataForm.embedded)",
            acting: term != nil, obstacle: obstacle,
            leader: Nullable(leadingMember?.name),
            applied: replica?.image.position.index.rawValue ?? 0,
            commit: replica?.core.commit.rawValue ?? 0,
            controllers: controllerViews(acting: term, admin: admin))
    }
}
