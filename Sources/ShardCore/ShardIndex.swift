// The shards of one table, packed in blocks: found by binary search over their start keys.

import KVBase

/// All shards of one table: 16 bytes per shard beyond its start key, and two for the blocks.
///
/// Look-up goes over the blocks by eight bytes of their first keys, kept side by side, then over
/// one block: most of its steps are within few cache lines. A split, a merge or a move touches a block or two.
///
/// Invariant: starts rise; the first is empty; each shard ends where the next starts, the last at
/// the end of the key space. So the shards tile the table.
public struct ShardIndex: Sendable {
    /// The place of a shard; valid until the index changes.
    struct Position: Hashable, Sendable {
        var block: Int
        var slot: Int
    }

    private(set) var blocks: [ShardBlock] = []
    /// Bytes that the first keys of all blocks but the first have in common: keys of one table
    /// often begin alike.
    private var commonBytes = 0
    /// Per block, the `KeyWord` of its first key behind the common bytes.
    private var fences: [UInt64] = []
    public private(set) var count = 0
    /// Above every id that was ever in this index, so that a new shard need not be looked for.
    var highestID = ShardID.none

    init() {}

    /// Builds the index, or nil when the shards do not tile the key space without gap or overlap.
    public init?(tiling shards: [Shard]) {
        var loose = LooseShards()
        for shard in shards { loose.set(shard) }
        // Twice the same id is an overlap, not a replacement.
        guard let index = loose.tiling(), index.count == shards.count else { return nil }
        self = index
    }

    /// Takes over blocks that tile together.
    init(blocks: [ShardBlock], highestID: ShardID) {
        self.highestID = highestID
        replace(0..<0, with: blocks, countChange: blocks.reduce(0) { $0 + $1.count })
    }

    // MARK: Look-up

    /// The shard that holds `routedKey`. Precondition: not empty.
    public func locate(_ routedKey: UnsafeRawBufferPointer) -> ShardLocation {
        let block = blockIndex(of: routedKey)
        return blocks[block].entries[blocks[block].slot(of: routedKey)].location
    }

    /// The shard that holds `routedKey`, and the routed key at which it ends; nil: the last one.
    public func locateWithEnd(_ routedKey: UnsafeRawBufferPointer) -> (ShardLocation, end: Bytes?) {
        let position = position(of: routedKey)
        return (self[position], start(of: next(position)))
    }

    /// Every shard in order of key.
    public func forEachLocation(_ body: (ShardLocation) -> Void) {
        for block in blocks {
            for entry in block.entries { body(entry.location) }
        }
    }

    /// Every shard with its routed keys, in order of key.
    public func forEachRange(_ body: (ShardLocation, KeyRange) -> Void) {
        var position = Position(block: 0, slot: 0)
        while position.block < blocks.count {
            let next = next(position)
            body(
                self[position],
                KeyRange(start: start(of: position) ?? [], end: start(of: next)))
            position = next
        }
    }

    /// Allocated memory in bytes, and how much of it are the start keys.
    public var memory: (bytes: Int, keyBytes: Int) {
        var bytes =
            blocks.capacity * MemoryLayout<ShardBlock>.stride
            + fences.capacity * MemoryLayout<UInt64>.stride + 2 * arrayHeaderBytes
        var keyBytes = 0
        for block in blocks {
            bytes += block.memoryBytes
            keyBytes += block.keys.count
        }
        return (bytes, keyBytes)
    }

    // MARK: Positions

    subscript(position: Position) -> ShardLocation {
        blocks[position.block].entries[position.slot].location
    }

    func position(of routedKey: UnsafeRawBufferPointer) -> Position {
        let block = blockIndex(of: routedKey)
        return Position(block: block, slot: blocks[block].slot(of: routedKey))
    }

    /// The place behind `position`; the end is slot 0 of the block behind the last.
    func next(_ position: Position) -> Position {
        position.slot + 1 < blocks[position.block].count
            ? Position(block: position.block, slot: position.slot + 1)
            : Position(block: position.block + 1, slot: 0)
    }

    /// Nil at the end.
    func start(of position: Position) -> Bytes? {
        position.block < blocks.count ? blocks[position.block].start(position.slot) : nil
    }

