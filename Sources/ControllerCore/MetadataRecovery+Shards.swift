// Who has which shard: the groups' own states, and what fills the places where none tells.

import KVBase
import ShardCore

extension MetadataRecovery {
    // MARK: Tables

    mutating func findTables() {
        let claims = chooseClaims()
        tables = olderTables
        for table in (isBookNewer ? book?.tables : nil) ?? [] { tables.set(table, for: table.id) }
        var owned = SortedRecords<TableID, [Claim]>()
        for claim in claims { owned.add(claim, to: claim.holding.shard.table) }
        var stored = SortedRecords<TableID, [Shard]>()
        for shard in base.shards { stored.add(shard, to: shard.table) }
        for own in owned.elements {
            guard let first = own.first, tables[first.holding.shard.table] == nil else { continue }
            nameTable(first)
        }
        for table in tables.elements {
            settle(table, owned[table.id] ?? [], stored[table.id] ?? [])
        }
        // Two tables of one name: the older one steps back.
        for table in tables.elements where table.state != .dropping {
            guard
                tables.elements.contains(where: {
                    $0.id > table.id && $0.name == table.name && $0.state != .dropping
                })
            else { continue }
            let name = "\(table.name).\(table.id)"
            note(
                "changed",
                "table \(table.id) is called \(name) from now on: a newer table is called "
                    + "\(table.name)")
            tables.update(table.id) { $0.name = name }
        }
    }

    /// Records of a table that neither the older state nor the newest map knows.
    private mutating func nameTable(_ claim: Claim) {
        let id = claim.holding.shard.table
        for holding in holdings.sorted(by: { $0.mapRevision > $1.mapRevision }) {
            if let table = holding.tables.first(where: { $0.id == id }) {
                return tables.set(table, for: id)
            }
        }
        let name = "recovered-\(id)"
        note(
            "incomplete",
            "table \(id) has shards, and nobody knows its name: it is called \(name) from now on")
        let group = groups[claim.group]?.group
        tables.set(
            Table(
                id: id, name: name, partitioning: claim.holding.partitioning,
                engine: group?.engine ?? .lsm, replicas: UInt8(group?.placements.count ?? 3),
                state: .active), for: id)
    }

    /// Gives the table the shards that its groups have, and fills what is missing.
    private mutating func settle(_ table: Table, _ claims: [Claim], _ stored: [Shard]) {
        let own = withoutOverlaps(claims, of: table)
        if table.state == .dropping {
            if own.isEmpty { tables.remove(table.id) }
            return take(own, as: .dropping)
        }
        if own.isEmpty {
            let unsure = stored.filter { known[$0.group]?.isConfirmed != true }
            guard table.state == .active, !unsure.isEmpty else {
                note(
                    "changed",
                    "table \(table.name): no group holds any of its shards, so it "
                        + (table.state == .creating ? "was never created" : "was dropped"))
                tables.remove(table.id)
                return
            }
        }
        let missing = holes(in: own.map(\.shard.range))
        if table.state == .creating {
            guard missing.isEmpty else {
                // The controller goes on with the creation.
                take(own, as: .creating)
                for shard in stored where missing.contains(where: { $0.overlaps(shard.range) }) {
                    if shards[shard.id] == nil { shards.set(shard, for: shard.id) }
                }
                return
            }
            tables.update(table.id) { $0.state = .active }
        }
        take(own, as: .active)
        for hole in missing { fill(hole, table, stored) }
    }

    private mutating func take(_ claims: [Claim], as state: Shard.State) {
        for claim in claims {
            var shard = claim.shard
            shard.state = state
            if let stored = olderShards[shard.id], stored.group != shard.group {
                note(
                    "changed",
                    "shard \(shard.id) is in group \(shard.group) with epoch \(shard.epoch), not in "
                        + "group \(stored.group)")
            }
            shards.set(shard, for: shard.id)
        }
    }

    /// Nobody holds these keys: the map shows them where they were, and requests fail there.
    private mutating func fill(_ hole: KeyRange, _ table: Table, _ stored: [Shard]) {
        let start = KeyText.bound(hole.start, of: table.partitioning)
        let end = hole.end.map { KeyText.bound($0, of: table.partitioning) }
        let isGone = isBookNewer && book?.tables.contains { $0.id == table.id } == false
        note(
            "incomplete",
            "no group holds the keys from '\(start)' to \(end.map { "'\($0)'" } ?? "the end") of table "
                + "\(table.name)"
                + (isGone
                    ? "; the newest map has no such table, so it was being dropped, perhaps"
                    : ""))
        var rest = hole
        let candidates = stored.filter { shards[$0.id] == nil && $0.range.overlaps(hole) }
            .sorted { compareBytes($0.range.start, $1.range.start) < 0 }
        for var shard in candidates where compareBytes(shard.range.start, rest.start) <= 0 {
            shard.range.start = rest.start
            let isLast =
                shard.range.end.map { end in rest.end.map { compareBytes(end, $0) >= 0 } ?? false }
                ?? true
            if isLast { shard.range.end = rest.end }
            guard !shard.range.isEmpty, groups[shard.group] != nil else { continue }
            shard.state = .active
            shards.set(shard, for: shard.id)
            guard let end = shard.range.end, !isLast else { return }
            rest.start = end
        }
        guard
            let group = groups.elements.first(where: { $0.group.engine == table.engine })
                ?? groups.elements.first
        else { return }
        let id: ShardID = IDAllocators.take(&ids.shard)
        shards.set(
            Shard(
                id: id, table: table.id, range: rest, group: group.group.id, epoch: Epoch(1),
                state: .active), for: id)
    }

