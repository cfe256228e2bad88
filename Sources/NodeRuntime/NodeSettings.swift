// How one node is configured.

import EventLoop
import KVBase

/// What a node is told by its configuration.
struct NodeSettings: Sendable {
    var name: String
    var dataDirectories: [String]
    var rpcAddress: SocketAddress
    var adminAddress: String
    var controllers: [SocketAddress]
    /// Most bytes per second that a group copies of a shard that moves to it. Above zero.
    var copyBytesPerSecond: UInt64
    var zone: String
    var isSpare: Bool
    /// Log bytes of a disk after which its engines are made durable.
    var checkpointBytes: Int
    /// Entries kept in memory behind that point for followers that lag a little.
    var retainedBytes: Int
    /// Memory for decompressed blocks of all LSM engines of the node together.
    var cacheBytes: Int
    /// A request that takes longer is told in the log; zero tells none.
    var slowRequest: Nanoseconds
    /// Between two checks of data at rest; zero for none but those that are asked for.
    var scrubPeriod: Nanoseconds
    /// Most bytes per second that the check of one disk reads. Above zero.
    var scrubBytesPerSecond: UInt64
}
