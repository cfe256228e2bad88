// The keys in etcd and the bytes of their values. See docs/internals/metadata.md.
//
// PREFIX head                 `EtcdHead`
// PREFIX data/KEY             `EtcdValue`
// PREFIX lease/ID             `EtcdLease`; ID in 16 hexadecimal digits, as below
// PREFIX alive/ID             no value; under the etcd lease of lease ID
// PREFIX part/WRITER-SEQUENCE/INDEX   changes of a large transaction, see `EtcdPart`
// PREFIX controller/NAME      `EtcdPlace`; under the lease of that controller's session
// PREFIX election             `EtcdPlace` of the controller that may act; under the same lease

import KVBase
import MetadataCore

struct EtcdLayout: Hashable, Sendable {
    let prefix: Bytes
    let head: Bytes
    let data: Bytes
    let lease: Bytes
    let alive: Bytes
    let part: Bytes
    let controller: Bytes
    let election: Bytes

    /// `prefix` gets a slash at its end if it has none.
    init(prefix text: String) {
        prefix = Bytes(text.utf8) + (text.hasSuffix("/") ? [] : Bytes("/".utf8))
        head = prefix + Bytes("head".utf8)
        data = prefix + Bytes("data/".utf8)
        lease = prefix + Bytes("lease/".utf8)
        alive = prefix + Bytes("alive/".utf8)
        part = prefix + Bytes("part/".utf8)
        controller = prefix + Bytes("controller/".utf8)
        election = prefix + Bytes("election".utf8)
    }

    func data(_ key: Bytes) -> Bytes { data + key }
    func lease(_ id: LeaseID) -> Bytes { lease + Self.digits(id.rawValue) }
    func alive(_ id: LeaseID) -> Bytes { alive + Self.digits(id.rawValue) }
    func controller(_ name: String) -> Bytes { controller + Bytes(name.utf8) }
    func part(writer: UInt64, sequence: UInt64, index: Int) -> Bytes {
        part + Self.digits(writer) + Bytes("-".utf8) + Self.digits(sequence) + Bytes("/".utf8)
            + Self.digits(UInt64(index), count: 8)
    }

    enum Place: Hashable {
        case head
        case data(Bytes)
        case lease(LeaseID)
        case alive(LeaseID)
        case part(writer: UInt64, sequence: UInt64, index: Int)
        case controller(String)
        case election
        /// Not of this layout: somebody else's, or of a later version.
        case foreign
    }

    func place(of key: Bytes) -> Place {
        if key == head { return .head }
        if key == election { return .election }
        if key.starts(with: data) { return .data(Bytes(key[data.count...])) }
        if key.starts(with: lease), let id = Self.number(key[lease.count...]) {
            return .lease(LeaseID(id))
        }
        if key.starts(with: alive), let id = Self.number(key[alive.count...]) {
            return .alive(LeaseID(id))
        }
        if key.starts(with: controller) {
            return .controller(String(decoding: key[controller.count...], as: UTF8.self))
        }
        if key.starts(with: part), key.count == part.count + 42 {
            let name = key[part.count...]
            let start = name.startIndex
            if let writer = Self.number(name[start..<start + 16]),
                let sequence = Self.number(name[start + 17..<start + 33]),
                let index = Self.number(name[(start + 34)...], count: 8)
            {
                return .part(writer: writer, sequence: sequence, index: Int(index))
            }
        }
        return .foreign
    }

    private static func digits(_ number: UInt64, count: Int = 16) -> Bytes {
        Bytes(hex(number, count: count).utf8)
    }

    private static func number(_ digits: ArraySlice<UInt8>, count: Int = 16) -> UInt64? {
        UInt64(hex: String(decoding: digits, as: UTF8.self), count: count)
    }
}

/// Where the store stands. Every mutation compares the etcd revision of this key and writes it anew, so
/// mutations follow each other one by one.
struct EtcdHead: Hashable, Sendable {
    private static let version: UInt8 = 1

