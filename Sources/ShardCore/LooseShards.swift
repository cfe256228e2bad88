// Shards of a table that is not served yet, as they come: the pieces of a whole map bring shards
// before their table.

import KVBase

/// One change of a table's shards.
enum ShardChange {
    case set(Shard)
    case removed(ShardID)

    var id: ShardID {
        switch self {
        case .set(let shard): shard.id
        case .removed(let id): id
        }
    }
}

/// A log of shards set and removed, packed; the last word about an id counts.
struct LooseShards: Sendable {
    private struct Entry: Sendable {
        var location: ShardLocation
        /// Of the start key, which the end key follows.
        var keyOffset: Int
        var startCount: UInt32
        var endCount: UInt32
        var kind: Kind
    }

    private enum Kind: UInt8, Sendable {
        case removed
        case bounded
        /// The last one of its table.
        case open
    }

    private var entries: [Entry] = []
    private var keys: Bytes = []

    init() {}

    /// What `index` holds.
    init(_ index: ShardIndex) {
        index.forEachRange { location, range in set(location, range) }
    }

    mutating func take(_ change: ShardChange) {
        switch change {
        case .set(let shard): set(shard)
        case .removed(let id):
            entries.append(
                Entry(
                    location: ShardLocation(shard: id, epoch: .none, group: .none),
                    keyOffset: keys.count, startCount: 0, endCount: 0, kind: .removed))
        }
    }

    mutating func set(_ shard: Shard) {
        set(
            ShardLocation(shard: shard.id, epoch: shard.epoch, group: shard.group), shard.range)
    }

    private mutating func set(_ location: ShardLocation, _ range: KeyRange) {
        entries.append(
            Entry(
                location: location, keyOffset: keys.count,
                startCount: UInt32(range.start.count), endCount: UInt32(range.end?.count ?? 0),
                kind: range.end == nil ? .open : .bounded))
        keys.append(contentsOf: range.start)
        if let end = range.end { keys.append(contentsOf: end) }
    }

    /// Forgets what later entries replaced; false when no shard is left.
    mutating func compact() -> Bool {
        // Mostly ids come in rising order, each once.
        if zip(entries, entries.dropFirst()).contains(where: {
            $0.location.shard >= $1.location.shard
        }) {
            entries.sort { $0.location.shard < $1.location.shard }
            var kept: [Entry] = []
            kept.reserveCapacity(entries.count)
            for entry in entries {
                if kept.last?.location.shard == entry.location.shard { kept.removeLast() }
                kept.append(entry)
            }
            entries = kept
        }
        entries.removeAll { $0.kind == .removed }
        return !entries.isEmpty
    }

    /// The index of these shards, or nil when they do not tile the key space.
    mutating func tiling() -> ShardIndex? {
        guard compact(), let highest = entries.last?.location.shard else { return nil }
        return keys.withUnsafeBytes { keys -> ShardIndex? in
            func start(_ entry: Entry) -> UnsafeRawBufferPointer {
                UnsafeRawBufferPointer(
                    rebasing: keys[entry.keyOffset..<entry.keyOffset + Int(entry.startCount)])
            }
            func end(_ entry: Entry) -> UnsafeRawBufferPointer {
                let offset = entry.keyOffset + Int(entry.startCount)
                return UnsafeRawBufferPointer(rebasing: keys[offset..<offset + Int(entry.endCount)])
            }
            let ordered = entries.sorted { compareBytes(start($0), start($1)) < 0 }
            for (place, entry) in ordered.enumerated() {
                guard place > 0 else {
                    guard entry.startCount == 0 else { return nil }
                    continue
                }
                let before = ordered[place - 1]
                guard before.kind == .bounded, compareBytes(end(before), start(entry)) == 0,
                    compareBytes(start(before), start(entry)) < 0
                else { return nil }
            }
            guard ordered.last?.kind == .open else { return nil }

            var blocks: [ShardBlock] = []
            var first = 0
            while first < ordered.count {
                var last = first
                var bytes = 0
                while last < ordered.count, last - first < ShardBlock.entriesMax,
                    last == first
                        || bytes + Int(ordered[last].startCount) <= ShardBlock.keyBytesMax
                {
                    bytes += Int(ordered[last].startCount)
                    last += 1
                }
                var block = ShardBlock(reservingEntries: last - first, keyBytes: bytes)
                for entry in ordered[first..<last] {
                    block.append(start: start(entry), entry.location)
                }
                block.seal()
                blocks.append(block)
                first = last
            }
            return ShardIndex(blocks: blocks, highestID: highest)
        }
    }
}
