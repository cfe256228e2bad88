// Changes of a table's shards, taken over as one: the shards tile before and after.
//
// Since they do, shards that are set cover exactly what shards that are replaced covered. So the
// ranges of the new ones show where to look, and no index by id is needed.

import KVBase

extension ShardIndex {
    /// Takes over `changes`; the last word about an id counts. False, with nothing changed, when
    /// the shards would not tile afterwards.
    mutating func apply(_ changes: [ShardChange]) -> Bool {
        let words = Self.lastWords(changes)
        let ids = words.map(\.id)
        var sets: [Shard] = []
        for case .set(let shard) in words { sets.append(shard) }
        sets.sort { compareBytes($0.range.start, $1.range.start) < 0 }

        var replaced: [ShardID] = []
        var runs: [ArraySlice<Shard>] = []
        var rest = sets[...]
        while !rest.isEmpty {
            guard let run = nextRun(&rest, ids, &replaced) else { return false }
            runs.append(run)
        }
        // What was named and not replaced must not be there: it would overlap, or leave a hole.
        replaced.sort()
        let others = Self.difference(ids, replaced).filter { $0 <= highestID }
        guard !contains(anyOf: others) else { return false }

        for run in runs { put(run) }
        if let last = ids.last { highestID = max(highestID, last) }
        return true
    }

    /// One change per id, in order of id.
    private static func lastWords(_ changes: [ShardChange]) -> [ShardChange] {
        // A stable sort, so that the last one of an id is the last word.
        var words: [ShardChange] = []
        words.reserveCapacity(changes.count)
        for change in changes.sorted(by: { $0.id < $1.id }) {
            if words.last?.id == change.id { words.removeLast() }
            words.append(change)
        }
        return words
    }

    /// Takes neighbouring shards off the beginning of `rest`; nil when they do not fit what is there.
    /// `ids` are those that may be replaced; those that will be are added to `replaced`.
    private func nextRun(
        _ rest: inout ArraySlice<Shard>, _ ids: [ShardID], _ replaced: inout [ShardID]
    ) -> ArraySlice<Shard>? {
        guard let head = rest.first else { return nil }
        var end: Bytes? = head.range.start
        var count = 0
        for shard in rest {
            guard let expected = end, shard.range.start == expected else { break }
            guard !shard.range.isEmpty else { return nil }
            end = shard.range.end
            count += 1
        }
        let shards = rest.prefix(count)
        rest = rest.dropFirst(count)
        if let next = rest.first {
            guard let end, compareBytes(next.range.start, end) > 0 else { return nil }
        }
        let first = head.range.start.withUnsafeBytes { position(of: $0) }
        guard start(of: first) == head.range.start else { return nil }
        var last = first
        while let start = start(of: last) {
            if let end {
                let order = compareBytes(start, end)
                if order == 0 { break }
                guard order < 0 else { return nil }
            }
            let id = self[last].shard
            guard Self.holds(id, ids) else { return nil }
            replaced.append(id)
            last = next(last)
        }
        // The old ones end at the end of the key space, the new ones must too.
        guard start(of: last) != nil || end == nil else { return nil }
        return shards
    }

    /// Puts neighbouring shards in the place of those whose ranges they cover.
    private mutating func put(_ run: ArraySlice<Shard>) {
        guard let head = run.first, let tail = run.last else { return }
        // Looked for again: the run before this one may have moved them to another block.
        let first = head.range.start.withUnsafeBytes { position(of: $0) }
        if run.count == 1, start(of: next(first)) == tail.range.end {
            // Moved, or of a new epoch.
            return relocate(first, to: Self.location(head))
        }
        let last =
            tail.range.end.map { end in end.withUnsafeBytes { position(of: $0) } }
            ?? Position(block: blocks.count, slot: 0)
        var block = ShardBlock(
            reservingEntries: run.count, keyBytes: run.reduce(0) { $0 + $1.range.start.count })
        for shard in run {
            shard.range.start.withUnsafeBytes { block.append(start: $0, Self.location(shard)) }
        }
        splice(first, last, block)
    }

    private static func location(_ shard: Shard) -> ShardLocation {
        ShardLocation(shard: shard.id, epoch: shard.epoch, group: shard.group)
    }

    // MARK: Ids

    private static func holds(_ id: ShardID, _ sorted: [ShardID]) -> Bool {
        var low = 0
        var high = sorted.count
        while low < high {
            let middle = (low + high) / 2
            if sorted[middle] < id { low = middle + 1 } else { high = middle }
        }
        return low < sorted.count && sorted[low] == id
    }

    /// Of two sorted lists: what only the first holds.
    private static func difference(_ all: [ShardID], _ some: [ShardID]) -> [ShardID] {
        var result: [ShardID] = []
        var place = 0
        for id in all {
            while place < some.count, some[place] < id { place += 1 }
            if place == some.count || some[place] != id { result.append(id) }
        }
        return result
    }

    /// Walks all shards: asked only about ids that were known once and are in no place where they
    /// should be.
    private func contains(anyOf ids: [ShardID]) -> Bool {
        guard !ids.isEmpty else { return false }
        return blocks.contains { block in
            block.entries.contains { Self.holds($0.location.shard, ids) }
        }
    }
}