    /// In front of a head that does not count yet: the id of the move that brings the metadata 8, cluster 8.
    static let incomingVersion: UInt8 = 254
    /// In place of a head when the metadata has left: the `MetadataMove` follows. Nothing follows where
    /// version 0.1 wrote it.
    static let movedVersion: UInt8 = 255

    /// What the key holds.
    enum Mark: Hashable, Sendable {
        case head(EtcdHead)
        case incoming(id: UInt64, cluster: UInt64, EtcdHead)
        case moved(MetadataMove?)

        init(_ bytes: Bytes) throws(DatabaseError) {
            switch bytes.first {
            case EtcdHead.incomingVersion:
                self = try ByteReader.decode(bytes) { (reader) throws(DatabaseError) in
                    _ = try reader.readUInt8()
                    return .incoming(
                        id: try reader.readUInt64(), cluster: try reader.readUInt64(),
                        try EtcdHead(Bytes(try reader.readRaw(reader.remaining))))
                }
            case EtcdHead.movedVersion:
                self = .moved(bytes.count > 1 ? try MetadataMove(Bytes(bytes[1...])) : nil)
            default: self = .head(try EtcdHead(bytes))
            }
        }

        func encode() -> Bytes {
            switch self {
            case .head(let head): return head.encode()
            case .incoming(let id, let cluster, let head):
                var writer = ByteWriter()
                writer.write(EtcdHead.incomingVersion)
                writer.write(id)
                writer.write(cluster)
                writer.writeRaw(head.encode())
                return writer.take()
            case .moved(let move): return [EtcdHead.movedVersion] + (move?.encode() ?? [])
            }
        }
    }

    /// Of the newest mutation; numbered from 1 without a gap.
    var sequence: UInt64 = 0
    /// Who made it: a random number of each store that is opened.
    var writer: UInt64 = 0
    var revision: Revision = .none
    var leaseHighest: LeaseID = .none
    /// The newest mutation is a large one whose parts are not all in their places yet: how many there
    /// are, and which is next.
    var staged: Staged?

    struct Staged: Hashable, Sendable {
        var count: UInt32
        var next: UInt32
    }

    func encode() -> Bytes {
        var writer = ByteWriter(reserving: 41)
        writer.write(Self.version)
        writer.write(sequence)
        writer.write(self.writer)
        writer.write(revision)
        writer.write(leaseHighest)
        writer.write(staged?.count ?? 0)
        writer.write(staged?.next ?? 0)
        return writer.bytes
    }

    init() {}

    init(_ bytes: Bytes) throws(DatabaseError) {
        self = try ByteReader.decode(bytes) { (reader) throws(DatabaseError) in
            let version = try reader.readUInt8()
            guard version != Self.movedVersion else {
                throw DatabaseError(
                    .refused,
                    "the metadata was moved out of etcd: set metadata = embedded, or another etcd.prefix"
                )
            }
            guard version != Self.incomingVersion else {
                throw DatabaseError(
                    .refused, "the metadata is being moved here, and does not count yet")
            }
            guard version == Self.version else {
                throw DatabaseError(
                    .storageFailed, "the metadata in etcd has version \(version), not 1")
            }
            var head = EtcdHead()
            head.sequence = try reader.readUInt64()
            head.writer = try reader.readUInt64()
            head.revision = try reader.read()
            head.leaseHighest = try reader.read()
            let count = try reader.readUInt32()
            let next = try reader.readUInt32()
            if count > 0 { head.staged = Staged(count: count, next: next) }
            return head
        }
    }
}

/// A record: create revision 8, mod revision 8, lease 8, the value.
enum EtcdValue {
    static func encode(_ record: MetadataRecord) -> Bytes {
        var writer = ByteWriter(reserving: 24 + record.value.count)
        writer.write(record.createRevision)
        writer.write(record.modRevision)
        writer.write(record.lease)
        record.value.withUnsafeBytes { writer.writeRaw($0) }
        return writer.bytes
    }

