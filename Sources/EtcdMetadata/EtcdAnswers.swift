// What etcd's JSON gateway answers. Members that are zero or empty are left out by it.

import KVBase

struct EtcdHeader: Hashable, Sendable {
    /// Of the etcd cluster.
    var cluster: UInt64
    /// Of the whole store, other applications' keys included.
    var revision: UInt64

    init(_ json: JSONTree) throws(DatabaseError) {
        guard let header = json["header"], let cluster = header["cluster_id"]?.unsigned else {
            throw DatabaseError(.malformed, "etcd: an answer without a header")
        }
        self.cluster = cluster
        revision = header["revision"]?.unsigned ?? 0
    }
}

struct EtcdRecord: Hashable, Sendable {
    var key: Bytes
    var value: Bytes
    var createRevision: UInt64
    /// Of an event that deletes: the revision of the deletion.
    var modRevision: UInt64
    var lease: UInt64

    init(_ json: JSONTree) throws(DatabaseError) {
        func bytes(_ name: String) -> Bytes? {
            guard let member = json[name] else { return [] }
            guard case .text(let text) = member else { return nil }
            return Base64.decode(text)
        }
        guard let key = bytes("key"), let value = bytes("value"),
            let modRevision = json["mod_revision"]?.unsigned
        else { throw DatabaseError(.malformed, "etcd: a key that cannot be read") }
        self.key = key
        self.value = value
        self.modRevision = modRevision
        createRevision = json["create_revision"]?.unsigned ?? 0
        lease = json["lease"]?.unsigned ?? 0
    }

    static func list(_ json: JSONTree?) throws(DatabaseError) -> [EtcdRecord] {
        var records: [EtcdRecord] = []
        for element in json?.elements ?? [] { records.append(try EtcdRecord(element)) }
        return records
    }
}

struct EtcdTransactionAnswer: Sendable {
    var header: EtcdHeader
    var succeeded: Bool
    /// One per operation; empty for those that read nothing.
    var records: [[EtcdRecord]]

    init(_ json: JSONTree) throws(DatabaseError) {
        header = try EtcdHeader(json)
        succeeded = json["succeeded"]?.isTrue ?? false
        records = []
        for response in json["responses"]?.elements ?? [] {
            records.append(try EtcdRecord.list(response["response_range"]?["kvs"]))
        }
    }
}

struct EtcdRangeAnswer: Sendable {
    var header: EtcdHeader
    var records: [EtcdRecord]
    var hasMore: Bool

    init(_ json: JSONTree) throws(DatabaseError) {
        header = try EtcdHeader(json)
        records = try EtcdRecord.list(json["kvs"])
        hasMore = json["more"]?.isTrue ?? false
    }
}

struct EtcdEvent: Hashable, Sendable {
    var isDeletion: Bool
    var record: EtcdRecord
}

/// One line of a watch.
enum EtcdWatchMessage: Sendable {
    case created(EtcdHeader)
    /// Whole revisions, in order.
    case events(EtcdHeader, [EtcdEvent])
    /// The revision asked for is forgotten. The watch is over.
    case compacted(oldest: UInt64)
    /// The watch is over.
    case ended(String)

    init(_ json: JSONTree) throws(DatabaseError) {
        guard let result = json["result"] else {
            let message = json["error"]?["message"]?.string ?? json["error"]?.string
            self = .ended(message ?? "an answer without a result")
            return
        }
        let header = try EtcdHeader(result)
        if result["canceled"]?.isTrue == true {
            if let oldest = result["compact_revision"]?.unsigned, oldest > 0 {
                self = .compacted(oldest: oldest)
            } else {
                self = .ended(result["cancel_reason"]?.string ?? "cancelled")
            }
        } else if result["created"]?.isTrue == true {
            self = .created(header)
        } else {
            var events: [EtcdEvent] = []
            for event in result["events"]?.elements ?? [] {
                guard let record = event["kv"] else {
                    throw DatabaseError(.malformed, "etcd: an event without a key")
                }
                events.append(
                    EtcdEvent(
                        isDeletion: event["type"]?.string == "DELETE",
                        record: try EtcdRecord(record)))
            }
            self = .events(header, events)
        }
    }
}