    /// What `ranges`, in order and disjoint, leave out of all keys.
    private func holes(in ranges: [KeyRange]) -> [KeyRange] {
        var holes: [KeyRange] = []
        var reached: Bytes? = []
        for range in ranges {
            guard let from = reached else { break }
            if compareBytes(from, range.start) < 0 {
                holes.append(KeyRange(start: from, end: range.start))
            }
            reached = range.end
        }
        if let from = reached { holes.append(KeyRange(start: from, end: nil)) }
        return holes
    }

    // MARK: Claims

    /// For each shard the one group that is to be shown with it, in order of shard id.
    private mutating func chooseClaims() -> [Claim] {
        var claims = SortedRecords<ShardID, [Claim]>()
        for group in known.elements {
            for holding in group.authority?.shards ?? [] {
                let claim = Claim(
                    group: group.id, isConfirmed: group.isConfirmed, holding: holding)
                claims.add(claim, to: holding.shard.id)
            }
        }
        // Where the group's own word is missing or may be old, the older state has one too.
        for shard in base.shards where known[shard.group]?.isConfirmed == false {
            guard let table = olderTables[shard.table], table.state == .active else { continue }
            let claim = Claim(
                group: shard.group, isConfirmed: false,
                holding: ShardHolding(
                    shard: shard, partitioning: table.partitioning, standing: .owned))
            claims.add(claim, to: shard.id)
        }
        return claims.elements.compactMap { choose($0) }
    }

    private mutating func choose(_ claims: [Claim]) -> Claim? {
        guard let first = claims.first else { return nil }
        let id = first.holding.shard.id
        let serving = claims.filter(\.holding.isServing)
        let sure = serving.filter(\.isConfirmed)
        if sure.count > 1 {
            note(
                "refused",
                "shard \(id) is served by the groups "
                    + sure.map { "\($0.group) (epoch \($0.holding.shard.epoch))" }
                    .joined(separator: " and ") + " at once")
        }
        let best = serving.max { Self.isWorse($0, $1) }
        guard let owner = best else { return claims.max { Self.isWorse($0, $1) } }
        // What is not sure and older than what another group has given up is not believed.
        let newest = claims.max { $0.holding.shard.epoch < $1.holding.shard.epoch }
        if let newest, !owner.isConfirmed, newest.isConfirmed,
            newest.holding.shard.epoch > owner.holding.shard.epoch
        {
            return newest
        }
        return owner
    }

    private static func isWorse(_ left: Claim, _ right: Claim) -> Bool {
        (left.isConfirmed ? 1 : 0, left.holding.shard.epoch)
            < (right.isConfirmed ? 1 : 0, right.holding.shard.epoch)
    }

    /// In order of their keys.
    private mutating func withoutOverlaps(_ claims: [Claim], of table: Table) -> [Claim] {
        var kept: [Claim] = []
        let serving = claims.filter(\.holding.isServing)
        // Of a shard that moved away and was joined to another one there, only the former copy is left.
        let current = claims.filter { claim in
            claim.holding.isServing
                || !serving.contains {
                    $0.shard.range.overlaps(claim.shard.range)
                        && $0.shard.epoch > claim.shard.epoch.next()
                }
        }
        for claim in current.sorted(by: { left, right in
            let order = compareBytes(left.shard.range.start, right.shard.range.start)
            return order == 0 ? left.shard.id < right.shard.id : order < 0
        }) {
            guard let last = kept.last, last.shard.range.overlaps(claim.shard.range) else {
                kept.append(claim)
                continue
            }
            let text =
                "shard \(last.shard.id) of group \(last.group) and shard \(claim.shard.id) of group "
                + "\(claim.group) hold the same keys of table \(table.name)"
            if last.isConfirmed, claim.isConfirmed {
                note("refused", text)
            } else {
                let loser = Self.isWorse(last, claim) ? last : claim
                note("changed", text + "; shard \(loser.shard.id) is old and left out")
                if Self.isWorse(last, claim) { kept[kept.count - 1] = claim }
            }
        }
        return kept
    }

    // MARK: Operations

