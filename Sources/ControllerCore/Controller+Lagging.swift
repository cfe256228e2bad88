// Followers that stay behind their leader although node and disk are well: a broken link between the
// two, a disk that is only slow enough, a snapshot that never ends.
//
// The leader's report tells how far each follower is. One that is behind and gets no closer for
// `lag.after` is declared lagging, shown, and replaced by the rule `repair`. When most followers of a
// leader are behind, it is the leader that has too much to do; another replica would be behind too.

import KVBase
import ShardCore

/// A follower that is behind its leader, as far as the newest report tells.
public struct Lag: Hashable, Sendable {
    public var group: GroupID
    public var replica: ReplicaID
    public var node: NodeID
    /// Entries behind.
    public var entries: UInt64
    /// It was declared lagging then, and has not caught up since.
    public var declaredAt: Instant?
    /// With the numbers of the declaration.
    public var reason = ""
    /// Of the leader that reported it.
    var term: Term
    var match: LogIndex
    /// When `match` last rose, and whether it did with the newest report.
    var movedAt: Instant
    var isMoving = false
    /// The fewest entries behind since `since`.
    var lowest: UInt64
    /// Bytes of the snapshot under way; how many were begun since it last followed closely.
    var snapshotBytes: UInt64?
    var snapshots = 0
    /// No progress since then.
    var since: Instant

    /// So many snapshots count as progress while they flow; a further one says that they lead nowhere.
    fileprivate static let snapshotsMax = 2
}

extension Controller {
    /// Followers that were declared lagging, in order of replicas.
    public var lagging: [Lag] { rules.lags.elements.filter { $0.declaredAt != nil } }

    public func isLagging(_ replica: ReplicaID) -> Bool {
        rules.lags[replica]?.declaredAt != nil
    }

    /// Groups whose leaders most followers are behind.
    public var burdenedGroups: [GroupID] { rules.burdened }

    /// Whether a follower has what its leader has, but for what is on its way.
    func isUpToDate(_ replica: ReplicaID) -> Bool {
        guard let lag = rules.lags[replica] else { return true }
        return lag.declaredAt == nil && lag.isMoving && lag.entries <= runtime[.lagEntries]
    }

    // MARK: Reports

    /// Takes in how far a leader's followers are.
    mutating func observeLags(
        _ report: ReplicaReport, now: Instant, into effects: inout ControllerEffects
    ) {
        guard let group = groups[report.group] else { return }
        for member in report.members {
            guard member.role == .voter, member.replica != report.replica,
                member.match < report.lastIndex,
                let index = group.placementIndex(replica: member.replica)
            else {
                forgetLag(of: member.replica, now: now, into: &effects)
                continue
            }
            let entries = report.lastIndex.rawValue - member.match.rawValue
            guard var lag = rules.lags[member.replica], lag.term == report.term else {
                // Under a new leader it is judged anew, but stays what it was declared to be.
                let before = rules.lags[member.replica]
                let lag = Lag(
                    group: report.group, replica: member.replica,
                    node: group.record.placements[index].node,
                    entries: entries, declaredAt: before?.declaredAt,
                    reason: before?.reason ?? "", term: report.term, match: member.match,
                    movedAt: now, lowest: entries, snapshotBytes: member.snapshotBytes,
                    snapshots: member.snapshotBytes == nil ? 0 : 1, since: now)
                rules.lags.set(lag, for: member.replica)
                continue
            }
            lag.take(member, entries, bound: runtime[.lagEntries], now: now)
            if lag.declaredAt != nil, lag.isMoving, entries <= runtime[.lagEntries] / 2 {
                forgetLag(of: member.replica, now: now, into: &effects)
                lag.declaredAt = nil
                lag.reason = ""
            }
            rules.lags.set(lag, for: member.replica)
        }
    }

    private mutating func forgetLag(
        of replica: ReplicaID, now: Instant, into effects: inout ControllerEffects
    ) {
        guard let lag = rules.lags.remove(replica), lag.declaredAt != nil else { return }
        decide(
            "the replica of group \(lag.group) on \(name(lag.node)) lags no more",
            nodes: [lag.node], group: lag.group, now: now, into: &effects)
    }

