// Plans for splits, moves and merges: what would be done and on which grounds, or a refusal that says
// what would work instead.

import KVBase
import ShardCore

extension Controller {
    // MARK: Split

    /// What a split would do.
    public func plan(split: SplitRequest, now: Instant) throws(DatabaseError) -> ShardPlan {
        let table = try activeTable(named: split.table)
        let shard = try shardToSplit(split, table)
        try checkFree(shard)
        let (cut, grounds) = try cut(of: shard, table, at: split.at)
        let size = sizes(of: shard)
        let middle = shardReports[shard.id]?.middle
        // The half with less to copy; of equal or unknown ones the upper.
        let movesLower = middle.map { compareBytes(cut, $0) < 0 } ?? false
        var plan = ShardPlan(
            kind: .split,
            work: ShardWork(
                table: table.id, shard: shard.id, cut: cut, source: shard.group,
                epoch: shard.epoch),
            movesUpper: false, table: table, shard: shard, formsOn: [], bytes: 0, records: 0,
            operations: 0, groupsBefore: [], groupsAfter: [], nodesBefore: [], nodesAfter: [],
            skipped: [],
            grounds: grounds)
        if let target = split.to {
            let load = shardLoads[shard.id]?.operations ?? 0
            func moving(_ below: UInt64) -> UInt64 {
                movesLower ? below : KeySpread.whole - below
            }
            let part = size?.bytes == 0 ? 0 : bytesBelow(cut, in: shard.id).map(moving)
            let loadPart = load == 0 ? 0 : requestsBelow(cut, in: shard.id).map(moving)
            plan.bytes = part.flatMap { part in size?.bytes.share(part) }
            plan.records = part.flatMap { part in size?.records.share(part) }
            plan.operations = loadPart.map { load.share($0) }
            do throws(DatabaseError) {
                // Room is needed for all of what may move.
                let choice = try choose(
                    target, for: table, from: shard.group, bytes: plan.bytes ?? size?.bytes ?? 0,
                    operations: plan.operations ?? load / 2, isForRelief: true, now: now)
                plan.work.target = choice.group
                plan.formsOn = choice.formsOn
                plan.skipped = choice.skipped
                plan.movesUpper = !movesLower
                plan.work.moving = movesLower ? shard.id : .none
                plan.work.bytes = plan.bytes ?? 0
            } catch {
                // Asked for by name, it is refused; left to the controller, the halves stay together.
                guard target == .any else { throw error }
                (plan.bytes, plan.records, plan.operations) = (0, 0, 0)
                plan.grounds += "; both halves stay in group \(shard.group): \(error.message)"
            }
        }
        forecast(&plan)
        return plan
    }

    private func shardToSplit(
        _ split: SplitRequest, _ table: Table
    ) throws(DatabaseError) -> Shard {
        if let id = split.shard {
            let shard = try find(shard: id)
            guard shard.table == table.id else {
                throw DatabaseError(
                    .refused,
                    "shard \(id) belongs to table \(tables[shard.table]?.name ?? "?"), not to "
                        + "\(table.name); the shards of \(table.name): \(list(shardsOf: table))")
            }
            return shard
        }
        let own = shards.elements.filter { $0.table == table.id }
        if let at = split.at {
            guard let shard = own.first(where: { $0.range.contains(at) }) else {
                throw DatabaseError(.refused, "no shard of \(table.name) holds that key")
            }
            return shard
        }
        var best: (load: UInt64, bytes: UInt64, shard: Shard)?
        for shard in own {
            let load = shardLoads[shard.id]?.operations ?? 0
            let bytes = shardReports[shard.id]?.bytes ?? 0
            let counted = load >= settings.splitLoadMin ? load : 0
            if best.map({ (counted, bytes) > ($0.load, $0.bytes) }) ?? true {
                best = (counted, bytes, shard)
            }
        }
        guard let best else {
            throw DatabaseError(.refused, "table \(table.name) has no shard")
        }
        return best.shard
    }

