// A run of neighbouring shards, packed: the leaf of a table's shard index.

import KVBase

/// Where a routed key lives.
public struct ShardLocation: Hashable, Sendable {
    public var shard: ShardID
    public var epoch: Epoch
    public var group: GroupID

    public init(shard: ShardID, epoch: Epoch, group: GroupID) {
        self.shard = shard
        self.epoch = epoch
        self.group = group
    }
}

/// Neighbouring shards in order: 16 bytes each, the bytes of their start keys, and eight bytes of
/// every eighth key side by side, in allocations of exactly that size.
///
/// Invariants: the start keys rise strictly. A block that is searched is sealed, and is replaced
/// whole when a start key changes; a location is changed in place.
struct ShardBlock: Sendable {
    struct Entry: Sendable {
        /// Where the start key of this shard ends in `keys`; it begins where the one before ends.
        var keyEnd: UInt32
        var location: ShardLocation
    }

    /// A block is cut when it grows above either; one with a single shard may hold any key.
    static let entriesMax = 128
    static let keyBytesMax = 16 << 10
    /// Blocks below this are united with a neighbour.
    static let entriesMin = 32
    private static let entriesPerWord = 8

    private(set) var entries: [Entry] = []
    private(set) var keys: Bytes = []
    /// Of every eighth start key the `KeyWord` behind the common bytes.
    private var words: [UInt64] = []
    /// Bytes that all start keys have in common; so `keys` begins with them. An empty key, which
    /// the first shard of a table has, does not count.
    private var commonBytes = 0

    init(reservingEntries count: Int, keyBytes: Int) {
        entries.reserveCapacity(count)
        keys.reserveCapacity(keyBytes)
    }

    /// Makes the block ready to be searched. Nothing is appended afterwards.
    mutating func seal() {
        let first = keyRange(keyRange(0).isEmpty ? min(1, count - 1) : 0)
        commonBytes = zip(keys[first], keys[keyRange(count - 1)]).prefix { $0 == $1 }.count
        words = keys.withUnsafeBytes { keys in
            stride(from: 0, to: count, by: Self.entriesPerWord).map { slot in
                KeyWord.of(UnsafeRawBufferPointer(rebasing: keys[keyRange(slot)]), at: commonBytes)
            }
        }
    }

    var count: Int { entries.count }
    var memoryBytes: Int {
        entries.capacity * MemoryLayout<Entry>.stride + keys.capacity
            + words.capacity * MemoryLayout<UInt64>.stride + 3 * arrayHeaderBytes
    }

    mutating func append(start: UnsafeRawBufferPointer, _ location: ShardLocation) {
        keys.append(contentsOf: start)
        entries.append(Entry(keyEnd: UInt32(keys.count), location: location))
    }

    mutating func append(_ other: ShardBlock, _ slots: Range<Int>) {
        other.keys.withUnsafeBytes { bytes in
            for slot in slots {
                append(
                    start: UnsafeRawBufferPointer(rebasing: bytes[other.keyRange(slot)]),
                    other.entries[slot].location)
            }
        }
    }

    mutating func relocate(_ slot: Int, to location: ShardLocation) {
        entries[slot].location = location
    }

    func keyRange(_ slot: Int) -> Range<Int> {
        (slot == 0 ? 0 : Int(entries[slot - 1].keyEnd))..<Int(entries[slot].keyEnd)
    }

    func keyBytes(of slots: Range<Int>) -> Int {
        slots.isEmpty
            ? 0 : keyRange(slots.upperBound - 1).upperBound - keyRange(slots.lowerBound).lowerBound
    }

    func start(_ slot: Int) -> Bytes { Bytes(keys[keyRange(slot)]) }

    /// `compareBytes` of the start key at `slot` with `key`.
    @inline(__always)
    func compareStart(_ slot: Int, _ key: UnsafeRawBufferPointer) -> Int {
        keys.withUnsafeBytes {
            compareBytes(UnsafeRawBufferPointer(rebasing: $0[keyRange(slot)]), key)
        }
    }

    /// The last slot whose start key is at most `key`; 0 when none is.
    func slot(of key: UnsafeRawBufferPointer) -> Int {
        keys.withUnsafeBytes { bytes in
            if commonBytes > 0 {
                let order = compareBytes(
                    UnsafeRawBufferPointer(rebasing: key.prefix(commonBytes)),
                    UnsafeRawBufferPointer(rebasing: bytes[..<commonBytes]))
                if order != 0 { return order < 0 ? 0 : count - 1 }
            }
            let word = KeyWord.of(key, at: commonBytes)
            return entries.withUnsafeBufferPointer { entries in
                func isAtMost(_ slot: Int) -> Bool {
                    let start = slot == 0 ? 0 : Int(entries[slot - 1].keyEnd)
                    let end = Int(entries[slot].keyEnd)
                    return compareBytes(UnsafeRawBufferPointer(rebasing: bytes[start..<end]), key)
                        <= 0
                }
                var low = 0
                var high = words.count
                words.withUnsafeBufferPointer { words in
                    while high - low > 1 {
                        let middle = (low + high) / 2
                        let isLow =
                            words[middle] == word
                            ? isAtMost(middle * Self.entriesPerWord) : words[middle] < word
                        if isLow { low = middle } else { high = middle }
                    }
                }
                low *= Self.entriesPerWord
                high = min(low + Self.entriesPerWord, entries.count)
                while high - low > 1 {
                    let middle = (low + high) / 2
                    if isAtMost(middle) { low = middle } else { high = middle }
                }
                return low
            }
        }
    }

    /// The same shards in sealed blocks of permitted size and exact allocation.
    func cut() -> [ShardBlock] {
        let pieces = min(
            max(
                (count + Self.entriesMax - 1) / Self.entriesMax,
                (keys.count + Self.keyBytesMax - 1) / Self.keyBytesMax),
            count)
        if count == 0 { return [] }
        if pieces == 1 {
            var block = self
            block.seal()
            return [block]
        }
        return (0..<pieces).map { piece in
            let slots = count * piece / pieces..<count * (piece + 1) / pieces
            var block = ShardBlock(reservingEntries: slots.count, keyBytes: keyBytes(of: slots))
            block.append(self, slots)
            block.seal()
            return block
        }
    }
}

/// Eight bytes of a key as a number that is ordered as they are.
enum KeyWord {
    /// The bytes from `offset` on, zeros behind the end of the key. Of two keys that are alike before
    /// `offset`, the one with the lower word is the lower one; equal words say nothing.
    @inline(__always)
    static func of(_ key: UnsafeRawBufferPointer, at offset: Int) -> UInt64 {
        if key.count >= offset + 8 {
            return UInt64(bigEndian: key.loadUnaligned(fromByteOffset: offset, as: UInt64.self))
        }
        var word: UInt64 = 0
        var place = offset
        while place < key.count {
            word |= UInt64(key[place]) << UInt64(56 - 8 * (place - offset))
            place += 1
        }
        return word
    }
}

/// What an array's buffer holds besides its elements.
let arrayHeaderBytes = 32
