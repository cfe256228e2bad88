// The verbs about operations and decisions.

import ControllerCore
import EventLoop
import KVBase
import RPC
import ShardCore

extension ControllerServer {
    static let operationVerbs = [
        "replace", "drain", "drain.end", "transfer", "ops.list", "ops.show", "ops.cancel", "why",
        "doctor",
    ]

    func serveOperations(
        _ request: AdminRequest, _ views: ClusterViews, _ token: UInt32,
        _ session: ControllerSession
    ) throws(DatabaseError) {
        let arguments = request.arguments ?? AdminRequest.Arguments()
        let group = arguments.group.map { GroupID($0) }
        switch request.verb {
        case "replace":
            let node = try required(arguments.node, "node")
            guard arguments.dryRun == true else {
                return submit(
                    .replace(node: node, group: group, with: arguments.with), token, session)
            }
            let plans =
                if let group {
                    [
                        try views.controller.planReplacement(
                            of: node, in: group, with: arguments.with, now: loop.now)
                    ]
                } else {
                    try views.controller.planReplacements(
                        of: node, with: arguments.with, now: loop.now)
                }
            session.adminSuccess(token, views.plan(plans))
        case "drain":
            submit(.drain(node: try required(arguments.node, "node")), token, session)
        case "drain.end":
            submit(.endDrain(node: try required(arguments.node, "node")), token, session)
        case "transfer":
            let node = try required(arguments.node, "node")
            submit(
                .transfer(GroupID(try required(arguments.group, "group")), node: node), token,
                session)
        case "ops.list":
            session.adminSuccess(token, OperationsView(operations: views.operations()))
        case "ops.show":
            let id = OperationID(try required(arguments.operation, "operation"))
            guard let view = views.operation(id) else {
                throw DatabaseError(
                    .refused, "there is no operation \(id); see: kvctl ops list")
            }
            session.adminSuccess(token, StartedView(operation: view))
        case "ops.cancel":
            submit(
                .cancel(OperationID(try required(arguments.operation, "operation"))), token, session
            )
        case "why":
            var node: NodeID?
            if let name = arguments.node {
                guard
                    let found = views.controller.nodes.elements.first(where: {
                        $0.record.name == name
                    })
                else { throw DatabaseError(.refused, "there is no node named \(name)") }
                node = found.record.id
            }
            session.adminSuccess(
                token,
                views.decisions(
                    about: node, group, arguments.operation.map { OperationID($0) },
                    limit: max(1, min(arguments.limit ?? 50, 1_000))))
        default: session.adminSuccess(token, views.examine())
        }
    }

    private func required<Value>(_ value: Value?, _ name: String) throws(DatabaseError) -> Value {
        guard let value else {
            throw DatabaseError(.invalidRequest, "the argument \(name) is missing")
        }
        return value
    }

    private func submit(
        _ request: OperationRequest, _ token: UInt32, _ session: ControllerSession
    ) {
        step(.operationRequest(operationRequest(from: session, token), request))
    }

    func operationAnswer(
        _ result: Result<OperationID, DatabaseError>, _ token: UInt32,
        of session: ControllerSession
    ) {
        switch result {
        case .failure(let error): session.adminFailure(token, error)
        case .success(let id):
            guard let controller else { return }
            let view = ClusterViews(controller: controller, now: loop.now).operation(id)
            session.adminSuccess(token, StartedView(operation: view))
        }
    }
}
