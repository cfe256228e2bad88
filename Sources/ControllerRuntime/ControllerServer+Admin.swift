// The verbs of operators' tools.

import ControllerCore
import EventLoop
import KVBase
import RPC
import ShardCore
import WireProtocol

extension ControllerServer {
    func adminRequest(_ bytes: Bytes, _ token: UInt32, of session: ControllerSession) {
        let request: AdminRequest
        do {
            request = try AdminJSON.decode(bytes)
        } catch {
            return session.adminFailure(
                token, DatabaseError(.invalidRequest, "not an admin request: \(error)"))
        }
        if Self.peerVerbs.contains(request.verb) { return serveMoves(request, token, session) }
        audit(request, token, of: session)
        if Self.quorumVerbs.contains(request.verb) {
            return serveQuorum(request, token, session)
        }
        guard let controller, isActing else {
            return session.adminFailure(token, notActing, acting: standing.address)
        }
        let views = views(of: controller)
        do throws(DatabaseError) {
            if Self.backupVerbs.contains(request.verb) {
                try serveBackup(request, token, session)
                auditAnswer(nil, token, of: session.id, done: "started")
            } else if request.verb == "metadata.migrate" {
                try migrate(request, token, session)
            } else if request.verb == "apply" {
                try apply(try plan(in: bytes), views, token, session)
            } else {
                try serve(request, views, token, session)
            }
        } catch {
            auditAnswer(error, token, of: session.id)
            session.adminFailure(token, error)
        }
    }

    func views(of controller: Controller) -> ClusterViews {
        ClusterViews(
            controller: controller, now: loop.now, storing: backup?.service.progress,
            verifying: backup?.verification.map {
                ($0.operation, $0.progress.value.done, $0.progress.value.total)
            })
    }

    /// The answer of `table.create` and `table.drop`.
    func adminAnswer(
        _ error: DatabaseError?, table: String?, _ token: UInt32, of session: ControllerSession
    ) {
        if let error { return session.adminFailure(token, error) }
        guard let table else { return session.adminSuccess(token, NothingView()) }
        guard let controller,
            let view = views(of: controller).tables()
                .first(where: { $0.name == table && $0.state != "dropping" })
        else {
            return session.adminFailure(
                token, DatabaseError(.tableNotFound, "table \(table) was dropped meanwhile"))
        }
        session.adminSuccess(token, CreatedView(table: view))
    }

    private func plan(in bytes: Bytes) throws(DatabaseError) -> PlanRequest {
        do {
            let request: ApplyRequest = try AdminJSON.decode(bytes)
            return request.arguments.plan
        } catch {
            throw DatabaseError(
                .invalidRequest, "this is no plan; make one with --dry-run -o json")
        }
    }

    private func serve(
        _ request: AdminRequest, _ views: ClusterViews, _ token: UInt32,
        _ session: ControllerSession
    ) throws(DatabaseError) {
        let arguments = request.arguments
        switch request.verb {
        case "status": session.adminSuccess(token, status(views))
        case "nodes": session.adminSuccess(token, NodesView(nodes: views.nodes()))
        case "groups": session.adminSuccess(token, GroupsView(groups: views.groups()))
        case "tables": session.adminSuccess(token, TablesView(tables: views.tables()))
        case "shards":
            var table: Table?
            if let name = arguments?.table { table = try find(name, views.controller) }
            session.adminSuccess(token, ShardsView(shards: views.shards(of: table)))
        case "table.describe":
            let table = try find(try name(arguments), views.controller)
            guard var view = views.tables().first(where: { $0.id == table.id.rawValue }) else {
                return
            }
            view.shards = .list(views.shards(of: table))
            session.adminSuccess(token, view)
        case "table.create":
            let creation = try creation(arguments)
            submit(
                creation.request,
                for: .tool(session.id, token: token, table: creation.name), of: session)
        case "table.drop":
            submit(
                .drop(name: try name(arguments)),
                for: .tool(session.id, token: token, table: nil), of: session)
        case let verb where Self.operationVerbs.contains(verb):
            try serveOperations(request, views, token, session)
        case let verb where Self.settingVerbs.contains(verb):
            try serveSettings(request, views, token, session)
        case let verb where Self.auditVerbs.contains(verb):
            try serveAudit(request, token, session)
        default:
            throw DatabaseError(
                .invalidRequest,
                "no verb \(request.verb); there are status, nodes, groups, shards, tables, "
                    + "table.describe, table.create, table.drop, "
                    + (Self.operationVerbs + Self.settingVerbs + Self.quorumVerbs + Self.auditVerbs
                    + Self.backupVerbs + ["metadata.migrate"] + Self.peerVerbs)
                    .joined(separator: ", "))
        }
    }

