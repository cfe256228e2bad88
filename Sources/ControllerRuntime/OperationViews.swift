// Operations, plans, decisions and findings as operators see them.

import ControllerCore
import KVBase
import ShardCore

struct OperationView: Encodable {
    var id: UInt32
    var kind: String
    var step: String
    var finished: Bool
    var origin: String
    var reason: String
    var outcome: String
    /// What is waited for, or why the newest command was refused.
    var note: String
    var parent: UInt32?
    var group: UInt32?
    var from: String
    var to: String?
    /// Of the records to copy, as far as they are counted.
    var bytesDone: UInt64?
    var bytesTotal: UInt64?
    var percent: Int
    /// Log entries that the new replica is behind its leader.
    var lag: UInt64?
    var startedAt: UInt64
    var changedAt: UInt64
    var endedAt: UInt64?
}

struct OperationsView: Encodable {
    var operations: [OperationView]
}

struct SkippedView: Encodable {
    var node: String
    var reason: String
}

struct ReplacementView: Encodable {
    var group: UInt32
    var from: String
    var to: String
    var disk: UInt8
    var bytes: UInt64
    var freeBytes: UInt64?
    var skipped: [SkippedView]
}

struct PlanView: Encodable {
    var plan: [ReplacementView]
}

struct StartedView: Encodable {
    /// Nil when the request left nothing to do.
    var operation: OperationView?
}

struct DecisionView: Encodable {
    var number: UInt64
    var at: UInt64
    var text: String
    var nodes: [String]
    var group: UInt32?
    var operation: UInt32?
}

struct DecisionsView: Encodable {
    var decisions: [DecisionView]
}

struct FindingView: Encodable {
    var code: String
    /// `critical` or `warning`.
    var severity: String
    var text: String
    /// What to do.
    var advice: String
}

struct DoctorView: Encodable {
    var verdict: String
    var findings: [FindingView]
}

extension ClusterViews {
    func operations() -> [OperationView] { controller.operations.elements.map { view($0) } }

    func operation(_ id: OperationID) -> OperationView? {
        controller.operations[id].map { view($0) }
    }

    private func view(_ status: OperationStatus) -> OperationView {
        let record = status.record
        var view = OperationView(
            id: record.id.rawValue, kind: "\(record.kind)", step: "\(record.step)",
            finished: record.isFinished, origin: record.origin, reason: record.reason,
            outcome: record.outcome, note: status.note,
            parent: record.parent == .none ? nil : record.parent.rawValue,
            group: record.group == .none ? nil : record.group.rawValue,
            from: nodeName(record.old.node),
            to: record.new.node == .none ? nil : nodeName(record.new.node), percent: 0,
            startedAt: record.startedAt, changedAt: record.changedAt,
            endedAt: record.endedAt == 0 ? nil : record.endedAt)
        if record.step == .done { view.percent = 100 }
        switch record.kind {
        case .replaceReplica where !record.isFinished: addProgress(record, to: &view)
        case .replaceNode, .drain: addParts(record, to: &view)
        default: break
        }
        return view
    }

    private func addProgress(_ record: OperationRecord, to view: inout OperationView) {
        let total = controller.bytes(of: record.group)
        view.bytesTotal = total
        view.bytesDone = 0
        guard let group = controller.groups[record.group],
            let leader = group.reports.compactMap({ $0 })
                .filter({ $0.role == .leader }).max(by: { $0.term < $1.term }),
            let member = leader.members.first(where: { $0.replica == record.new.replica })
        else { return }
        let last = leader.lastIndex.rawValue
        let match = min(last, member.match.rawValue)
        view.lag = last - match
        if let sent = member.snapshotBytes {
            view.bytesDone = min(sent, total)
        } else if last > 0 {
            // Entries stand in for bytes: most of a log is records.
            view.bytesDone = UInt64((Double(match) / Double(last) * Double(total)).rounded())
        }
        let done = view.bytesDone ?? 0
        view.percent =
            record.step == .swapping
            ? 99 : total == 0 ? 0 : min(99, Int(Double(done) / Double(total) * 100))
    }

    /// Bytes of the groups that moved and of those that are still to move.
    private func addParts(_ record: OperationRecord, to view: inout OperationView) {
        guard !record.isFinished else { return }
        let parts = controller.operations.elements.filter { $0.record.parent == record.id }
        var done: UInt64 = 0
        for part in parts where part.record.step == .done {
            done += controller.bytes(of: part.record.group)
        }
        var total = done
        for group in controller.groups.elements
        where group.record.placements.contains(where: { $0.node == record.old.node }) {
            total += controller.bytes(of: group.record.id)
        }
        if let running = parts.first(where: { !$0.record.isFinished }) {
            done += self.view(running).bytesDone ?? 0
            if view.note.isEmpty {
                view.note =
                    "operation \(running.record.id): group \(running.record.group), "
                    + "\(running.record.step)"
            }
        }
        view.bytesDone = done
        view.bytesTotal = total
        view.percent = total == 0 ? 0 : min(99, Int(Double(done) / Double(total) * 100))
    }

