// What nodes tell of the load on the groups they lead: the grounds for splits and moves.

import KVBase

/// Requests per second of one group, as its leader counted them over the last seconds.
public struct GroupLoad: Hashable, Sendable {
    public var group: GroupID
    public var reads: UInt32
    public var writes: UInt32

    public init(group: GroupID, reads: UInt32, writes: UInt32) {
        self.group = group
        self.reads = reads
        self.writes = writes
    }

    public var operations: UInt64 { UInt64(reads) + UInt64(writes) }
}

/// Requests per second of one shard, and where in its keys they fall.
public struct ShardLoad: Hashable, Sendable {
    /// Longer keys are not sampled, so that a report stays small.
    public static let sampledKeyBytesMax = 1_024

    public var shard: ShardID
    public var epoch: Epoch
    public var reads: UInt32
    public var writes: UInt32
    /// The routed key that halves the sampled load: as many requests below it as from it on. Inside
    /// the shard and not its start; nil when there are too few samples or no such key.
    public var median: Bytes?
    /// The routed key with the largest share of the samples, when one has a tenth or more.
    public var hottest: Bytes?
    /// The share of `hottest`, in percent.
    public var hottestPercent: UInt8
    /// Of the requests, by the samples.
    public var spread: KeySpread

    public init(
        shard: ShardID, epoch: Epoch, reads: UInt32, writes: UInt32, median: Bytes? = nil,
        hottest: Bytes? = nil, hottestPercent: UInt8 = 0, spread: KeySpread = KeySpread()
    ) {
        self.shard = shard
        self.epoch = epoch
        self.reads = reads
        self.writes = writes
        self.median = median
        self.hottest = hottest
        self.hottestPercent = hottestPercent
        self.spread = spread
    }

    public var operations: UInt64 { UInt64(reads) + UInt64(writes) }
}

/// The load of everything a node leads. Replaces the node's report before.
public struct LoadReport: Hashable, Sendable {
    /// A report names the busiest shards only, so that its size has a bound.
    public static let shardsMax = 64

    public var groups: [GroupLoad]
    /// Busiest first; shards without a request are left out.
    public var shards: [ShardLoad]

    public init(groups: [GroupLoad], shards: [ShardLoad]) {
        self.groups = groups
        self.shards = shards
    }

    func encode(into writer: inout ByteWriter) {
        writer.write(list: groups) { writer, load in
            writer.write(load.group)
            writer.write(load.reads)
            writer.write(load.writes)
        }
        writer.write(list: shards) { writer, load in
            writer.write(load.shard)
            writer.write(load.epoch)
            writer.write(load.reads)
            writer.write(load.writes)
            writer.write(load.median)
            writer.write(load.hottest)
            writer.write(load.hottestPercent)
            load.spread.encode(into: &writer)
        }
    }

    init(from reader: inout ByteReader) throws(DatabaseError) {
        groups = try reader.readList(elementBytesMin: 12) { (reader) throws(DatabaseError) in
            GroupLoad(
                group: try reader.read(), reads: try reader.readUInt32(),
                writes: try reader.readUInt32())
        }
        shards = try reader.readList(elementBytesMin: 23) { (reader) throws(DatabaseError) in
            ShardLoad(
                shard: try reader.read(), epoch: try reader.read(),
                reads: try reader.readUInt32(), writes: try reader.readUInt32(),
                median: try reader.readOptionalBytes(), hottest: try reader.readOptionalBytes(),
                hottestPercent: try reader.readUInt8(), spread: try KeySpread(from: &reader))
        }
    }
}
