// Nodes that operators are about to work on: a lease that ends by itself. Leaders leave the node,
// none comes, no replica is placed there, and repair leaves its replicas alone meanwhile.

import KVBase
import ShardCore

extension Controller {
    /// Leaders told to leave in one look, once a second.
    private static let handOversMax = 64
    private static let maintenanceMax = Nanoseconds.seconds(7 * 86_400)

    mutating func beginMaintenance(
        of name: String, for time: Nanoseconds, _ request: RequestID, now: Instant,
        into effects: inout ControllerEffects
    ) throws(DatabaseError) {
        let node = try find(node: name)
        guard time >= .seconds(1), time <= Self.maintenanceMax else {
            throw DatabaseError(.refused, "a maintenance lasts from 1s to 7d")
        }
        guard clock != nil else {
            throw DatabaseError(.unavailable, "the controller has just started; repeat")
        }
        let id = node.record.id
        for group in node.groups { try checkStands(group, without: id) }
        let until = wallClock(now) + time.count / 1_000_000
        var transaction = MetadataTransaction()
        transaction.put(StoreKey.maintenance(id)) { $0.write(until) }
        decide(
            "\(name) is in maintenance for \(RuntimeSetting.written(time)): "
                + "\(OperationRecord.operatorReason); "
                + "leaders that leave: \(node.leaders)", nodes: [id], now: now, into: &effects)
        store(
            transaction, then: .nodeChanged(.maintenance(id, until: until), request),
            into: &effects)
    }

    mutating func endMaintenance(
        of name: String, _ request: RequestID, now: Instant, into effects: inout ControllerEffects
    ) throws(DatabaseError) {
        let node = try find(node: name)
        guard node.isInMaintenance else {
            throw DatabaseError(.refused, "\(name) is not in maintenance")
        }
        end(maintenanceOf: node, OperationRecord.operatorReason, request, now: now, into: &effects)
    }

    /// Ends what has expired, and moves leaders off the nodes that remain.
    mutating func keepMaintenance(now: Instant, into effects: inout ControllerEffects) {
        for node in nodes.elements {
            guard let until = node.maintenanceUntil else { continue }
            if clock != nil, wallClock(now) >= until {
                end(maintenanceOf: node, "its time is over", nil, now: now, into: &effects)
            } else if node.leaders > 0, node.isLive {
                handOver(leadersOf: node)
            }
        }
    }

    private mutating func end(
        maintenanceOf node: NodeStatus, _ reason: String, _ request: RequestID?, now: Instant,
        into effects: inout ControllerEffects
    ) {
        let id = node.record.id
        var transaction = MetadataTransaction()
        transaction.changes.append(.delete(key: StoreKey.maintenance(id)))
        decide(
            "the maintenance of \(node.record.name) has ended: \(reason)", nodes: [id], now: now,
            into: &effects)
        // Whatever is decided from now on is stored behind this.
        nodes.update(id) { $0.maintenanceUntil = nil }
        store(
            transaction, then: .nodeChanged(.maintenance(id, until: nil), request), into: &effects)
    }

    /// Whether the group keeps a live majority while the node is away.
    private func checkStands(_ id: GroupID, without node: NodeID) throws(DatabaseError) {
        guard let places = groups[id]?.record.placements else { return }
        let others = places.filter { $0.node != node }
        let away = others.filter {
            guard let other = nodes[$0.node] else { return true }
            return !other.isLive || other.isInMaintenance
        }
        guard others.count - away.count <= places.count / 2 else { return }
        let ways = away.map { place in
            let other = name(place.node)
            return nodes[place.node]?.isInMaintenance == true
                ? "end that of \(other) with \(Self.endOfMaintenance(other))"
                : "bring back \(other)"
        }
        throw DatabaseError(
            .refused,
            "group \(id) would have \(others.count - away.count) of \(places.count) replicas left; "
                + (ways.isEmpty
                    ? "drain the node instead: kvctl drain \(name(node))"
                    : "first " + ways.joined(separator: " and ")))
    }

    /// The command that ends it.
    static func endOfMaintenance(_ name: String) -> String {
        "kvctl node maintenance \(name) --end"
    }

    private mutating func handOver(leadersOf node: NodeStatus) {
        var count = 0
        for id in node.groups where count < Self.handOversMax {
            guard let group = groups[id], group.leader.node == node.record.id, group.isServing,
                let index = group.placementIndex(node: node.record.id),
                let leading = group.reports[index]
            else { continue }
            var best: (leaders: Int, placement: Placement)?
            for (index, placement) in group.record.placements.enumerated() {
                guard let to = nodes[placement.node], to.isFit(disk: placement.disk),
                    !to.isInMaintenance,
                    let report = group.reports[index], report.role == .follower,
                    report.state == .active, report.lastIndex >= leading.commit
                else { continue }
                if best.map({ to.expectedLeaders < $0.leaders }) ?? true {
                    best = (to.expectedLeaders, placement)
                }
            }
            guard let best else { continue }
            count += 1
            _ = command(
                node.record.id, .transferLeadership(id, to: best.placement.replica),
                .transfer(id))
        }
    }
}