    // MARK: Judgement

    /// Declares, once a second, who has been behind for too long.
    mutating func judgeLags(now: Instant, into effects: inout ControllerEffects) {
        guard now >= rules.lagCheckAt else { return }
        rules.lagCheckAt = now + settings.commandTimeout
        let patience = runtime.time(.lagAfter)
        // For look-up only.
        var behind: [GroupID: Int] = [:]
        var due: [ReplicaID] = []
        for group in groups.elements {
            for (index, place) in group.record.placements.enumerated() {
                guard let lag = rules.lags[place.replica] else { continue }
                guard isJudged(group, index) else {
                    // What ails it is another matter, or nobody leads: it is given time again.
                    rules.lags.update(place.replica) { $0.since = now }
                    continue
                }
                // Others may have fallen behind a little later.
                if lag.declaredAt != nil || (now - lag.since) * 2 >= patience {
                    behind[group.record.id, default: 0] += 1
                }
                if lag.declaredAt == nil, now - lag.since >= patience { due.append(place.replica) }
            }
        }
        rules.burdened = groups.elements.compactMap { group in
            let followers = group.record.placements.count - 1
            return (behind[group.record.id] ?? 0) * 2 > followers ? group.record.id : nil
        }
        for lag in rules.lags.elements
        where groups[lag.group]?.placementIndex(replica: lag.replica) == nil {
            rules.lags.remove(lag.replica)
        }
        for replica in due {
            guard let lag = rules.lags[replica], let leader = groups[lag.group]?.leader.node else {
                continue
            }
            guard !rules.burdened.contains(lag.group) else {
                refuse(
                    .repair, .group(lag.group),
                    "most followers of group \(lag.group) are behind its leader on \(name(leader)), "
                        + "so it is the leader's load and not theirs", now: now, into: &effects)
                continue
            }
            let reason = lag.description(now: now, patience: patience)
            rules.lags.update(replica) { lag in
                lag.declaredAt = now
                lag.reason = reason
            }
            decide(
                "the replica of group \(lag.group) on \(name(lag.node)) lags: it is \(reason); "
                    + "\(name(leader)) leads", nodes: [lag.node, leader], group: lag.group,
                now: now, into: &effects)
        }
    }

    /// Whether only the replica itself can be at fault when it is behind.
    private func isJudged(_ group: GroupStatus, _ index: Int) -> Bool {
        let place = group.record.placements[index]
        guard group.hasLeader, group.isServing, group.leader.node != place.node,
            let node = nodes[place.node], node.isFit(disk: place.disk), !node.isInMaintenance,
            nodes[group.leader.node]?.isLive == true
        else { return false }
        return group.reports[index].map { $0.state != .failed } ?? false
    }
}

extension Lag {
    /// Takes in the next report of the same leader. Progress begins the time anew.
    fileprivate mutating func take(
        _ member: MemberReport, _ entries: UInt64, bound: UInt64, now: Instant
    ) {
        isMoving = member.match > match
        if isMoving { movedAt = now }
        match = member.match
        self.entries = entries
        let before = snapshotBytes
        snapshotBytes = member.snapshotBytes
        if let bytes = snapshotBytes {
            let isNew = before.map { bytes < $0 } ?? true
            if isNew { snapshots += 1 }
            if isNew || bytes > before ?? 0, snapshots <= Self.snapshotsMax { since = now }
        }
        if isMoving, entries <= bound {
            since = now
            lowest = entries
            snapshots = 0
        } else if isMoving, entries + max(1, lowest / 50) <= lowest {
            lowest = entries
            since = now
        }
    }

    fileprivate func description(now: Instant, patience: Nanoseconds) -> String {
        let count = "\(Controller.counted(entries)) entries behind its leader"
        let seconds = (now - since).count / 1_000_000_000
        if now - movedAt >= patience { return count + " and got nothing for \(seconds) s" }
        if snapshots > Self.snapshotsMax {
            return count + " after \(snapshots) snapshots, none of which helped"
        }
        return count + " and came no closer for \(seconds) s"
    }
}
