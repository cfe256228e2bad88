// The controllers among themselves, as nodes, routers and operators see them.

import ControllerCore
import EventLoop
import KVBase
import MetadataCore
import MetadataStore
import ReplicationCore
import ShardCore
import WireProtocol

extension ControllerServer {
    static let quorumVerbs = ["controller.list", "controller.add", "controller.remove"]

    /// Acts, and no other controller can at this moment.
    var isActing: Bool {
        guard let controller, controller.isActing, !isStopping else { return false }
        return quorum.replica?.isAlone(at: loop.now) ?? false
    }

    /// What this controller says of itself.
    var standing: ControllerStanding {
        if controller?.isActing == true, !isStopping {
            return ControllerStanding(
                isActing: true, acting: settings.core.name, address: settings.quorum.address)
        }
        let leader = quorum.leader
        let isOwn = leader?.replica == quorum.identity?.replica
        return ControllerStanding(
            isActing: false, acting: isOwn ? "" : leader?.name ?? "",
            address: isOwn ? "" : leader?.address ?? "")
    }

    /// The answer to whoever wants the acting controller.
    var notActing: DatabaseError {
        let standing = standing
        let name = settings.core.name
        guard quorum.replica != nil else {
            return DatabaseError(
                .notLeader, "\(name) is not a member of the controllers yet and does not act")
        }
        return DatabaseError(
            .notLeader,
            standing.acting.isEmpty
                ? "\(name) does not act, and knows no controller that does"
                : "\(name) does not act; \(standing.acting) at \(standing.address) acts")
    }

    /// Hands the metadata group to the member that is furthest; false when there is none to.
    func handOver() -> Bool {
        guard let replica = quorum.replica, replica.isLeader else { return false }
        let voters = replica.core.membership.voters.map(\.replica)
        let successor =
            voters.compactMap { voter -> (ReplicaID, UInt64)? in
                guard voter != replica.id,
                    let seen = replica.progress(of: voter, now: loop.now), seen.isLive
                else { return nil }
                return (voter, seen.lag)
            }.min { $0.1 < $1.1 }
        guard let successor else { return false }
        quorum.store?.handle(.replication(.transferLeadership(to: successor.0)))
        return true
    }

    // MARK: Views

    func controllerViews() -> [ControllerView] {
        guard let replica = quorum.replica else { return [] }
        return replica.image.roster.members.map { member in
            let isOwn = member.replica == replica.id
            let seen = replica.isLeader ? replica.progress(of: member.replica, now: loop.now) : nil
            return ControllerView(
                name: member.name, rpc: member.address,
                admin: isOwn
                    ? settings.adminAddress
                    : quorum.links[member.replica]?.peer?.addresses.first ?? "",
                acting: isOwn && isActing,
                term: isOwn ? controller?.term.rawValue ?? 0 : 0,
                role: role(of: member.replica, replica),
                reachable: quorum.isReachable(member.replica),
                lag: seen?.lag ?? 0, state: state(of: member, replica))
        }
    }

    private func role(of member: ReplicaID, _ replica: MetadataReplica) -> String {
        if member == replica.id { return QuorumMetrics.name(replica.core.role) }
        if member == replica.core.leader { return "leader" }
        return replica.core.membership.isVoter(member) ? "follower" : "learner"
    }

    private func state(of member: ControllerMember, _ replica: MetadataReplica) -> String {
        if member.isLeaving { return "leaving" }
        if member.isJoined, let link = quorum.links[member.replica], !link.isIntroduced,
            link.peer?.node == NodeID.none
        {
            return "empty"
        }
        return replica.core.membership.isVoter(member.replica) ? "member" : "joining"
    }