    /// Where to cut, and why there.
    private func cut(
        of shard: Shard, _ table: Table, at wanted: Bytes?
    ) throws(DatabaseError) -> (Bytes, grounds: String) {
        let isHash = table.partitioning != .range
        if let wanted {
            let text = keyText(wanted, of: table.id)
            if isHash, wanted.count != 2 {
                throw DatabaseError(
                    .refused,
                    "table \(table.name) is a HASH table and is cut between virtual ranges only; "
                        + "shard \(shard.id) has \(rangeText(shard, table))"
                        + (middleVirtualRange(of: shard, table).map {
                            ", cut it with: \(splitAdvice($0, of: table.id))"
                        } ?? "; move it as it is with: kvctl move \(shard.id)"))
            }
            guard shard.range.contains(wanted) else {
                throw DatabaseError(
                    .refused,
                    "the key \(text) is not inside shard \(shard.id), which has "
                        + rangeText(shard, table))
            }
            guard wanted != shard.range.start else {
                throw DatabaseError(
                    .refused,
                    wanted.isEmpty
                        ? "a table begins with the empty key: nothing lies below it; give a key "
                            + "inside shard \(shard.id), or none"
                        : "\(text) is a boundary already: shard \(shard.id) begins there; give a key "
                            + "inside it, or none")
            }
            return (
                wanted, "the operator chose the key \(text); " + whatLies(above: wanted, in: shard)
            )
        }
        let load = shardLoads[shard.id]
        if let load, load.operations >= settings.splitLoadMin, let median = load.median,
            let key = usable(median, shard, isHash)
        {
            return (
                key,
                "the key \(keyText(key, of: table.id)) halves \(load.operations) requests/s"
            )
        }
        if let report = shardReports[shard.id], let middle = report.middle,
            let key = usable(middle, shard, isHash)
        {
            return (key, "the key \(keyText(key, of: table.id)) halves \(quantity(report.bytes))")
        }
        if isHash {
            guard let key = middleVirtualRange(of: shard, table) else {
                throw DatabaseError(
                    .refused,
                    "shard \(shard.id) is one virtual range of HASH table \(table.name) and cannot "
                        + "be cut; move it as it is with: kvctl move \(shard.id)")
            }
            return (key, "the virtual range \(keyText(key, of: table.id)) is the middle one")
        }
        if let load, load.hottestPercent >= 50, let hottest = load.hottest {
            throw DatabaseError(
                .refused,
                "the key \(keyText(hottest, of: table.id)) alone takes \(load.hottestPercent) % of the "
                    + "requests to shard \(shard.id); no cut spreads that; give a key with: kvctl split "
                    + "\(table.name) --at KEY")
        }
        throw DatabaseError(
            .refused,
            "no key is known that halves shard \(shard.id): it has too few requests and records; give "
                + "one with: kvctl split \(table.name) --at KEY")
    }

    /// What a cut that was asked for leaves above it.
    private func whatLies(above cut: Bytes, in shard: Shard) -> String {
        func percent(_ below: UInt64?, of what: String) -> String? {
            below.map { "about \((KeySpread.whole - $0) * 100 / KeySpread.whole) % of the \(what)" }
        }
        let known = [
            percent(bytesBelow(cut, in: shard.id), of: "bytes"),
            percent(requestsBelow(cut, in: shard.id), of: "requests"),
        ].compactMap { $0 }
        return known.isEmpty
            ? "how much lies above it is not known"
            : known.joined(separator: " and ") + " lie above it"
    }

    /// The key as a cut of the shard; for a HASH table the boundary of virtual ranges next to it.
    private func usable(_ key: Bytes, _ shard: Shard, _ isHash: Bool) -> Bytes? {
        func isInside(_ key: Bytes) -> Bool {
            shard.range.contains(key) && key != shard.range.start
        }
        guard isHash else { return isInside(key) ? key : nil }
        guard key.count >= 2 else { return nil }
        let range = UInt16(key[0]) << 8 | UInt16(key[1])
        for candidate in [range, range &+ 1] {
            let boundary = [UInt8(candidate >> 8), UInt8(candidate & 0xFF)]
            if isInside(boundary) { return boundary }
        }
        return nil
    }

