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
}

struct DoctorView: Encodable {
    /// `healthy` with notices only.
    var verdict: String
    var findings: [FindingView]
}

extension ClusterViews {
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
            ? "unavailable"
            : findings.contains { $0.severity == "warning" } ? "degraded" : "healthy"
        return DoctorView(verdict: verdict, findings: findings)
    }
}
