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
        return home.isAlone(at: loop.now)
    }

    /// What this controller says of itself.
    var standing: ControllerStanding {
        if controller?.isActing == true, !isStopping {
            return ControllerStanding(
                isActing: true, acting: settings.core.name, address: settings.ownAddress)
        }
        let leader = home.leader
        let isOwn = leader?.name == settings.core.name
        return ControllerStanding(
            isActing: false, acting: isOwn ? "" : leader?.name ?? "",
            address: isOwn ? "" : leader?.address ?? "")
    }

    /// The answer to whoever wants the acting controller.
    var notActing: DatabaseError {
        let standing = standing
        let name = settings.core.name
        if let obstacle = home.obstacle {
            return DatabaseError(.notLeader, "\(name) does not act: \(obstacle)")
        }
        return DatabaseError(
            .notLeader,
            standing.acting.isEmpty
                ? "\(name) does not act, and knows no controller that does"
                : "\(name) does not act; \(standing.acting) at \(standing.address) acts")
    }

    // MARK: Views

    func controllerViews() -> [ControllerView] {
        home.controllerViews(acting: actingTerm, admin: settings.adminAddress)
    }

    /// The term in which this controller acts alone.
    private var actingTerm: UInt64? { isActing ? controller?.term.rawValue ?? 0 : nil }

    /// Controllers that are missing or not in order.
    func controllerFindings() -> [FindingView] {
        controllerViews().compactMap { view in
            let name = view.name
            let (text, advice): (String, String)
            switch view.state {
            case "member" where view.reachable: return nil
            case "member":
                (text, advice) = (
                    "controller \(name) does not answer",
                    "start it; if it is gone for good: kvctl controller remove \(name)"
                )
            case "empty":
                (text, advice) = (
                    "controller \(name) has lost its data",
                    "kvctl controller remove \(name), then: kvctl controller add \(name) \(view.rpc)"
                )
            case "joining" where !view.reachable:
                (text, advice) = (
                    "controller \(name) is joining and does not answer",
                    "start it at \(view.rpc) with an empty data directory, or: kvctl controller remove "
                        + name
                )
            default:
                (text, advice) = (
                    "controller \(name) is \(view.state)",
                    "wait for it, or take it back: kvctl controller remove \(name)"
                )
            }
            return FindingView(code: "RK002", severity: "warning", text: text, advice: advice)
        }
    }

    // MARK: Verbs

    func serveQuorum(_ request: AdminRequest, _ token: UInt32, _ session: ControllerSession) {
        if request.verb == "controller.list" {
            return session.adminSuccess(token, controllersView())
        }
        // The acting one is asked even where all would refuse alike: it has the audit log.
        guard isActing else {
            return session.adminFailure(token, notActing, acting: standing.address)
        }
        guard let store = quorum?.store else {
            let refusal = DatabaseError(
                .refused,
                "the metadata is in etcd: a controller belongs to the cluster when it is started "
                    + "with the same etcd.endpoints and etcd.prefix, and no more when it is stopped"
            )
            auditAnswer(refusal, token, of: session.id)
            return session.adminFailure(token, refusal)
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
        var roster = quorum?.replica?.image.roster ?? ControllerRoster()
        _ = try roster.admit(name: name, address: parsed)
        return .admit(name: name, address: parsed)
    }

    private func dismissal(of name: String) throws(DatabaseError) -> MetadataCommand {
        if let objection = quorum?.replica?.objection(toDismissing: name, now: loop.now) {
            throw objection
        }
        guard let member = quorum?.replica?.image.roster.member(named: name) else {
            throw DatabaseError(.refused, "there is no controller \(name)")
        }
        return .dismiss(member.replica)
    }

    private func controllersView() -> ControllersView {
        home.controllersView(acting: actingTerm, admin: settings.adminAddress)
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
    /// Where it keeps the metadata: `embedded` or `etcd`.
    var form: String
    var acting: Bool
    /// Why it cannot act; nil when there is no more to say than that another one may.
    var obstacle: String?
    var leader: Nullable<String>
    var applied: UInt64
    var commit: UInt64
    var controllers: [ControllerView]
}