    func plan(_ replacements: [Replacement]) -> PlanView {
        PlanView(
            plan: replacements.map { plan in
                ReplacementView(
                    group: plan.group.rawValue, from: nodeName(plan.old.node),
                    to: nodeName(plan.node), disk: plan.disk, bytes: plan.bytes,
                    freeBytes: plan.freeBytes,
                    skipped: plan.skipped.map {
                        SkippedView(node: nodeName($0.node), reason: $0.reason)
                    })
            })
    }

    /// The newest decisions last, at most `limit`.
    func decisions(
        about node: NodeID?, _ group: GroupID?, _ operation: OperationID?, limit: Int
    ) -> DecisionsView {
        let chosen = controller.decisions.filter { decision in
            (node.map { decision.nodes.contains($0) } ?? true)
                && (group.map { decision.group == $0 } ?? true)
                && (operation.map { decision.operation == $0 } ?? true)
        }
        return DecisionsView(
            decisions: chosen.suffix(limit).map { decision in
                DecisionView(
                    number: decision.number, at: decision.at, text: decision.text,
                    nodes: decision.nodes.map { nodeName($0) },
                    group: decision.group == .none ? nil : decision.group.rawValue,
                    operation: decision.operation == .none ? nil : decision.operation.rawValue)
            })
    }

    // MARK: Doctor

    /// Everything that wants an operator's eye, the worst first, each with what to do.
    func examine() -> DoctorView {
        var findings: [FindingView] = []
        func add(_ code: String, _ severity: String, _ text: String, _ advice: String) {
            findings.append(
                FindingView(code: code, severity: severity, text: text, advice: advice))
        }
        if controller.groups.isEmpty {
            add(
                "RK001", "critical", "no groups yet",
                "start \(controller.settings.replicasDefault) nodes that are not spares")
        }
        for group in controller.groups.elements {
            let id = group.record.id
            switch group.health(in: controller) {
            case .healthy: break
            case .unavailable:
                let lost = group.record.placements
                    .filter { controller.nodes[$0.node]?.isLive != true }
                add(
                    "RK010", "critical", "group \(id) has no serving leader",
                    lost.isEmpty
                        ? "an election is under way: look again in a second"
                        : "start " + lost.map { nodeName($0.node) }.joined(separator: ", "))
            case .underReplicated:
                let running = controller.openOperations.first { $0.record.group == id }
                add(
                    "RK011", "warning", "group \(id) lacks a replica",
                    running.map {
                        "operation \($0.record.id) is at it: kvctl ops show \($0.record.id)"
                    }
                        ?? "start the node that is down, or: kvctl replace NODE")
            }
        }
        for node in controller.nodes.elements where node.health != .up {
            guard node.replicas > 0 || !node.record.name.contains("~") else { continue }
            let silence = (now - node.lastHeard).count / 1_000_000_000
            add(
                "RK020", "warning",
                "node \(node.record.name) is \(node.stateName), silent for \(silence) s, and holds "
                    + "\(node.replicas) replicas",
                node.replicas == 0
                    ? "start it again, or leave it"
                    : "start it again, or: kvctl "
                        + "replace \(node.record.name)")
        }
        for node in controller.nodes.elements {
            for disk in node.disks where disk.state != .healthy {
                add(
                    "RK021", "warning",
                    "disk \(disk.path) of node \(node.record.name) is \(disk.state)",
                    "kvctl replace \(node.record.name), then change the disk")
            }
            for disk in node.disks
            where disk.totalBytes > 0 && disk.freeBytes < disk.totalBytes / 20 {
                add(
                    "RK022", "warning",
                    "disk \(disk.path) of node \(node.record.name) is "
                        + "\(100 - disk.freeBytes * 100 / disk.totalBytes) % full",
                    "free space there, or: kvctl drain \(node.record.name)")
            }
        }
        let nodes = controller.nodes.elements
        if nodes.count(where: \.isLive) > 0,
            !nodes.contains(where: { $0.isLive && !$0.isHeld && $0.replicas == 0 })
        {
            add(
                "RK030", "warning", "no live spare: nothing can take over from a node that fails",
                "start a node with spare = true")
        }
        if controller.mode(of: .repair) == .off {
            add("RK031", "warning", "automatic repair is off", "kvctl config set repair auto")
        }
        for operation in controller.openOperations where !operation.note.isEmpty {
            add(
                "RK040", "warning", "operation \(operation.record.id) waits: \(operation.note)",
                "kvctl ops show \(operation.record.id)")
        }
        findings.sort { $0.severity == "critical" && $1.severity != "critical" }
        let verdict =
            findings.contains { $0.severity == "critical" }
            ? "unavailable" : findings.isEmpty ? "healthy" : "degraded"
        return DoctorView(verdict: verdict, findings: findings)
    }

    private func nodeName(_ node: NodeID) -> String {
        controller.nodes[node]?.record.name ?? "node \(node)"
    }
}
