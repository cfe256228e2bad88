// What nodes report, and what their silence means.

import KVBase
import ShardCore

extension Controller {
    mutating func observe(
        _ heartbeat: NodeHeartbeat, on connection: ConnectionID, now: Instant,
        into effects: inout ControllerEffects
    ) {
        guard isActing, let id = connections[connection], id == heartbeat.node,
            let node = nodes[id],
            node.incarnation == heartbeat.incarnation,
            heartbeat.sequence > node.sequence
                || !node.hasReported
        else {
            heartbeatsIgnoredCount += 1
            return
        }
        heartbeatCount += 1
        if node.health != .up {
            decide(
                "\(node.record.name) is heard again", nodes: [id], now: now,
                into: &effects)
            lastUnrest = now
        }
        let isFirst = !node.hasReported
        nodes.update(id) { node in
            node.health = .up
            node.downSince = nil
            node.lastHeard = now
            node.sequence = heartbeat.sequence
            node.mapRevision = heartbeat.mapRevision
            node.loopDelay = heartbeat.loopDelay
            node.disks = heartbeat.disks
            let hasFailure = heartbeat.disks.contains { $0.state == .failed }
            node.diskFailedSince = hasFailure ? node.diskFailedSince ?? now : nil
            node.hasReported = true
            node.reporters = []
        }
        observeHealth(of: id, now: now, into: &effects)
        for report in heartbeat.replicas { observe(report, of: id, now: now, into: &effects) }
        for report in heartbeat.shards { observe(report) }
        if let load = heartbeat.load {
            observe(load, of: id)
            note(load, of: id, now: now)
        }
        observeMoves(heartbeat, of: id)
        if heartbeat.replicas.count != node.groups.count || isFirst {
            observeAbsent(heartbeat.replicas, node.groups, of: id, now: now, into: &effects)
        }
        // Every heartbeat is answered, if only with its sequence.
        if outgoing[id] == nil { outgoing.set([], for: id) }
    }

    mutating func closed(
        _ connection: ConnectionID, now: Instant, into effects: inout ControllerEffects
    ) {
        for node in nodes.elements where node.reporters.contains(connection) {
            nodes.update(node.record.id) { $0.reporters.removeAll { $0 == connection } }
        }
        guard let id = connections.removeValue(forKey: connection) else { return }
        nodes.update(id) { node in
            node.connection = nil
            node.hasReported = false
        }
        guard isActing else { return }
        suspect(id, because: "its connection broke", now: now, into: &effects)
    }

    mutating func observeUnreachable(
        _ id: NodeID, by reporter: ConnectionID, now: Instant, into effects: inout ControllerEffects
    ) {
        guard isActing, let node = nodes[id], connections[reporter] != id else { return }
        guard node.health == .up else {
            // Of a node that did not come back after this controller began it tells that none will.
            if node.connection == nil {
                nodes.update(id) { node in
                    if !node.reporters.contains(reporter) { node.reporters.append(reporter) }
                }
                for group in node.groups where groups[group]?.hasLeader == false {
                    consider(group, now: now, into: &effects)
                }
            }
            return
        }
        var reporters: [UInt64] = []
        nodes.update(id) { node in
            if !node.reporters.contains(reporter) { node.reporters.append(reporter) }
            reporters = node.reporters.map(\.number)
        }
        if reporters.count >= 2 || now - node.lastHeard > settings.heartbeatDue {
            suspect(
                id, because: "\(reporters.count) peers find it unreachable", now: now,
                into: &effects)
        }
    }

    mutating func checkNodes(now: Instant, into effects: inout ControllerEffects) {
        for node in nodes.elements where node.health != .down {
            let silence = now - node.lastHeard
            let id = node.record.id
            if node.health == .up, silence > settings.nodeSuspectAfter {
                suspect(
                    id, because: "silent for \(silence.count / 1_000_000) ms", now: now,
                    into: &effects)
            } else if node.health == .up, !node.reporters.isEmpty, silence > settings.heartbeatDue {
                suspect(
                    id, because: "a peer finds it unreachable and its heartbeat is overdue",
                    now: now, into: &effects)
            } else if node.health == .suspect, silence > settings.nodeDownAfter {
                nodes.update(id) { node in
                    node.health = .down
                    node.downSince = now
                }
                lastUnrest = now
                decide(
                    "\(node.record.name) is down: silent for "
                        + "\(silence.count / 1_000_000) ms", nodes: [id], now: now,
                    into: &effects)
            }
        }
    }

    /// Its leaders are replaced at once, and so are nominees on it.
    private mutating func suspect(
        _ id: NodeID, because reason: String, now: Instant, into effects: inout ControllerEffects
    ) {
        guard let node = nodes[id], node.health == .up else { return }
        nodes.update(id) { node in
            node.health = .suspect
            node.reporters = []
        }
        lastUnrest = now
        decide(
            "\(node.record.name) is suspect: \(reason)", nodes: [id], now: now,
            into: &effects)
        for group in node.groups {
            guard let status = groups[group] else { continue }
            if status.leader.node == id {
                loseLeader(group, isLost: true, now: now)
                consider(group, now: now, into: &effects)
            } else if let attempt = status.attempt,
                status.placementIndex(replica: attempt.nomination.nominee)
                    == status.placementIndex(node: id)
            {
                // The nominee is gone before it led: the next one at once.
                groups.update(group) { $0.attempt?.deadline = now }
                consider(group, now: now, into: &effects)
            }
        }
    }

    /// A restarted process leads nothing and its replicas' reports are old.
    mutating func forget(
        reportsOf id: NodeID, now: Instant, into effects: inout ControllerEffects
    ) {
        guard let node = nodes[id] else { return }
        nodes.update(id) { node in
            node.sequence = 0
            node.loopIllness = nil
            node.diskIllnesses = []
        }
        for group in node.groups {
            guard let status = groups[group], let index = status.placementIndex(node: id) else {
                continue
            }
            groups.update(group) { $0.reports[index] = nil }
            if status.leader.node == id {
                loseLeader(group, isLost: true, now: now)
                consider(group, now: now, into: &effects)
            }
        }
    }

    /// Replicas that the node does not host (any more): one that led is lost.
    private mutating func observeAbsent(
        _ reports: [ReplicaReport], _ placed: [GroupID], of node: NodeID, now: Instant,
        into effects: inout ControllerEffects
    ) {
        let reported = reports.map(\.group).sorted()
        var position = 0
        for group in placed {
            while position < reported.count, reported[position] < group { position += 1 }
            if position < reported.count, reported[position] == group { continue }
            guard let status = groups[group], let index = status.placementIndex(node: node) else {
                continue
            }
            groups.update(group) { $0.reports[index] = nil }
            if status.leader.node == node { loseLeader(group, isLost: true, now: now) }
            // It may have to be created, or replaced as leader.
            attend(group)
            consider(group, now: now, into: &effects)
        }
    }
}
