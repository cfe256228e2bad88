// Requests of etcd's v3 API as its JSON gateway takes them. Source: etcd 3.4, etcdserver/etcdserverpb/rpc.proto
// and mvcc/mvccpb/kv.proto, in the JSON form of protocol buffers.

import KVBase

enum EtcdPath {
    static let transaction = "/v3/kv/txn"
    static let range = "/v3/kv/range"
    static let watch = "/v3/watch"
    static let leaseGrant = "/v3/lease/grant"
    static let leaseKeepAlive = "/v3/lease/keepalive"
    static let leaseRevoke = "/v3/lease/revoke"
    static let authenticate = "/v3/auth/authenticate"
}

/// Equality only: nothing else is needed here. Zero: there is no such key.
enum EtcdComparison: Hashable, Sendable {
    case modRevision(key: Bytes, UInt64)
    case createRevision(key: Bytes, UInt64)
    case value(key: Bytes, Bytes)
}

enum EtcdOperation: Hashable, Sendable {
    case put(key: Bytes, value: Bytes, lease: UInt64)
    case delete(key: Bytes)
    case deletePrefix(Bytes)
    case get(key: Bytes)
}

struct EtcdTransaction: Hashable, Sendable {
    var comparisons: [EtcdComparison] = []
    var success: [EtcdOperation] = []
    var failure: [EtcdOperation] = []
}

/// Makes the bodies.
enum EtcdRequest {
    static func transaction(_ transaction: EtcdTransaction) -> Bytes {
        var json = JSONObject()
        json.list("compare", transaction.comparisons) { json, comparison in
            json.text("result", "EQUAL")
            switch comparison {
            case .modRevision(let key, let revision):
                json.text("target", "MOD")
                json.base64("key", key)
                json.number("mod_revision", revision)
            case .createRevision(let key, let revision):
                json.text("target", "CREATE")
                json.base64("key", key)
                json.number("create_revision", revision)
            case .value(let key, let value):
                json.text("target", "VALUE")
                json.base64("key", key)
                json.base64("value", value)
            }
        }
        json.list("success", transaction.success, operation)
        json.list("failure", transaction.failure, operation)
        return json.end()
    }

    private static func operation(_ json: inout JSONObject, _ operation: EtcdOperation) {
        switch operation {
        case .put(let key, let value, let lease):
            json.object("request_put") { json in
                json.base64("key", key)
                json.base64("value", value)
                if lease != 0 { json.number("lease", lease) }
            }
        case .delete(let key):
            json.object("request_delete_range") { json in json.base64("key", key) }
        case .deletePrefix(let prefix):
            json.object("request_delete_range") { json in
                json.base64("key", prefix)
                json.base64("range_end", end(of: prefix))
            }
        case .get(let key):
            json.object("request_range") { json in json.base64("key", key) }
        }
    }

    /// Keys from `key` on to before `end`. `revision` zero: the present one.
    static func range(from key: Bytes, end: Bytes, limit: Int, revision: UInt64) -> Bytes {
        var json = JSONObject()
        json.base64("key", key)
        json.base64("range_end", end)
        json.number("limit", UInt64(limit))
        if revision != 0 { json.number("revision", revision) }
        return json.end()
    }

    /// A key as it was at `revision`.
    static func get(key: Bytes, at revision: UInt64) -> Bytes {
        var json = JSONObject()
        json.base64("key", key)
        json.number("revision", revision)
        return json.end()
    }

    static func watch(prefix: Bytes, from revision: UInt64) -> Bytes {
        var json = JSONObject()
        json.object("create_request") { json in
            json.base64("key", prefix)
            json.base64("range_end", end(of: prefix))
            json.number("start_revision", revision)
        }
        return json.end()
    }

    static func grant(seconds: UInt64) -> Bytes {
        var json = JSONObject()
        json.number("TTL", seconds)
        return json.end()
    }

    static func lease(_ id: UInt64) -> Bytes {
        var json = JSONObject()
        json.number("ID", id)
        return json.end()
    }

    static func authenticate(user: String, password: String) -> Bytes {
        var json = JSONObject()
        json.text("name", user)
        json.text("password", password)
        return json.end()
    }

    /// The first key behind all keys that start with `prefix`; a zero byte: there is none behind.
    static func end(of prefix: Bytes) -> Bytes {
        var end = prefix
        while let last = end.popLast() {
            if last < 255 { return end + [last + 1] }
        }
        return [0]
    }
}

/// Writes one JSON object.
private struct JSONObject {
    private var bytes: Bytes = [UInt8(ascii: "{")]

    mutating func text(_ name: String, _ value: String) {
        begin(name)
        JSONText.append(value, to: &bytes)
    }

    /// In quotes, as protocol buffers write 64 bits.
    mutating func number(_ name: String, _ value: UInt64) { text(name, String(value)) }

    mutating func base64(_ name: String, _ value: Bytes) {
        begin(name)
        bytes.append(UInt8(ascii: "\""))
        Base64.append(value, to: &bytes)
        bytes.append(UInt8(ascii: "\""))
    }

    mutating func object(_ name: String, _ body: (inout JSONObject) -> Void) {
        begin(name)
        var inner = JSONObject()
        body(&inner)
        bytes += inner.end()
    }

    mutating func list<Element>(
        _ name: String, _ elements: [Element], _ body: (inout JSONObject, Element) -> Void
    ) {
        guard !elements.isEmpty else { return }
        begin(name)
        bytes.append(UInt8(ascii: "["))
        for (index, element) in elements.enumerated() {
            if index > 0 { bytes.append(UInt8(ascii: ",")) }
            var inner = JSONObject()
            body(&inner, element)
            bytes += inner.end()
        }
        bytes.append(UInt8(ascii: "]"))
    }

    private mutating func begin(_ name: String) {
        if bytes.count > 1 { bytes.append(UInt8(ascii: ",")) }
        JSONText.append(name, to: &bytes)
        bytes.append(UInt8(ascii: ":"))
    }

    consuming func end() -> Bytes {
        bytes.append(UInt8(ascii: "}"))
        return bytes
    }
}