    /// The verdict on the cluster with what is to be said of the controllers.
    func judge(_ views: ClusterViews) -> (verdict: String, findings: [String]) {
        var (verdict, findings) = views.judge()
        for view in controllerViews() {
            let finding: String
            switch view.state {
            case "empty":
                finding =
                    "controller \(view.name) has lost its data: kvctl controller remove "
                    + "\(view.name), then kvctl controller add \(view.name) \(view.rpc)"
            case "member" where view.reachable: continue
            case "member": finding = "controller \(view.name) does not answer"
            default: finding = "controller \(view.name) is \(view.state)"
            }
            findings.append(finding)
            if verdict == "healthy" { verdict = "degraded" }
        }
        if let finding = backupFinding() {
            findings.append(finding.text)
            if verdict == "healthy" { verdict = "degraded" }
        }
        return (verdict, findings)
    }

    // MARK: Verbs

    func serveQuorum(_ request: AdminRequest, _ token: UInt32, _ session: ControllerSession) {
        if request.verb == "controller.list" {
            return session.adminSuccess(token, controllersView())
        }
        guard isActing, let store = quorum.store else {
            return session.adminFailure(token, notActing, acting: standing.address)
        }
        let command: MetadataCommand
        do throws(DatabaseError) {
            let name = try required(request.arguments?.name, "name")
            guard !name.isEmpty, name.utf8.count <= 128 else {
                throw DatabaseError(.invalidRequest, "a name has from 1 to 128 bytes")
            }
            command =
                request.verb == "controller.add"
                ? try addition(of: name, at: request.arguments?.address)
                : try dismissal(of: name)
        } catch {
            auditAnswer(error, token, of: session.id)
            return session.adminFailure(token, error)
        }
        store.submit(command) { [unowned self, weak session, id = session.id] result in
            var refusal: DatabaseError?
            switch result {
            case .success: break
            case .failure(.failed(let error)): refusal = error
            case .failure(let error): refusal = DatabaseError(.refused, error.description)
            }
            auditAnswer(refusal, token, of: id)
            if let refusal {
                session?.adminFailure(token, refusal)
            } else {
                session?.adminSuccess(token, controllersView())
            }
        }
    }

    private func addition(of name: String, at address: String?) throws(DatabaseError)
        -> MetadataCommand
    {
        guard let address else {
            throw DatabaseError(.invalidRequest, "the argument address is missing")
        }
        let parsed = try SocketAddress.parse(address).description
        // Tried on a copy: what the roster would refuse is refused before it is logged.
        var roster = quorum.replica?.image.roster ?? ControllerRoster()
        _ = try roster.admit(name: name, address: parsed)
        return .admit(name: name, address: parsed)
    }

    private func dismissal(of name: String) throws(DatabaseError) -> MetadataCommand {
        if let objection = quorum.replica?.objection(toDismissing: name, now: loop.now) {
            throw objection
        }
        guard let member = quorum.replica?.image.roster.member(named: name) else {
            throw DatabaseError(.refused, "there is no controller \(name)")
        }
        return .dismiss(member.replica)
    }

    private func controllersView() -> ControllersView {
        let replica = quorum.replica
        return ControllersView(
            name: settings.core.name, rpc: settings.quorum.address,
            role: replica.map { QuorumMetrics.name($0.core.role) } ?? "empty",
            term: replica?.core.term.rawValue ?? 0, acting: isActing,
            leader: NullableText(text: quorum.leader?.name),
            applied: replica?.image.position.index.rawValue ?? 0,
            commit: replica?.core.commit.rawValue ?? 0, controllers: controllerViews())
    }
}

extension TableRequest {
    /// Changes nothing more when it is done twice.
    var isRepeatable: Bool {
        switch self {
        case .create(_, _, _, _, _, let ifMissing): ifMissing
        case .drop: false
        case .confirmMap: true
        }
    }
}

/// The answer of the verbs `controller.*`: what the answering controller knows.
struct ControllersView: Encodable {
    var name: String
    var rpc: String
    /// Of the answering controller in the metadata group; `empty`: it is not in one.
    var role: String
    /// Of the metadata group.
    var term: UInt64
    var acting: Bool
    var leader: NullableText
    var applied: UInt64
    var commit: UInt64
    var controllers: [ControllerView]
}