    private func middleVirtualRange(of shard: Shard, _ table: Table) -> Bytes? {
        guard case .hash(let count) = table.partitioning else { return nil }
        let bounds = virtualRanges(of: shard, count)
        guard bounds.count > 1 else { return nil }
        let middle = UInt16((bounds.lowerBound + bounds.upperBound) / 2)
        return [UInt8(middle >> 8), UInt8(middle & 0xFF)]
    }

    private func virtualRanges(of shard: Shard, _ count: UInt16) -> Range<Int> {
        func number(_ key: Bytes?, _ missing: Int) -> Int {
            guard let key, key.count >= 2 else { return missing }
            return Int(key[0]) << 8 | Int(key[1])
        }
        let first = number(shard.range.start, 0)
        return first..<max(first, number(shard.range.end, Int(count)))
    }

    // MARK: Move

    /// What a move would do.
    public func plan(
        moveOf id: ShardID, to target: MoveTarget, now: Instant
    ) throws(DatabaseError) -> ShardPlan {
        let shard = try find(shard: id)
        let table = try activeTable(of: shard)
        try checkFree(shard)
        let size = sizes(of: shard)
        let load = shardLoads[id]?.operations ?? 0
        let choice = try choose(
            target, for: table, from: shard.group, bytes: size?.bytes ?? 0, operations: load,
            now: now)
        var plan = ShardPlan(
            kind: .move,
            work: ShardWork(
                table: table.id, shard: id, moving: id, source: shard.group, target: choice.group,
                bytes: size?.bytes ?? 0, epoch: shard.epoch),
            movesUpper: false, table: table, shard: shard, formsOn: choice.formsOn,
            bytes: size?.bytes, records: size?.records, operations: load, groupsBefore: [],
            groupsAfter: [],
            nodesBefore: [], nodesAfter: [], skipped: choice.skipped, grounds: choice.grounds)
        forecast(&plan)
        return plan
    }

    // MARK: Merge

    /// What a merge of the shard with its right neighbour would do.
    public func plan(mergeOf id: ShardID, now: Instant) throws(DatabaseError) -> ShardPlan {
        let shard = try find(shard: id)
        let table = try activeTable(of: shard)
        try checkFree(shard)
        guard let end = shard.range.end,
            let right = shards.elements.first(where: {
                $0.table == table.id && $0.range.start == end
            })
        else {
            let left = shards.elements.first {
                $0.table == table.id && $0.range.end == shard.range.start
            }
            throw DatabaseError(
                .refused,
                "shard \(id) is the last one of table \(table.name) and has no right neighbour"
                    + (left.map { "; merge it from the left with: kvctl merge \($0.id)" }
                        ?? ": it is the only one, there is nothing to merge"))
        }
        try checkFree(right)
        let moves = right.group != shard.group
        let size = moves ? sizes(of: right) : (bytes: 0, records: 0)
        let load = moves ? shardLoads[right.id]?.operations ?? 0 : 0
        var skipped: [SkippedGroup] = []
        if moves {
            skipped = try choose(
                .group(shard.group), for: table, from: right.group, bytes: size?.bytes ?? 0,
                operations: load, now: now
            ).skipped
        }
        var plan = ShardPlan(
            kind: .merge,
            work: ShardWork(
                table: table.id, shard: id, neighbour: right.id, moving: moves ? right.id : .none,
                source: right.group, target: moves ? shard.group : .none, bytes: size?.bytes ?? 0,
                epoch: shard.epoch, neighbourEpoch: right.epoch),
            movesUpper: false, table: table, shard: shard, neighbour: right, formsOn: [],
            bytes: size?.bytes, records: size?.records, operations: load, groupsBefore: [],
            groupsAfter: [],
            nodesBefore: [], nodesAfter: [], skipped: skipped,
            grounds: "shards \(id) and \(right.id) meet at "
                + keyText(end, of: table.id))
        forecast(&plan)
        return plan
    }

