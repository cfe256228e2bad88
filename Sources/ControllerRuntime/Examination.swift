// What wants an operator's eye.

import ControllerCore
import KVBase
import ShardCore

struct FindingView: Encodable {
    /// Never given to another kind of finding.
    var code: String
    /// `critical`, `warning`, or `notice`: nothing is wrong, but somebody may want to act.
    var severity: String
    var text: String
    /// What to do.
    var advice: String
    /// The page about findings of this code, in the repository.
    var runbook: String

    init(code: String, severity: String, text: String, advice: String) {
        self.code = code
        self.severity = severity
        self.text = text
        self.advice = advice
        runbook = "Runbooks/\(code).md"
    }

    var isNotice: Bool { severity == "notice" }
}

struct DoctorView: Encodable {
    /// `healthy` with notices only.
    var verdict: String
    var findings: [FindingView]
}

extension ClusterViews {
    /// Everything that wants an operator's eye, the worst first, each with what to do.
    /// `own`: of what the cluster's records do not tell.
    func examine(with own: [FindingView]) -> DoctorView {
        var findings = own
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
                let missing = group.record.placements.enumerated()
                    .filter { state(group.reports[$0.offset], $0.element) != "active" }
                    .map { nodeName($0.element.node) }
                var text = "group \(id) lacks a replica"
                if group.lacking > 0 {
                    text += ": it has \(group.record.placements.count) of \(group.wanted)"
                } else if !missing.isEmpty {
                    text += ": not active on " + missing.joined(separator: ", ")
                }
                let remedy =
                    group.lacking > 0
                    ? "start another node, or: kvctl replica add \(id)"
                    : missing.first.map {
                        "start it, or: kvctl replace --group \(id) --replica \($0)"
                    }
                        ?? "look again in a second"
                add(
                    "RK011", "warning", text,
                    atIt {
                        $0.group == id && $0.work == nil && $0.kind != .transfer
                    } ?? remedy)
            }
        }
        for lag in controller.lagging where !controller.burdenedGroups.contains(lag.group) {
            add(
                "RK012", "warning",
                "the replica of group \(lag.group) on \(nodeName(lag.node)) lags: it is "
                    + "\(lag.reason), and \(lag.entries) entries behind now",
                atIt { $0.old.replica == lag.replica }
                    ?? "see what keeps \(nodeName(lag.node)) from its leader, or: kvctl replace "
                    + "--group \(lag.group) --replica \(nodeName(lag.node))")
        }
        for id in controller.burdenedGroups {
            let leader = controller.groups[id]?.leader.node ?? .none
            add(
                "RK013", "warning",
                "most followers of group \(id) are behind its leader on \(nodeName(leader))",
                "the leader has too much to do: look at kvctl top, and hand the group to another "
                    + "node: kvctl transfer \(id) NODE")
        }
        for node in controller.nodes.elements where node.health != .up {
            guard node.replicas > 0 || !node.record.name.contains("~") else { continue }
            let silence = (now - node.lastHeard).count / 1_000_000_000
            add(
                "RK020", "warning",
                "\(node.record.name) is \(node.stateName), silent for \(silence) s, and holds "
                    + (node.replicas == 0
                        ? "no replicas"
                        : node.replicas == 1 ? "1 replica" : "\(node.replicas) replicas"),
                node.replicas == 0
                    ? "start it again; if it is gone for good: kvctl node remove \(node.record.name)"
                    : "start it again, or: kvctl replace \(node.record.name)")
        }
        for node in controller.nodes.elements where node.health == .up {
            // Of its disks there is more to say below.
            guard let illness = node.illness, node.disks.allSatisfy({ $0.state == .healthy })
            else { continue }
            add(
                "RK024", "warning", "\(node.record.name) is ill: \(illness.reason)",
                "see what keeps it busy; it leads nothing meanwhile, and is replaced when it stays so"
            )
        }
        for node in controller.nodes.elements where node.isInMaintenance {
            add(
                "RK025", "notice",
                "\(node.record.name) is in maintenance: it leads nothing and is not replaced",
                "when it is done: kvctl node maintenance \(node.record.name) --end")
        }
        for node in controller.nodes.elements {
            for disk in node.disks where disk.state != .healthy {
                add(
                    "RK021", "warning",
                    "disk \(disk.path) of \(node.record.name) is \(disk.state)",
                    "kvctl replace \(node.record.name), then change the disk")
            }
            for disk in node.disks
            where disk.totalBytes > 0 && disk.freeBytes < disk.totalBytes / 20 {
                add(
                    "RK022", "warning",
                    "disk \(disk.path) of \(node.record.name) is "
                        + "\(100 - disk.freeBytes * 100 / disk.totalBytes) % full",
                    "free space there, or: kvctl drain \(node.record.name)")
            }
        }
        if let (node, reason) = controller.firstWithoutHeir(now: now) {
            add(
                "RK030", "notice", "if \(nodeName(node)) failed, \(reason)",
                "start a node with spare = true, or for one that holds nothing: kvctl node spare NODE"
            )
        }
        if controller.mode(of: .repair) == .off {
            add("RK031", "notice", "automatic repair is off", "kvctl config set repair auto")
        }
        findings += operationFindings()
        for hot in controller.hotKeys {
            guard let table = controller.tables[hot.table] else { continue }
            add(
                "RK050", "notice",
                "the key \(routedKey(hot.key, table)) of table \(table.name) takes \(hot.percent) % of "
                    + "\(hot.operations) requests/s to shard \(hot.shard) in group \(hot.group)",
                "no split spreads one key: change how clients use it, or give it a group with few "
                    + "others: kvctl move \(hot.shard)")
        }
        let order = ["critical", "warning", "notice"]
        findings = order.flatMap { severity in findings.filter { $0.severity == severity } }
        let verdict =
            findings.contains { $0.severity == "critical" }
            ? "unavailable"
            : findings.contains { $0.severity == "warning" } ? "degraded" : "healthy"
        return DoctorView(verdict: verdict, findings: findings)
    }

    /// The advice where an operation that fits is under way, or only waits to be applied.
    private func atIt(_ fits: (OperationRecord) -> Bool) -> String? {
        guard let record = openOperations.map(\.record).first(where: fits) else { return nil }
        return record.step == .proposed
            ? "operation \(record.id) would do it: kvctl apply \(record.id)"
            : "operation \(record.id) is at it: kvctl ops show \(record.id)"
    }

    /// How long after its time a former copy may be there, in milliseconds.
    private static let releasePatience: UInt64 = 300_000

    private func operationFindings() -> [FindingView] {
        var findings: [FindingView] = []
        var proposals: [OperationID] = []
        for operation in openOperations {
            let record = operation.record
            let show = "kvctl ops show \(record.id)"
            if record.step == .proposed {
                proposals.append(record.id)
            } else if record.isPaused, record.step == .verifying, let shard = record.work?.moving,
                differs(shard)
            {
                findings.append(
                    FindingView(
                        code: "RK042", severity: "critical",
                        text: "operation \(record.id) is stopped: \(record.outcome)",
                        advice:
                            "keep both groups as they are and find the replica that is wrong; go "
                            + "back with: kvctl ops cancel \(record.id)"))
            } else if record.isPaused {
                findings.append(
                    FindingView(
                        code: "RK041", severity: "notice",
                        text: "operation \(record.id) (\(record.kind.words)) is paused in the step "
                            + "\(record.step.words)",
                        advice: "kvctl ops resume \(record.id), or: kvctl ops cancel \(record.id)"))
            } else if !operation.note.isEmpty, record.work == nil || isLasting(record) {
                findings.append(
                    FindingView(
                        code: "RK040", severity: "notice",
                        text: "operation \(record.id) waits: \(operation.note)", advice: show))
            }
        }
        for former in controller.former.elements where !former.note.isEmpty {
            let record = former.record
            let isLate = wallClock > controller.releaseTime(of: record) + Self.releasePatience
            guard former.isDisputed || isLate else { continue }
            findings.append(
                FindingView(
                    code: "RK044", severity: former.isDisputed ? "critical" : "warning",
                    text: "group \(record.group) still has the copy of shard \(record.shard) that "
                        + "operation \(record.operation) left there: \(former.note)",
                    advice: former.isDisputed
                        ? "replace the replica that stands alone: kvctl replace --group GROUP "
                            + "--replica NODE; the copy goes once the others agree"
                        : "kvctl ops show \(record.operation)"))
        }
        if let first = proposals.first {
            let list = proposals.prefix(10).map { "\($0)" }.joined(separator: ", ")
            let rest = proposals.count > 10 ? " and \(proposals.count - 10) more" : ""
            findings.append(
                FindingView(
                    code: "RK043", severity: "notice",
                    text:
                        "proposals wait for an operator: operation\(proposals.count == 1 ? "" : "s") "
                        + list + rest,
                    advice:
                        "kvctl ops show \(first), then kvctl apply \(first) or kvctl ops cancel "
                        + "\(first)"))
        }
        return findings
    }

    /// Steps of operations on shards wait a moment for many things; that is no news.
    private func isLasting(_ record: OperationRecord) -> Bool {
        wallClock > record.changedAt + 5_000
    }

    /// Whether replicas reported different digests of the shard at one place of one log.
    private func differs(_ shard: ShardID) -> Bool {
        let digests = controller.digests[shard] ?? []
        return digests.contains { one in
            digests.contains { other in
                (one.group, one.epoch, one.index) == (other.group, other.epoch, other.index)
                    && (one.digest, one.records) != (other.digest, other.records)
            }
        }
    }
}
