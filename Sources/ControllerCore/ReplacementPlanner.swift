// Which node takes over a replica.

import KVBase
import ShardCore

/// A replica that is to move or to be added, and where to.
public struct Replacement: Sendable {
    public var group: GroupID
    /// Nothing when a replica is added.
    public var old: Placement
    public var node: NodeID
    public var disk: UInt8
    public var isSpare: Bool
    /// Records that the group holds, as last counted.
    public var bytes: UInt64
    /// Of the chosen disk; nil when it was not reported.
    public var freeBytes: UInt64?
    /// Nodes that were not taken, and why.
    public var skipped: [(node: NodeID, reason: String)]

    public var isAddition: Bool { old == .nowhere }
}

extension Controller {
    /// Free space that a disk must have beside the group's bytes, and half as much again for the
    /// snapshot that is compacted while it arrives.
    static let reserveBytes: UInt64 = 256 << 20

    /// Chooses: the node that already took over from the same node, then the pool that is preferred,
    /// then the zone that the other replicas use least, then the disk with most space by the node's
    /// weight. `.nowhere` as `old` adds a replica. `bytes`: of the group, where they are counted already.
    func choose(
        _ id: GroupID, replacing old: Placement, with wanted: NodeID = .none,
        prefersSpares: Bool = true, avoiding avoided: [NodeID] = [], bytes counted: UInt64? = nil,
        now: Instant
    ) -> Result<Replacement, DatabaseError> {
        guard let group = groups[id] else {
            return .failure(DatabaseError(.refused, "there is no group \(id)"))
        }
        let bytes = counted ?? bytes(of: id)
        let others = group.record.placements.filter { $0.replica != old.replica }
        let zones = others.compactMap { nodes[$0.node]?.record.zone }.filter { !$0.isEmpty }
        let heir = heir(of: old.node)
        var skipped: [(node: NodeID, reason: String)] = []
        var best: (rank: [UInt64], node: NodeStatus, disk: Int, free: UInt64?)?
        for node in nodes.elements where node.record.id != old.node {
            let nodeID = node.record.id
            if wanted != .none, nodeID != wanted { continue }
            if others.contains(where: { $0.node == nodeID }) {
                if wanted == nodeID {
                    skipped.append((nodeID, "holds another replica of group \(id)"))
                }
                continue
            }
            if let reason = objection(to: node, group: id, avoided: avoided, now: now) {
                skipped.append((nodeID, reason))
                continue
            }
            guard let (disk, free) = roomiestDisk(of: node) else {
                skipped.append((nodeID, "no healthy disk"))
                continue
            }
            let needed = bytes + bytes / 2 + Self.reserveBytes
            if let free, free < needed {
                skipped.append(
                    (nodeID, "\(quantity(free)) free, \(quantity(needed)) needed"))
                continue
            }
            let inZone = zones.count { $0 == node.record.zone }
            let rank: [UInt64] = [
                nodeID == heir ? 0 : 1, node.record.isSpare == prefersSpares ? 0 : 1,
                UInt64(inZone), UInt64.max - (free ?? 0) / 100 * UInt64(node.weight),
                100 - UInt64(node.weight), UInt64(nodeID.rawValue),
            ]
            if best.map({ rank.lexicographicallyPrecedes($0.rank) }) ?? true {
                best = (rank, node, disk, free)
            }
        }
        guard let best else {
            let reasons = skipped.map { "\(name($0.node)): \($0.reason)" }
            return .failure(
                DatabaseError(
                    .refused,
                    (old == .nowhere
                        ? "no node can take a replica of group \(id)"
                        : "no node can take over group \(id) from \(name(old.node))")
                        + (reasons.isEmpty
                            ? ": every other node holds a replica of it; add a node"
                            : "; skipped " + reasons.joined(separator: ", "))))
        }
        return .success(
            Replacement(
                group: id, old: old, node: best.node.record.id, disk: UInt8(best.disk),
                isSpare: best.node.record.isSpare, bytes: bytes, freeBytes: best.free,
                skipped: skipped))
    }

    /// Why a node cannot take a replica now, or nil.
    private func objection(
        to node: NodeStatus, group: GroupID, avoided: [NodeID], now: Instant
    ) -> String? {
        let id = node.record.id
        guard node.isLive else {
            let seconds = (now - node.lastHeard).count / 1_000_000_000
            return "\(node.health == .down ? "down" : "suspect"), silent for \(seconds) s"
        }
        if !node.hasReported { return "has not reported yet" }
        if let illness = node.illness { return "is ill: \(illness.reason)" }
        if let lag = rules.lags.elements.first(where: { $0.node == id && $0.declaredAt != nil }) {
            return "its replica of group \(lag.group) lags"
        }
        if node.isHeld { return "is being drained" }
        if node.isInMaintenance { return "is in maintenance" }
        if node.weight == 0 { return "has the weight 0" }
        if avoided.contains(id) { return "was tried before and failed" }
        if retired.elements.contains(where: { $0.node == id && $0.group == group }) {
            return "still deletes an earlier replica of group \(group)"
        }
        return nil
    }

    /// The healthy disk with most free space, which is nil where none was reported.
    private func roomiestDisk(of node: NodeStatus) -> (disk: Int, free: UInt64?)? {
        var best: (disk: Int, free: UInt64?)?
        for disk in 0..<Int(node.record.diskCount) {
            guard disk < node.disks.count else {
                if best == nil { best = (disk, nil) }
                continue
            }
            let report = node.disks[disk]
            guard report.state == .healthy else { continue }
            if best == nil || report.freeBytes > best?.free ?? 0 { best = (disk, report.freeBytes) }
        }
        return best
    }

    /// The node that last took over a replica of `node`, so that one spare stands in for one node.
    private func heir(of node: NodeID) -> NodeID {
        let last = operations.elements.last {
            $0.record.kind == .replaceReplica && $0.record.old.node == node
                && ($0.record.step == .done || !$0.record.isFinished)
        }
        return last?.record.new.node ?? .none
    }

    func name(_ node: NodeID) -> String { nodes[node]?.record.name ?? "node \(node)" }

    func describe(_ plan: Replacement) -> String {
        let node = (plan.isSpare ? "spare " : "") + name(plan.node)
        var text =
            (plan.isAddition
                ? "adds a replica on \(node) to group \(plan.group)"
                : "replaces \(name(plan.old.node)) by \(node) in group \(plan.group)")
            + ", \(quantity(plan.bytes)) to copy"
        if let free = plan.freeBytes { text += ", \(quantity(free)) free there" }
        if !plan.skipped.isEmpty {
            let skipped = plan.skipped.map { "\(name($0.node)): \($0.reason)" }
            text += "; skipped " + skipped.joined(separator: ", ")
        }
        return text
    }
}

/// `512.0 MiB`, as kvctl writes it.
func quantity(_ bytes: UInt64) -> String {
    guard bytes >= 1 << 10 else { return "\(bytes) B" }
    let exponent = min(5, (bytes.bitWidth - 1 - bytes.leadingZeroBitCount) / 10)
    let unit: UInt64 = 1 << (10 * exponent)
    let tenths = bytes / unit * 10 + (bytes % unit * 10 + unit / 2) / unit
    return "\(tenths / 10).\(tenths % 10) \(["KiB", "MiB", "GiB", "TiB", "PiB"][exponent - 1])"
}

/// `1 replica`, `2 replicas`.
func plural(_ count: Int, _ noun: String) -> String { "\(count) \(noun)\(count == 1 ? "" : "s")" }