    // MARK: What there is

    private func activeTable(named name: String) throws(DatabaseError) -> Table {
        guard let id = names[name] else {
            let known = tables.elements.filter { $0.state == .active }.prefix(20).map(\.name)
            throw DatabaseError(
                .tableNotFound,
                "there is no table named \(name)"
                    + (known.isEmpty
                        ? "; there is none at all" : "; there are \(known.joined(separator: ", "))")
            )
        }
        guard let table = tables[id], procedures[id] == nil, table.state == .active else {
            throw DatabaseError(.refused, "table \(name) is still being created; repeat")
        }
        return table
    }

    private func activeTable(of shard: Shard) throws(DatabaseError) -> Table {
        guard let table = tables[shard.table] else {
            throw DatabaseError(.refused, "shard \(shard.id) belongs to no table")
        }
        guard procedures[table.id] == nil, table.state == .active else {
            throw DatabaseError(
                .refused,
                "table \(table.name) is being "
                    + (procedures[table.id]?.isDrop == true ? "dropped" : "created; repeat"))
        }
        return table
    }

    func find(shard id: ShardID) throws(DatabaseError) -> Shard {
        guard let shard = shards[id] else {
            throw DatabaseError(
                .refused, "there is no shard \(id); see: kvctl shards")
        }
        return shard
    }

    private func checkFree(_ shard: Shard) throws(DatabaseError) {
        if let running = operation(onShard: shard.id) {
            throw isWorkedOn("shard \(shard.id)", running)
        }
        if let group = groups[shard.group] { try checkMajority(of: group) }
    }

    private func list(shardsOf table: Table) -> String {
        let own = shards.elements.filter { $0.table == table.id }
        return own.prefix(20).map { "\($0.id)" }.joined(separator: ", ")
            + (own.count > 20 ? " and \(own.count - 20) more" : "")
    }

    private func rangeText(_ shard: Shard, _ table: Table) -> String {
        if case .hash(let count) = table.partitioning {
            let bounds = virtualRanges(of: shard, count)
            return bounds.count == 1
                ? "the one virtual range \(bounds.lowerBound)"
                : "the virtual ranges \(bounds.lowerBound) to \(bounds.upperBound - 1)"
        }
        let start = keyText(shard.range.start, of: table.id)
        let from = start.isEmpty ? "the keys" : "the keys from \(start)"
        guard let end = shard.range.end else {
            return start.isEmpty ? "all keys of \(table.name)" : from + " on"
        }
        return from + " up to \(keyText(end, of: table.id))"
    }

    // MARK: Words

    func describe(_ plan: ShardPlan) -> String {
        let work = plan.work
        let table = plan.table.name
        let target =
            plan.formsOn.isEmpty
            ? "group \(work.target)"
            : "a new group on " + plan.formsOn.map { name($0.node) }.joined(separator: ", ")
        let copied =
            plan.bytes.map { "\(quantity($0)) to copy" } ?? "how much to copy is not known"
        var text: String
        switch plan.kind {
        case .split:
            text =
                "splits shard \(work.shard) of table \(table) at "
                + keyText(work.cut ?? [], of: work.table)
            if plan.moves {
                text +=
                    " and moves the \(plan.movesUpper ? "upper" : "lower") half from group "
                    + "\(work.source) to \(target), \(copied)"
            }
        case .move:
            text =
                "moves shard \(work.shard) of table \(table) from group \(work.source) to \(target), "
                + copied
        default:
            text =
                "merges shard \(work.shard) of table \(table) with its right neighbour "
                + "\(work.neighbour)"
            if plan.moves {
                text += ", which moves from group \(work.source) to \(target) first, \(copied)"
            }
        }
        if !plan.grounds.isEmpty { text += "; \(plan.grounds)" }
        if !plan.skipped.isEmpty {
            let skipped = plan.skipped.prefix(8).map { "group \($0.group): \($0.reason)" }
            text += "; skipped " + skipped.joined(separator: ", ")
        }
        return text
    }
}
