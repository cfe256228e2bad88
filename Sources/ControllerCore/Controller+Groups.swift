// Forming groups and bringing their replicas into being.

import KVBase
import ShardCore

extension Controller {
    /// Shards placed in a group, those of tables being created or dropped included.
    public func shardCount(of group: GroupID) -> Int { shardCounts[group] ?? 0 }

    /// Takes a stored group into what is known.
    mutating func insert(_ record: GroupRecord) {
        let id = record.group.id
        groups.set(GroupStatus(record), for: id)
        for placement in record.group.placements {
            nodes.update(placement.node) { node in
                node.replicas += 1
                Self.insert(id, into: &node.groups)
            }
        }
    }

    /// Forms the first groups once enough nodes are there and others had time to come.
    mutating func maybeForm(now: Instant, into effects: inout ControllerEffects) {
        guard !hasFormed, !awaitsNodes(now: now) else { return }
        guard groupIDs(engine: .lsm, replicas: settings.replicasDefault).isEmpty else {
            hasFormed = true
            return
        }
        let planned: Result<[GroupRecord], DatabaseError> = plan(
            engine: .lsm, replicas: settings.replicasDefault)
        guard case .success(let records) = planned else { return }
        hasFormed = true
        var transaction = MetadataTransaction()
        for record in records { transaction.put(record) }
        transaction.put(ids)
        store(transaction, then: .groupsFormed(records), into: &effects)
    }

    /// Whether nodes are still coming in, so that groups formed now would leave some out.
    func awaitsNodes(now: Instant) -> Bool {
        guard let firstNodeAt else { return true }
        return now - firstNodeAt < settings.formationDelay
            && now - lastNodeAt < settings.formationQuiet
    }

    /// Groups of this kind, those on their way to the store and those that lack replicas included.
    func groupIDs(engine: EngineKind, replicas: Int) -> [GroupID] {
        let stored = groups.elements.map(\.stored)
        return (stored + plannedGroups)
            .filter { $0.group.engine == engine && $0.wanted == replicas }
            .map(\.group.id)
    }

    /// Plans `groupsInitial` groups of a kind and takes their ids. The caller stores them with `ids`.
    /// With too few nodes they get fewer replicas, but not fewer than `replicas.min`.
    mutating func plan(engine: EngineKind, replicas: Int) -> Result<[GroupRecord], DatabaseError> {
        var candidates = candidates()
        let usable = candidates.count(where: \.isUsable)
        let needed = min(replicas, Int(runtime[.replicasMin]))
        guard usable >= needed else {
            return .failure(
                DatabaseError(
                    .refused,
                    "a group of \(replicas) replicas needs \(needed) live nodes that are not "
                        + "spares, \(usable) there"))
        }
        let count = min(replicas, usable)
        var records: [GroupRecord] = []
        for _ in 0..<max(1, settings.groupsInitial) {
            guard let places = ReplicaPlanner.place(count: count, on: &candidates) else { break }
            let group = Group(
                id: IDAllocators.take(&ids.group), engine: engine,
                placements: places.map {
                    Placement(
                        replica: IDAllocators.take(&ids.replica), node: $0.0, disk: $0.disk)
                }, state: .creating)
            records.append(GroupRecord(group: group, wanted: replicas))
        }
        plannedGroups += records
        return .success(records)
    }

    mutating func formed(_ records: [GroupRecord], now: Instant) {
        for record in records {
            let id = record.group.id
            plannedGroups.removeAll { $0.group.id == id }
            insert(record)
            groups.update(id) { $0.leaderlessSince = now }
            changes.append(.group(record.group))
            attend(id)
        }
        for record in records { createReplicas(of: record.group.id, now: now) }
    }

    /// Tells the nodes of a group to create the replicas that were never created.
    mutating func createReplicas(of id: GroupID, now: Instant) {
        guard let group = groups[id] else { return }
        for (index, placement) in group.record.placements.enumerated()
        where group.createdMask & (1 << index) == 0 && group.createAgainAt[index] <= now {
            // What a node that has not reported yet hosts is not known.
            guard let node = nodes[placement.node], node.isLive, node.hasReported else { continue }
            commands[group.createCommands[index]] = nil
            let sent = command(
                placement.node, .createReplica(group.record, placement.replica),
                .createReplica(id, placement: index))
            let again = now + settings.commandTimeout
            groups.update(id) { group in
                group.createAgainAt[index] = again
                group.createCommands[index] = sent
            }
        }
    }

