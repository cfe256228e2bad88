// Nodes that are heard but not well: a disk that answers late, an event loop that stands still.
//
// An ill node is not a lost one. It votes, its replicas follow, and it may lead when nobody else can;
// but leaders are moved off, nobody is nominated on it while others can do it, and no replica is
// placed there. It is well again after a while of good reports; ill for long, its replicas are
// replaced. Illness belongs to a disk, or, for the loop, to the whole node.

import KVBase
import ShardCore

/// Why a node or one of its disks is ill.
public struct Illness: Hashable, Sendable {
    /// Ill without a break of `wellAfter` since then.
    public var since: Instant
    /// The newest report that showed it.
    var shownAt: Instant
    /// With the numbers of that report.
    public var reason: String
}

extension NodeStatus {
    public var isIll: Bool { loopIllness != nil || diskIllnesses.contains { $0 != nil } }

    /// What ails the node, the loop first.
    public var illness: Illness? { loopIllness ?? diskIllnesses.lazy.compactMap { $0 }.first }

    /// What ails the replicas on one of its disks.
    func illness(onDisk disk: UInt8) -> Illness? {
        if let loopIllness { return loopIllness }
        return Int(disk) < diskIllnesses.count ? diskIllnesses[Int(disk)] : nil
    }

    /// Whether replicas on the disk may be expected to answer in time.
    func isFit(disk: UInt8) -> Bool { isLive && illness(onDisk: disk) == nil }
}

extension Controller {
    // MARK: Reports

    /// Judges what the newest heartbeat of a node says of its loop and its disks.
    mutating func observeHealth(
        of id: NodeID, now: Instant, into effects: inout ControllerEffects
    ) {
        guard let node = nodes[id] else { return }
        let wasIll = node.illness
        let loop: String? =
            node.loopDelay <= settings.loopDelayMax
            ? nil : "its event loop stood still for \(milliseconds(node.loopDelay))"
        let loopIllness = judge(node.loopIllness, loop, now: now)
        let diskIllnesses = node.disks.enumerated().map { index, disk -> Illness? in
            // A failed disk is another matter: its replicas are gone.
            guard disk.state != .failed else { return nil }
            let before = index < node.diskIllnesses.count ? node.diskIllnesses[index] : nil
            return judge(
                before,
                disk.state != .slow
                    ? nil
                    : "its disk \(disk.path) takes \(milliseconds(disk.logDelay)) for a write of "
                        + "the log and \(milliseconds(disk.engineDelay)) for a read", now: now)
        }
        guard loopIllness != nil || wasIll != nil || diskIllnesses.contains(where: { $0 != nil })
        else { return }
        nodes.update(id) { node in
            node.loopIllness = loopIllness
            node.diskIllnesses = diskIllnesses
        }
        let isIll = nodes[id]?.illness
        if let isIll, wasIll == nil {
            lastUnrest = now
            decide(
                "\(node.record.name) is ill: \(isIll.reason)", nodes: [id], now: now,
                into: &effects)
            moveLeaders(off: id, now: now, into: &effects)
        } else if isIll == nil, let wasIll {
            lastUnrest = now
            // Those nominated in place of a leader here that stayed.
            for group in node.groups where groups[group]?.leader.node == id { endAttempt(group) }
            decide(
                "\(node.record.name) is well again: good reports for "
                    + "\(milliseconds(settings.wellAfter)), after it was ill for "
                    + "\(milliseconds(now - wasIll.since))", nodes: [id], now: now,
                into: &effects)
        }
    }

    private func judge(_ before: Illness?, _ reason: String?, now: Instant) -> Illness? {
        if let reason {
            return Illness(since: before?.since ?? now, shownAt: now, reason: reason)
        }
        guard let before, now - before.shownAt < settings.wellAfter else { return nil }
        return before
    }

    // MARK: Leaders

    /// Goes on moving leaders off ill nodes.
    mutating func moveLeadersOffIllNodes(now: Instant, into effects: inout ControllerEffects) {
        for node in nodes.elements where node.isIll && node.isLive && node.leaders > 0 {
            moveLeaders(off: node.record.id, now: now, into: &effects)
        }
    }