    private func status(_ views: ClusterViews) -> StatusView {
        let (doctor, routers) = (views.examine(with: ownFindings()), routers)
        return StatusView(
            cluster: hex(views.controller.cluster),
            controllers: controllerViews(), revision: views.controller.revision.rawValue,
            mapRevision: views.controller.mapRevision.rawValue, nodes: views.nodes(),
            groups: views.groups(),
            tables: views.controller.tables.elements.count { $0.state == .active },
            routers: routers.map { router in
                RouterView(
                    name: router.name, resp: router.addresses.first ?? "",
                    admin: router.addresses.count > 1 ? router.addresses[1] : "")
            }.sorted { ($0.name, $0.resp) < ($1.name, $1.resp) },
            verdict: doctor.verdict,
            findings: doctor.findings.filter { !$0.isNotice }.map(\.text),
            notices: doctor.findings.filter(\.isNotice).map(\.text))
    }

    private func name(_ arguments: AdminRequest.Arguments?) throws(DatabaseError) -> String {
        guard let name = arguments?.name ?? arguments?.table else {
            throw DatabaseError(.invalidRequest, "the argument name is missing")
        }
        return name
    }

    func find(_ name: String, _ controller: Controller) throws(DatabaseError) -> Table {
        let named = controller.tables.elements.filter { $0.name == name }
        guard let table = named.first(where: { $0.state != .dropping }) ?? named.first else {
            throw DatabaseError(.tableNotFound, "there is no table named \(name)")
        }
        return table
    }

    private func creation(_ arguments: AdminRequest.Arguments?) throws(DatabaseError)
        -> (name: String, request: TableRequest)
    {
        let name = try name(arguments)
        let partitioning: Partitioning
        switch (arguments?.partitioning ?? "RANGE").uppercased() {
        case "RANGE": partitioning = .range
        case "HASH":
            let count = arguments?.virtualRanges ?? Int(Partitioning.virtualRangesDefault)
            guard let ranges = UInt16(exactly: count) else {
                throw DatabaseError(
                    .invalidRequest, "virtualRanges is from 2 to 4096, not \(count)")
            }
            partitioning = .hash(virtualRanges: ranges)
        case let other:
            throw DatabaseError(.invalidRequest, "partitioning is RANGE or HASH, not \(other)")
        }
        let engine: EngineKind
        switch (arguments?.engine ?? "LSM").uppercased() {
        case "LSM": engine = .lsm
        case "BTREE": engine = .btree
        case let other:
            throw DatabaseError(.invalidRequest, "engine is LSM or BTREE, not \(other)")
        }
        var replicas: UInt8?
        if let wanted = arguments?.replicas {
            guard [1, 3, 5].contains(wanted) else {
                throw DatabaseError(.invalidRequest, "replicas is 1, 3 or 5, not \(wanted)")
            }
            replicas = UInt8(wanted)
        }
        var splits: [Bytes] = []
        for text in arguments?.splits ?? [] {
            guard let key = KeyText.key(text) else {
                throw DatabaseError(
                    .invalidRequest, "split \(text): after a backslash comes xNN")
            }
            splits.append(key)
        }
        return (
            name,
            .create(
                name: name, partitioning: partitioning, engine: engine, replicas: replicas,
                splitPoints: splits, ifMissing: arguments?.ifMissing ?? false)
        )
    }
}

extension ControllerSession {
    func adminSuccess(_ token: UInt32, _ result: some Encodable) {
        send(token, AdminJSON.encode(AdminSuccess(result: result)))
    }

    /// `acting`: the address of the controller to ask instead.
    func adminFailure(_ token: UInt32, _ error: DatabaseError, acting: String = "") {
        send(
            token,
            AdminJSON.encode(
                AdminFailure(code: "\(error.code)", message: error.message, acting: acting)))
    }

    private func send(_ token: UInt32, _ json: Bytes) {
        guard json.count < Limits.frameBytesMax - 16 else {
            return adminFailure(
                token, DatabaseError(.tooLarge, "the answer does not fit; ask for one table"))
        }
        connection.send(.adminResponse) { writer in
            writer.write(token)
            json.withUnsafeBytes { writer.writeRaw($0) }
        }
    }
}