    mutating func replicaOutcome(
        _ id: GroupID, _ placement: Int, _ node: NodeID, _ error: DatabaseError?, now: Instant,
        into effects: inout ControllerEffects
    ) {
        guard let group = groups[id], group.record.placements[placement].node == node else {
            return
        }
        if let error {
            effects.append(
                .decided("node \(node) did not create its replica of group \(id): \(error)"))
            return
        }
        groups.update(id) { $0.createdMask |= 1 << placement }
        consider(id, now: now, into: &effects)
    }

    /// Stores what changed in a group's record: replicas created, first leader.
    mutating func maybeStoreGroup(_ id: GroupID, into effects: inout ControllerEffects) {
        guard let group = groups[id], !group.isStoring else { return }
        var record = group.stored
        let isFirstLeader = record.group.state == .creating && group.hasLeader && group.isServing
        if isFirstLeader { record.group.state = .active }
        // While it is being created, a restart asks the nodes again; afterwards every replica counts.
        guard
            isFirstLeader
                || (record.group.state == .active
                    && record.createdMask != group.createdMask)
        else { return }
        record.createdMask = group.createdMask
        groups.update(id) { $0.isStoring = true }
        var transaction = MetadataTransaction()
        transaction.put(record)
        store(transaction, then: .groupChanged(record), into: &effects)
    }

    mutating func changed(_ record: GroupRecord, now: Instant) {
        let id = record.group.id
        guard let before = groups[id] else { return }
        groups.update(id) { group in
            group.stored = record
            group.isStoring = false
        }
        if before.record != record.group { changes.append(.group(record.group)) }
        attend(id)
    }

    /// Nodes that may hold a new replica: those that are not spares, and `spares`. Disks that report
    /// less than `freeBytesMin` are left out.
    func candidates(
        spares: [NodeID] = [], freeBytesMin: UInt64 = 0
    ) -> [ReplicaPlanner.Candidate] {
        var candidates: [ReplicaPlanner.Candidate] = []
        for node in nodes.elements
        where node.isEligible || spares.contains(node.record.id) {
            var disks = [Int?](repeating: 0, count: Int(node.record.diskCount))
            for (index, disk) in node.disks.enumerated()
            where index < disks.count
                && (disk.state != .healthy || disk.freeBytes < freeBytesMin)
            {
                disks[index] = nil
            }
            let placed =
                node.groups.compactMap { groups[$0]?.record } + plannedGroups.map(\.group)
            for group in placed {
                for placement in group.placements
                where placement.node == node.record.id && Int(placement.disk) < disks.count {
                    disks[Int(placement.disk)]? += 1
                }
            }
            candidates.append(
                ReplicaPlanner.Candidate(
                    node: node.record.id, zone: node.record.zone,
                    weight: max(1, node.weight), replicasPerDisk: disks))
        }
        return candidates
    }

    /// Takes stored placements into what is known of a group.
    mutating func takeOver(placementsOf record: GroupRecord, now: Instant) {
        let id = record.group.id
        guard let before = groups[id] else { return }
        endAttempt(id)
        let gone = before.record.placements.filter { !record.group.placements.contains($0) }
        let come = record.group.placements.filter { !before.record.placements.contains($0) }
        if gone.contains(where: { $0.node == before.leader.node }) {
            loseLeader(id, isLost: false, now: now)
        }
        groups.update(id) { group in
            let old = group
            group = GroupStatus(record)
            for (index, placement) in record.group.placements.enumerated() {
                if let place = old.placementIndex(replica: placement.replica) {
                    group.reports[index] = old.reports[place]
                    group.reportedAt[index] = old.reportedAt[place]
                    if old.createdMask & (1 << place) != 0 { group.createdMask |= 1 << index }
                } else {
                    group.reports[index] = extraReports[placement.replica]
                    group.reportedAt[index] = now
                }
            }
            group.leader = old.leader
            group.isServing = old.isServing
            group.leaderlessSince = old.leaderlessSince
            group.isLeaderLost = old.isLeaderLost
            group.nomination = old.nomination
        }
        for placement in gone {
            nodes.update(placement.node) { node in
                node.replicas -= 1
                node.groups.removeAll { $0 == id }
            }
        }
        for placement in come {
            extraReports.remove(placement.replica)
            nodes.update(placement.node) { node in
                node.replicas += 1
                Self.insert(id, into: &node.groups)
            }
        }
        changes.append(.group(record.group))
        attend(id)
    }
}
