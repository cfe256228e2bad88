// What a state of the metadata is about, for operators who look at a backup.

import KVBase
import ShardCore

public struct MetadataSummary: Hashable, Sendable, Encodable {
    public struct TableLine: Hashable, Sendable, Encodable {
        public var name: String
        public var id: UInt32
        public var state: String
        public var shards: Int
    }

    /// With where and when it comes from.
    public struct InBackup: Hashable, Sendable, Encodable {
        public var destination: String
        public var revision: UInt64
        /// Milliseconds since 1970.
        public var at: UInt64
        /// What could not be used on the way to it.
        public var damaged: [String]
        public var summary: MetadataSummary

        public init(
            destination: String, revision: UInt64, at: UInt64, damaged: [String],
            summary: MetadataSummary
        ) {
            self.destination = destination
            self.revision = revision
            self.at = at
            self.damaged = damaged
            self.summary = summary
        }
    }

    /// 16 hexadecimal digits.
    public var cluster: String
    public var controllerTerm: UInt64
    public var records: Int
    public var nodes: [String]
    public var groups: Int
    public var shards: Int
    public var openOperations: Int
    public var tables: [TableLine]

    /// Throws `.storageFailed` that names the record when one is not of this version.
    public init(_ records: [MetadataRecord]) throws(DatabaseError) {
        let state = try DurableState(MetadataSnapshot(revision: .none, records: records))
        cluster = hex(state.cluster)
        controllerTerm = state.term.rawValue
        self.records = records.count
        nodes = state.nodes.map(\.name)
        groups = state.groups.count
        shards = state.shards.count
        openOperations = state.operations.count { !$0.isFinished }
        var counts: [TableID: Int] = [:]
        for shard in state.shards { counts[shard.table, default: 0] += 1 }
        tables = state.tables.map {
            TableLine(
                name: $0.name, id: $0.id.rawValue, state: "\($0.state)", shards: counts[$0.id] ?? 0)
        }
    }

    /// `host:port` of the RPC of every node.
    public static func nodeAddresses(
        _ records: [MetadataRecord]
    ) throws(DatabaseError) -> [String] {
        try DurableState(MetadataSnapshot(revision: .none, records: records)).nodes
            .map(\.rpcAddress)
    }
}
