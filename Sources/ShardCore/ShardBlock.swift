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

/// Neighbouring shards in order: 16 bytes each and the bytes of their start keys, in two
/// allocations of exactly that size.
///
/// Invariants: not empty; the start keys rise strictly. Blocks are replaced whole when a start key
/// changes; a location is changed in place.
struct ShardBlock: Sendable {
    struct Entry: Sendable {
        /// Where the start key of this shard ends in `keys`; it begins where the one before ends.
        var keyEnd: UInt32
        var location: ShardLocation
    }

    /// A block is cut when it grows above either; one with a single shard may hold any key.
    static let entriesMax = 512
    static let keyBytesMax = 64 << 10
    /// Blocks below this are united with a neighbour.
    static let entriesMin = 128

    private(set) var entries: [Entry] = []
    private(set) var keys: Bytes = []

    init(reservingEntries count: Int, keyBytes: Int) {
        entries.reserveCapacity(count)
        keys.reserveCapacity(keyBytes)
    }

    var count: Int { entries.count }
    var memoryBytes: Int {
        entries.capacity * MemoryLayout<Entry>.stride + keys.capacity + 2 * arrayHeaderBytes
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
        entries.withUnsafeBufferPointer { entries in
            keys.withUnsafeBytes { bytes in
                var low = 0
                var high = entries.count
                while high - low > 1 {
                    let middle = (low + high) / 2
                    let start = UnsafeRawBufferPointer(
                        rebasing: bytes[
                            Int(entries[middle - 1].keyEnd)..<Int(entries[middle].keyEnd)])
                    if compareBytes(start, key) <= 0 { low = middle } else { high = middle }
                }
                return low
            }
        }
    }

    /// The same shards in blocks of permitted size and exact allocation.
    func cut() -> [ShardBlock] {
        let pieces = min(
            max(
                (count + Self.entriesMax - 1) / Self.entriesMax,
                (keys.count + Self.keyBytesMax - 1) / Self.keyBytesMax),
            count)
        if pieces <= 1 { return count == 0 ? [] : [self] }
        return (0..<pieces).map { piece in
            let slots = count * piece / pieces..<count * (piece + 1) / pieces
            var block = ShardBlock(reservingEntries: slots.count, keyBytes: keyBytes(of: slots))
            block.append(self, slots)
            return block
        }
    }
}

/// What an array's buffer holds besides its elements.
let arrayHeaderBytes = 32
