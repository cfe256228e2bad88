// A digest over records, alike wherever they are stored.

import KVBase
import ShardCore

/// Takes in keys, sequencers, tombstones and values, in order of keys. Two replicas that hold the
/// same records have the same digest, whatever their engines and stores.
public struct RecordDigest: Hashable, Sendable {
    public private(set) var value: UInt64 = 0
    /// How many were taken in.
    public private(set) var records: UInt64 = 0

    public init() {}

    public mutating func add(
        _ routedKey: UnsafeRawBufferPointer, _ sequencer: Sequencer, isTombstone: Bool,
        _ content: UnsafeRawBufferPointer
    ) {
        records += 1
        value = SeededRandom.mix(value ^ stableHash(routedKey))
        value = SeededRandom.mix(value &+ sequencer.time)
        value = SeededRandom.mix(
            value &+ UInt64(sequencer.counter) << 32 &+ UInt64(sequencer.node.rawValue))
        value = SeededRandom.mix(value ^ stableHash(content) &+ (isTombstone ? 1 : 0))
    }
}

extension OwnedShard {
    /// Whether a comparison of replicas takes this record in: every record, and the tombstones that
    /// the copy under way depends on. Those of an owned shard mean nothing, and each replica forgets
    /// them in its own time; so may those that a copy found or brought, which are not above its floor.
    public func isCompared(_ version: RecordVersion) -> Bool {
        guard version.isTombstone else { return true }
        if case .importing(_, let floor, _) = phase { return version.sequencer > floor }
        return false
    }
}
