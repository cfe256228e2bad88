// The shards of one table, packed: found by binary search over their start keys.

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

/// All shards of one table as parallel arrays: 16 bytes per shard beyond its start key.
///
/// Invariant: starts rise; the first is empty; each shard ends where the next starts, the last at
/// the end of the key space. So the shards tile the table.
public struct ShardIndex: Sendable {
    private var startBytes: Bytes = []
    /// `startOffsets[i]..<startOffsets[i + 1]` of `startBytes` is the start key of shard `i`.
    private var startOffsets: [UInt32] = [0]
    private var locations: [ShardLocation] = []

    public init() {}

    /// Builds the index, or nil when the shards do not tile the key space without gap or overlap.
    public init?(tiling shards: [Shard]) {
        let ordered = shards.sorted { compareBytes($0.range.start, $1.range.start) < 0 }
        var expectedStart: Bytes? = []
        for shard in ordered {
            guard let start = expectedStart, shard.range.start == start, !shard.range.isEmpty
            else { return nil }
            startBytes.append(contentsOf: start)
            startOffsets.append(UInt32(startBytes.count))
            locations.append(
                ShardLocation(shard: shard.id, epoch: shard.epoch, group: shard.group))
            expectedStart = shard.range.end
        }
        guard expectedStart == nil, !locations.isEmpty else { return nil }
    }

    public var count: Int { locations.count }

    public subscript(position: Int) -> ShardLocation { locations[position] }

    /// The position of the shard that holds `routedKey`. Precondition: not empty.
    public func position(of routedKey: UnsafeRawBufferPointer) -> Int {
        startBytes.withUnsafeBytes { starts in
            var low = 0
            var high = locations.count
            // Invariant: start(low) <= routedKey < start(high), where start(count) is the end.
            while high - low > 1 {
                let middle = (low + high) / 2
                let start = UnsafeRawBufferPointer(
                    rebasing: starts[
                        Int(startOffsets[middle])..<Int(startOffsets[middle + 1])])
                if compareBytes(start, routedKey) <= 0 { low = middle } else { high = middle }
            }
            return low
        }
    }

    public func locate(_ routedKey: UnsafeRawBufferPointer) -> ShardLocation {
        locations[position(of: routedKey)]
    }

    /// The routed keys of the shard at `position`.
    public func range(at position: Int) -> KeyRange {
        KeyRange(
            start: start(at: position),
            end: position + 1 < locations.count ? start(at: position + 1) : nil)
    }

    private func start(at position: Int) -> Bytes {
        Bytes(startBytes[Int(startOffsets[position])..<Int(startOffsets[position + 1])])
    }
}
