// The verbs about operations and decisions.

import ControllerCore
import EventLoop
import KVBase
import RPC
import ShardCore

extension ControllerServer {
    /// Verbs that start an operation, or show its plan where `dryRun` is true.
    private static let plannedVerbs = [
        "replace", "replica.add", "drain", "transfer", "rebalance", "split", "move", "merge",
    ]
    static let operationVerbs =
        plannedVerbs + [
            "drain.end", "apply", "ops.list", "ops.show", "ops.cancel", "ops.pause", "ops.resume",
            "ops.reverse", "ops.apply", "why", "doctor", "top",
        ]

    func serveOperations(
        _ request: AdminRequest, _ views: ClusterViews, _ token: UInt32,
        _ session: ControllerSession
    ) throws(DatabaseError) {
        let arguments = request.arguments ?? AdminRequest.Arguments()
        switch request.verb {
        case let verb where Self.plannedVerbs.contains(verb):
            let operation = try planned(verb, arguments, views)
            guard arguments.dryRun == true else { return submit(operation, token, session) }
            session.adminSuccess(token, try views.plan(operation))
        case "drain.end":
            submit(.endDrain(node: try required(arguments.node, "node")), token, session)
        case "ops.list":
            session.adminSuccess(token, OperationsView(operations: views.operations()))
        case "ops.show":
            let id = try operation(arguments)
            guard let view = views.operation(id) else {
                throw DatabaseError(
                    .refused, "there is no operation \(id); see: kvctl ops list")
            }
            session.adminSuccess(token, StartedView(operation: view))
        case "ops.cancel": submit(.cancel(try operation(arguments)), token, session)
        case "ops.pause": submit(.pause(try operation(arguments)), token, session)
        case "ops.resume": submit(.resume(try operation(arguments)), token, session)
        case "ops.reverse": submit(.reverse(try operation(arguments)), token, session)
        case "ops.apply":
            let id = try operation(arguments)
            guard arguments.dryRun == true else { return submit(.apply(id), token, session) }
            var plan = try views.plan(try views.controller.proposed(id))
            plan.grounds = views.operation(id)?.reason
            session.adminSuccess(token, plan)
        case "why": session.adminSuccess(token, try decisions(arguments, views))
        case "top":
            session.adminSuccess(token, views.top(limit: max(1, min(arguments.limit ?? 10, 1_000))))
        default: session.adminSuccess(token, views.examine(with: ownFindings()))
        }
    }

    /// Does what a plan says, unless what it rests on has changed.
    func apply(
        _ plan: PlanRequest, _ views: ClusterViews, _ token: UInt32, _ session: ControllerSession
    ) throws(DatabaseError) {
        guard plan.plan == PlanDocument.version else {
            throw DatabaseError(
                .refused,
                "this controller takes plans of version \(PlanDocument.version), not \(plan.plan)")
        }
        guard Self.plannedVerbs.contains(plan.verb) else {
            throw DatabaseError(.invalidRequest, "there are no plans to \(plan.verb)")
        }
        try check(plan.basis.changes(until: views.current(plan.basis)))
        let operation = try planned(plan.verb, plan.arguments, views)
        let anew = try views.plan(operation).request.basis
        // What the plan leaves out counts as changed too: nobody gets past this by deleting lines.
        try check(
            anew.changes(until: plan.basis).isEmpty
                ? [] : ["a plan made now rests on other records"])
        try check(plan.basis.choices(otherThanIn: anew))
        submit(operation, token, session)
    }

    private func check(_ changes: [String]) throws(DatabaseError) {
        guard !changes.isEmpty else { return }
        throw DatabaseError(
            .refused,
            "the plan does not hold any more: \(changes.joined(separator: "; ")); make it anew with "
                + "--dry-run")
    }

    /// The request of a verb that has a plan.
    private func planned(
        _ verb: String, _ arguments: AdminRequest.Arguments, _ views: ClusterViews
    ) throws(DatabaseError) -> OperationRequest {
        let group = arguments.group.map { GroupID($0) }
        switch verb {
        case "replace":
            return .replace(
                node: try required(arguments.node, "node"), group: group, with: arguments.with)
        case "replica.add":
            return .addReplica(try required(group, "group"), on: arguments.node)
        case "drain": return .drain(node: try required(arguments.node, "node"))
        case "rebalance": return .rebalance
        case "transfer":
            return .transfer(
                try required(group, "group"), node: try required(arguments.node, "node"))
        case "move":
            return .move(try shard(arguments), to: try target(arguments.to ?? "any"))
        case "merge": return .merge(try shard(arguments))
        default:
            let table = try find(try required(arguments.table, "table"), views.controller)
            var split = SplitRequest(table: table.name, shard: arguments.shard.map { ShardID($0) })
            if let text = arguments.at {
                split.at = try KeyText.cut(text, of: table.partitioning)
            }
            split.to = arguments.to == "none" ? nil : try target(arguments.to ?? "any")
            return .split(split)
        }
    }

    private func target(_ text: String) throws(DatabaseError) -> MoveTarget {
        switch text {
        case "any": return .any
        case "new": return .new
        default:
            guard let number = UInt32(text), number > 0 else {
                throw DatabaseError(
                    .invalidRequest, "to is the number of a group or new, not '\(text)'")
            }
            return .group(GroupID(number))
        }
    }

    private func decisions(
        _ arguments: AdminRequest.Arguments, _ views: ClusterViews
    ) throws(DatabaseError) -> DecisionsView {
        var node: NodeID?
        if let name = arguments.node {
            guard
                let found = views.controller.nodes.elements.first(where: {
                    $0.record.name == name
                })
            else { throw DatabaseError(.refused, "there is no node named \(name)") }
            node = found.record.id
        }
        let group = arguments.group.map { GroupID($0) }
        let shard = arguments.shard.map { ShardID($0) }
        let operation = arguments.operation.map { OperationID($0) }
        let found = views.decisions(
            about: node, group, shard, operation, limit: max(1, min(arguments.limit ?? 50, 1_000)))
        // What was there once is still told of.
        if found.decisions.isEmpty { try views.controller.checkKnown(group, shard, operation) }
        return found
    }

    private func operation(
        _ arguments: AdminRequest.Arguments
    ) throws(DatabaseError) -> OperationID {
        OperationID(try required(arguments.operation, "operation"))
    }

    private func shard(_ arguments: AdminRequest.Arguments) throws(DatabaseError) -> ShardID {
        ShardID(try required(arguments.shard, "shard"))
    }

    func required<Value>(_ value: Value?, _ name: String) throws(DatabaseError) -> Value {
        guard let value else {
            throw DatabaseError(.invalidRequest, "the argument \(name) is missing")
        }
        return value
    }

    func submit(
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
            let view = views(of: controller).operation(id)
            session.adminSuccess(token, StartedView(operation: view))
        }
    }
}