    /// Asks the leaders on the node's ill disks to hand over; nominates others in their place when
    /// that was asked for in vain.
    private mutating func moveLeaders(
        off id: NodeID, now: Instant, into effects: inout ControllerEffects
    ) {
        guard let node = nodes[id] else { return }
        var moved: [GroupID] = []
        for group in node.groups {
            guard let status = groups[group], status.leader.node == id,
                let own = status.placementIndex(node: id),
                node.illness(onDisk: status.record.placements[own].disk) != nil,
                now >= status.moveAgainAt
            else { continue }
            let fit = fitFollowers(of: status)
            // Without a fit majority the next leader would wait for the same disk.
            guard fit.count > status.record.placements.count / 2 else { continue }
            let isNew = status.moveTerm != status.leader.term
            let attempts = isNew ? 0 : status.moveAttempts + 1
            groups.update(group) { group in
                group.moveTerm = status.leader.term
                group.moveAttempts = attempts
                // What was done in vain is repeated ever more rarely.
                group.moveAgainAt =
                    now + settings.moveTimeout * (1 << UInt64(max(0, min(attempts, 6) - 1)))
            }
            if isNew { moved.append(group) }
            if attempts % (settings.moveAttemptsMax + 1) < settings.moveAttemptsMax {
                let target = status.record.placements[fit[attempts % fit.count]]
                _ = command(
                    id, .transferLeadership(group, to: target.replica), .transfer(group))
            } else {
                nominate(group, now: now)
            }
        }
        guard !moved.isEmpty, let illness = node.illness else { return }
        let named = moved.prefix(8).map { "\($0)" }.joined(separator: ", ")
        decide(
            "moves the leaders of groups \(named)"
                + (moved.count > 8 ? " and \(moved.count - 8) more" : "")
                + " off \(node.record.name): \(illness.reason)", nodes: [id],
            group: moved.count == 1 ? moved[0] : .none, now: now, into: &effects)
    }

    /// Places of replicas that could lead in place of the leader, the best first.
    private func fitFollowers(of group: GroupStatus) -> [Int] {
        let places = group.record.placements.indices.filter { index in
            let placement = group.record.placements[index]
            guard placement.node != group.leader.node, let report = group.reports[index],
                report.state == .active, report.role != .learner
            else { return false }
            return nodes[placement.node]?.isFit(disk: placement.disk) ?? false
        }
        return places.sorted { left, right in
            func rank(_ index: Int) -> (Term, LogIndex) {
                (group.reports[index]?.lastTerm ?? .none, group.reports[index]?.lastIndex ?? .none)
            }
            func load(_ index: Int) -> (Int, NodeID) {
                let node = group.record.placements[index].node
                return (nodes[node]?.expectedLeaders ?? 0, node)
            }
            if rank(left) != rank(right) { return rank(left) > rank(right) }
            return load(left) < load(right)
        }
    }

    /// The places that count when a leader is sought: those of fit replicas when they are a majority,
    /// else all that are live.
    func electablePlaces(of group: Group) -> [Int] {
        let live = group.placements.indices.filter {
            nodes[group.placements[$0].node]?.isLive ?? false
        }
        let fit = live.filter {
            nodes[group.placements[$0].node]?.isFit(disk: group.placements[$0].disk) ?? false
        }
        return fit.count > group.placements.count / 2 ? fit : live
    }

    // MARK: Replacement

    /// Groups whose replica on the node has been ill for so long that it is to be replaced, and why.
    func incurable(on node: NodeStatus, now: Instant) -> [(group: GroupID, reason: String)] {
        guard node.isIll, node.isLive else { return [] }
        return node.groups.compactMap { group in
            guard let status = groups[group],
                let index = status.placementIndex(node: node.record.id),
                let illness = node.illness(onDisk: status.record.placements[index].disk),
                now - illness.since >= settings.illAfter
            else { return nil }
            let seconds = (now - illness.since).count / 1_000_000_000
            return (group, "\(node.record.name) is ill for \(seconds) s: \(illness.reason)")
        }
    }

    private func milliseconds(_ duration: Nanoseconds) -> String {
        "\(duration.count / 1_000_000) ms"
    }
}