    static func decode(_ bytes: Bytes, key: Bytes) throws(DatabaseError) -> MetadataRecord {
        try ByteReader.decode(bytes) { (reader) throws(DatabaseError) in
            MetadataRecord(
                key: key, value: [], createRevision: try reader.read(),
                modRevision: try reader.read(), lease: try reader.read()
            ).with(value: Bytes(try reader.readRaw(reader.remaining)))
        }
    }
}

extension MetadataRecord {
    fileprivate func with(value: Bytes) -> MetadataRecord {
        var copy = self
        copy.value = value
        return copy
    }
}

/// A lease of the store: the etcd lease behind it 8, its ttl in nanoseconds 8.
struct EtcdLease: Hashable, Sendable {
    var etcd: UInt64
    var ttl: Nanoseconds

    func encode() -> Bytes {
        var writer = ByteWriter(reserving: 16)
        writer.write(etcd)
        writer.write(ttl.count)
        return writer.bytes
    }

    init(etcd: UInt64, ttl: Nanoseconds) {
        self.etcd = etcd
        self.ttl = ttl
    }

    init(_ bytes: Bytes) throws(DatabaseError) {
        self = try ByteReader.decode(bytes) { (reader) throws(DatabaseError) in
            EtcdLease(etcd: try reader.readUInt64(), ttl: Nanoseconds(try reader.readUInt64()))
        }
    }
}

/// Changes of a large transaction, as the logs of the other forms encode them.
enum EtcdPart {
    /// What one request to etcd holds of changes: etcd takes 128 operations (`--max-txn-ops`) and 1.5 MiB
    /// (`--max-request-bytes`).
    static let changesMax = 96
    static let bytesMax = 1 << 20

    static func encode(_ changes: [MetadataChange]) -> Bytes {
        var writer = ByteWriter()
        MetadataMutation.changes(changes).encode(into: &writer)
        return writer.bytes
    }

    static func decode(_ bytes: Bytes) throws(DatabaseError) -> [MetadataChange] {
        let mutation = try ByteReader.decode(bytes) { (reader) throws(DatabaseError) in
            try MetadataMutation(from: &reader)
        }
        guard case .changes(let changes) = mutation else {
            throw DatabaseError(.malformed, "a part that holds no changes")
        }
        return changes
    }

    static func byteCount(_ change: MetadataChange) -> Int {
        switch change {
        // Lengths, header and the prefix are bounded by the 64.
        case .put(let key, let value, _): key.count + value.count + 64
        case .delete(let key): key.count + 64
        }
    }

    /// Cuts changes into what a request holds each, in order.
    static func cut(_ changes: [MetadataChange]) -> [[MetadataChange]] {
        var parts: [[MetadataChange]] = []
        var bytes = 0
        for change in changes {
            let count = byteCount(change)
            if let last = parts.last, last.count < changesMax, bytes + count <= bytesMax {
                parts[parts.count - 1].append(change)
                bytes += count
            } else {
                parts.append([change])
                bytes = count
            }
        }
        return parts
    }
}

/// A controller as the others see it: incarnation 8, name, addresses for controllers' clients and for
/// admin HTTP.
public struct EtcdPlace: Hashable, Sendable {
    /// Drawn at each start.
    public var incarnation: UInt64
    public var name: String
    public var address: String
    public var adminAddress: String

    public init(incarnation: UInt64, name: String, address: String, adminAddress: String) {
        self.incarnation = incarnation
        self.name = name
        self.address = address
        self.adminAddress = adminAddress
    }

    func encode() -> Bytes {
        var writer = ByteWriter()
        writer.write(incarnation)
        writer.write(name)
        writer.write(address)
        writer.write(adminAddress)
        return writer.bytes
    }

    init(_ bytes: Bytes) throws(DatabaseError) {
        self = try ByteReader.decode(bytes) { (reader) throws(DatabaseError) in
            EtcdPlace(
                incarnation: try reader.readUInt64(), name: try reader.readString(),
                address: try reader.readString(), adminAddress: try reader.readString())
        }
    }
}