    /// The restore itself, as the last thing that happened.
    mutating func noteRestore() {
        var record = OperationRecord(
            id: IDAllocators.take(&nextOperation), kind: .restore, step: .done,
            reason: "no controller was left", group: .none, old: .nowhere, new: .nowhere)
        record.outcome = summary
        record.startedAt = clock
        record.changedAt = clock
        record.endedAt = clock
        operations.append(record)
        ended.append(record.id)
    }

    /// What was under way in the older state ends; moves that the groups are in the midst of go on.
    mutating func settleOperations() {
        for var record in base.operations {
            if !record.isFinished {
                // A backup that holds the record of its own making did keep what it was to keep.
                let isKept = record.kind == .backup
                record.step = isKept ? .done : .failed
                record.endedAt = clock
                record.changedAt = clock
                record.outcome =
                    isKept
                    ? "the metadata was restored from what it kept"
                    : "ended by the restore of the metadata from \(origin)"
                ended.append(record.id)
            }
            operations.append(record)
        }
        // Like every counter, above what can have been issued.
        nextOperation += Self.idJump
        var held = SortedRecords<ShardID, [Claim]>()
        for group in known.elements {
            for holding in group.authority?.shards ?? [] where holding.standing != .owned {
                let claim = Claim(
                    group: group.id, isConfirmed: group.isConfirmed, holding: holding)
                held.add(claim, to: holding.shard.id)
            }
        }
        for claims in held.elements {
            guard let first = claims.first?.holding.shard, let table = tables[first.table],
                table.state == .active
            else { continue }
            if let shard = shards[first.id] {
                goOn(shard, claims)
            } else {
                for claim in claims { leave(claim) }
            }
        }
    }

    private mutating func goOn(_ shard: Shard, _ claims: [Claim]) {
        if let own = claims.first(where: { $0.group == shard.group }) {
            switch own.holding.standing {
            case .owned: break
            case .importing(let source):
                let origin = claims.first { $0.group == source }
                guard origin != nil || known[source]?.isConfirmed == false else {
                    return note(
                        "incomplete",
                        "group \(shard.group) copies shard \(shard.id) from group \(source), which does "
                            + "not hold it")
                }
                return add(shard, .copying, from: source, to: shard.group, isTurned: false)
            case .fenced(let target, let isWhole):
                guard groups[target] != nil else {
                    return note(
                        "incomplete",
                        "shard \(shard.id) is on its way from group \(shard.group) to group \(target), "
                            + "which is unknown: nobody serves it")
                }
                return add(
                    shard, .switching, from: shard.group, to: target, isTurned: !isWhole)
            }
        }
        for claim in claims where claim.group != shard.group {
            guard !leave(claim) else { continue }
            note(
                "changed",
                "group \(claim.group) keeps records of shard \(shard.id) with epoch "
                    + "\(claim.holding.shard.epoch), which group \(shard.group) has with epoch "
                    + "\(shard.epoch); they are not served")
        }
    }

    /// Takes what a group holds of a shard that has left it as a former copy; false when later owners of
    /// its keys are not known.
    @discardableResult
    private mutating func leave(_ claim: Claim) -> Bool {
        let held = claim.holding.shard
        let owners = shards.elements.filter {
            $0.table == held.table && $0.range.overlaps(held.range)
        }
        guard case .fenced = claim.holding.standing, !owners.isEmpty,
            owners.allSatisfy({ $0.epoch > held.epoch.next() && $0.group != claim.group })
        else { return false }
        former.append(
            FormerShard(
                operation: IDAllocators.take(&nextOperation), shard: held.id, table: held.table,
                range: held.range, group: claim.group, epoch: held.epoch.next().next(),
                since: max(1, clock), bytes: 0))
        note(
            "changed",
            "group \(claim.group) has a former copy of shard \(held.id), epoch \(held.epoch): it is "
                + "deleted once the present owners have proven that they have the keys")
        return true
    }

    private mutating func add(
        _ shard: Shard, _ step: OperationRecord.Step, from source: GroupID, to target: GroupID,
        isTurned: Bool
    ) {
        var work = ShardWork(
            table: shard.table, shard: shard.id, moving: shard.id, source: source, target: target,
            epoch: shard.epoch)
        work.isTurned = isTurned
        var record = OperationRecord(
            id: IDAllocators.take(&nextOperation), kind: .move, step: step, origin: "restore",
            reason: "was under way in the groups", group: source, old: .nowhere, new: .nowhere,
            work: work)
        record.startedAt = clock
        record.changedAt = clock
        operations.append(record)
        note(
            "changed",
            "shard \(shard.id) is on its way from group \(source) to group \(target): it goes on as "
                + "operation \(record.id)")
    }
}

extension SortedRecords {
    /// Appends to the list of `id`, in place: a table may have a million shards.
    fileprivate mutating func add<Element>(_ element: Element, to id: ID)
    where Record == [Element] {
        if !update(id, { $0.append(element) }) { set([element], for: id) }
    }
}
