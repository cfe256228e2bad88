// The shards of a controller that stands by, decoded before it comes to act: of everything in the metadata
// they are what takes time to read.

import KVBase
import ShardCore

/// All shards as of one revision of the metadata store. A copy shares what did not change since.
public struct StandbyShards: Sendable {
    /// The records that it is made of.
    public static var prefix: Bytes { StoreKey.shardPrefix }

    public private(set) var revision: Revision
    private(set) var shards = SortedRecords<ShardID, Shard>()
    /// For look-up only.
    private(set) var counts: [GroupID: Int] = [:]

    /// Before its records are taken, each by `take`.
    public init(revision: Revision) { self.revision = revision }

    /// A record of the state at `revision`.
    public mutating func take(_ record: MetadataRecord) throws(DatabaseError) {
        try set(record.value)
    }

    /// The changes of the next revision.
    public mutating func apply(_ event: MetadataEvent) throws(DatabaseError) {
        guard event.revision > revision else { return }
        revision = event.revision
        for change in event.changes where change.key.starts(with: StoreKey.shardPrefix) {
            switch change {
            case .put(_, let value, _): try set(value)
            case .delete(let key):
                if let old = shards.remove(ShardID(StoreKey.number(of: key))) {
                    counts[old.group, default: 0] -= 1
                }
            }
        }
    }

    private mutating func set(_ value: Bytes) throws(DatabaseError) {
        let shard = try ByteReader.decode(value) { (reader) throws(DatabaseError) in
            try Shard(from: &reader)
        }
        if let old = shards[shard.id] { counts[old.group, default: 0] -= 1 }
        shards.set(shard, for: shard.id)
        counts[shard.group, default: 0] += 1
    }
}