    // MARK: Changing

    mutating func relocate(_ position: Position, to location: ShardLocation) {
        blocks[position.block].relocate(position.slot, to: location)
    }

    /// Puts the shards of `new` in the place of those from `first` to before `last`, at least one.
    mutating func splice(_ first: Position, _ last: Position, _ new: ShardBlock) {
        let tail = last.slot == 0 ? 0..<0 : last.slot..<blocks[last.block].count
        // Whole blocks are rebuilt.
        var range = first.block..<(last.slot == 0 ? last.block : last.block + 1)
        let kept = first.slot + new.count + tail.count
        let countChange = kept - blocks[range].reduce(0) { $0 + $1.count }
        var parts: [(block: ShardBlock, slots: Range<Int>)] = [
            (blocks[first.block], 0..<first.slot), (new, 0..<new.count),
        ]
        if !tail.isEmpty { parts.append((blocks[last.block], tail)) }
        // Little is left: it moves in with a neighbour.
        if kept < ShardBlock.entriesMin {
            if let left = neighbour(range.lowerBound - 1, room: kept) {
                parts.insert((left, 0..<left.count), at: 0)
                range = range.lowerBound - 1..<range.upperBound
            } else if let right = neighbour(range.upperBound, room: kept) {
                parts.append((right, 0..<right.count))
                range = range.lowerBound..<range.upperBound + 1
            }
        }
        var merged = ShardBlock(
            reservingEntries: parts.reduce(0) { $0 + $1.slots.count },
            keyBytes: parts.reduce(0) { $0 + $1.block.keyBytes(of: $1.slots) })
        for (block, slots) in parts { merged.append(block, slots) }
        replace(range, with: merged.cut(), countChange: countChange)
    }

    /// The block at `place`, when that many more shards fit in it.
    private func neighbour(_ place: Int, room: Int) -> ShardBlock? {
        guard blocks.indices.contains(place),
            blocks[place].count + room <= ShardBlock.entriesMax
        else { return nil }
        return blocks[place]
    }

    private mutating func replace(
        _ range: Range<Int>, with new: [ShardBlock], countChange: Int
    ) {
        blocks.replaceSubrange(range, with: new)
        count += countChange
        let common = commonPrefix()
        if common == commonBytes {
            fences.replaceSubrange(range, with: new.map { Self.word(of: $0, at: common) })
        } else {
            commonBytes = common
            fences = blocks.map { Self.word(of: $0, at: common) }
        }
    }

    // MARK: Blocks

    private func commonPrefix() -> Int {
        guard blocks.count > 2, let last = blocks.last else { return 0 }
        // The first key of the first block is empty. What second and last have in common, all
        // between them have.
        let a = blocks[1].keys[blocks[1].keyRange(0)]
        let b = last.keys[last.keyRange(0)]
        return zip(a, b).prefix { $0 == $1 }.count
    }

    private static func word(of block: ShardBlock, at offset: Int) -> UInt64 {
        block.keys.withUnsafeBytes {
            KeyWord.of(UnsafeRawBufferPointer(rebasing: $0[block.keyRange(0)]), at: offset)
        }
    }

    /// The last block whose first key is at most `key`. Precondition: not empty.
    private func blockIndex(of key: UnsafeRawBufferPointer) -> Int {
        var low = 1
        var high = blocks.count
        guard high > 1 else { return 0 }
        if commonBytes > 0 {
            let order = blocks[1].keys.withUnsafeBytes { first in
                compareBytes(
                    UnsafeRawBufferPointer(rebasing: key.prefix(commonBytes)),
                    UnsafeRawBufferPointer(rebasing: first[..<commonBytes]))
            }
            if order != 0 { return order < 0 ? 0 : blocks.count - 1 }
        }
        // From here on the key has the common bytes, so the rest decides.
        let word = KeyWord.of(key, at: commonBytes)
        fences.withUnsafeBufferPointer { fences in
            while low < high {
                let middle = (low + high) / 2
                let fence = fences[middle]
                let isAtMost =
                    fence == word ? blocks[middle].compareStart(0, key) <= 0 : fence < word
                if isAtMost { low = middle + 1 } else { high = middle }
            }
        }
        return low - 1
    }
}
