// The JSON that operators' tools exchange with the controller.

import FoundationEssentials

struct AdminRequest: Decodable {
    /// Written too: plans hold the arguments of their requests.
    struct Arguments: Codable {
        var table: String?
        var name: String?
        var partitioning: String?
        var virtualRanges: Int?
        var engine: String?
        var replicas: Int?
        var splits: [String]?
        var ifMissing: Bool?
        var node: String?
        var group: UInt32?
        var with: String?
        var operation: UInt32?
        var shard: UInt32?
        /// A key, or `hash:N` of a HASH table.
        var at: String?
        /// The number of a group, `new`, or `none`.
        var to: String?
        var value: String?
        var weight: Int?
        var seconds: Double?
        var dryRun: Bool?
        var limit: Int?
        var address: String?
        /// Of work on the backup.
        var job: UInt64?
        /// Of etcd.
        var endpoints: [String]?
        var prefix: String?
        /// A `MetadataMove`, and the keys and values that its mark puts, in hexadecimal.
        var move: String?
        var changes: [[String]]?
    }

    var verb: String
    var arguments: Arguments?
}

struct AdminSuccess<Result: Encodable>: Encodable {
    var ok = true
    var result: Result
}

struct AdminFailure: Encodable {
    var ok = false
    var code: String
    var message: String
    /// Where to ask instead; empty when that is not known.
    var acting: String
}

struct NothingView: Encodable {}

struct ControllerView: Encodable {
    var name: String
    var rpc: String
    var admin: String
    var acting: Bool
    /// In which it acts; 0 when it does not.
    var term: UInt64
    /// In the metadata group.
    var role: String
    var reachable: Bool
    /// Entries behind the leader, as the acting controller sees it.
    var lag: UInt64
    /// Everything but a plain member: joining, leaving.
    var state: String
    /// What keeps it from being one that answers, as far as the answering controller can see.
    var problem: String?
}

struct DiskView: Encodable {
    var path: String
    var state: String
    /// Equal for directories of a node that share a file system; 0 when it is not known.
    var fileSystem: UInt64
    var totalBytes: UInt64
    var freeBytes: UInt64
    var dataBytes: UInt64
    /// What the newest write of its log and the newest read took, or the age of those under way.
    var logDelayMillis: UInt64
    var engineDelayMillis: UInt64
}

struct NodeView: Encodable {
    var name: String
    var id: UInt32
    var state: String
    var zone: String
    var rpc: String
    var admin: String
    var replicas: Int
    var leaders: Int
    var heartbeatAgeMillis: UInt64
    /// Share of load and replicas beside other nodes.
    var weight: UInt8
    /// When its maintenance ends by itself, in milliseconds since 1970.
    var maintenanceUntil: UInt64?
    var disks: [DiskView]
}

struct NodesView: Encodable {
    var nodes: [NodeView]
}

struct ReplicaView: Encodable {
    var node: String
    var replica: UInt32
    var role: String
    var state: String
    var lag: UInt64
}

struct GroupView: Encodable {
    var id: UInt32
    var engine: String
    var state: String
    var term: UInt64
    /// Written as null when there is none.
    var leader: Nullable<String>
    /// Requests per second; nil when its leader has not reported them.
    var reads: UInt32?
    var writes: UInt32?
    /// There are fewer while the group lacks some.
    var replicasWanted: Int
    var replicas: [ReplicaView]
}

struct GroupsView: Encodable {
    var groups: [GroupView]
}

struct ShardView: Encodable {
    var id: UInt32
    var table: String
    var start: String
    /// Written as null when the shard has no end.
    var end: Nullable<String>
    var group: UInt32
    var state: String
    var epoch: UInt32
    /// As last counted, or about so since a cut or a join; written as null before the first count.
    var bytes: Nullable<UInt64>
    var records: Nullable<UInt64>
    /// Requests per second; nil when its group's leader has not reported any load.
    var reads: UInt32?
    var writes: UInt32?
}

struct ShardsView: Encodable {
    var shards: [ShardView]
}

struct TableView: Encodable {
    var name: String
    var id: UInt32
    var partitioning: String
    var virtualRanges: UInt16?
    var engine: String
    var replicas: UInt8
    var state: String
    var shards: TableShards
    var groups: [UInt32]
    var bytes: UInt64
    var records: UInt64
}

/// The shards of a table: their number in lists of tables, themselves where one is described.
enum TableShards: Encodable {
    case count(Int)
    case list([ShardView])

    func encode(to encoder: any Encoder) throws {
        var container = encoder.singleValueContainer()
        switch self {
        case .count(let count): try container.encode(count)
        case .list(let list): try container.encode(list)
        }
    }
}

struct TablesView: Encodable {
    var tables: [TableView]
}

struct CreatedView: Encodable {
    var table: TableView
}

struct RouterView: Encodable {
    var name: String
    var resp: String
    var admin: String
}

struct StatusView: Encodable {
    var cluster: String
    var controllers: [ControllerView]
    var revision: UInt64
    var mapRevision: UInt64
    var nodes: [NodeView]
    var groups: [GroupView]
    var tables: Int
    var routers: [RouterView]
    var verdict: String
    var findings: [String]
    /// Findings that leave the verdict as it is.
    var notices: [String]
}

/// Encodes nil as null instead of leaving the key out.
struct Nullable<Value: Encodable>: Encodable {
    var value: Value?

    init(_ value: Value?) { self.value = value }

    func encode(to encoder: any Encoder) throws {
        var container = encoder.singleValueContainer()
        if let value {
            try container.encode(value)
        } else {
            try container.encodeNil()
        }
    }
}

enum AdminJSON {
    static func encode(_ value: some Encodable) -> [UInt8] {
        let encoder = JSONEncoder()
        encoder.outputFormatting = [.sortedKeys, .withoutEscapingSlashes]
        guard let data = try? encoder.encode(value) else {
            preconditionFailure("a view holds nothing that JSON cannot")
        }
        return [UInt8](data)
    }

    static func decode<Request: Decodable>(_ bytes: [UInt8]) throws -> Request {
        try JSONDecoder().decode(Request.self, from: Data(bytes))
    }
}
