// The keys and values under which the controller's records stand in the metadata store.
//
// controller/cluster   cluster id 8
// controller/term      controller term 8, name of the holder
// controller/acting    name of the holder; attached to its lease
// controller/ids       next node, group, replica, table, shard id, 4 each
// controller/restored  after a restore: the node id below which an unknown node may come back, 4; the wall
//                      clock of the restore in milliseconds since 1970, 8
// controller/home      where the metadata moved last: a `MetadataMove`, which the shell reads
// node/ID group/ID table/ID shard/ID   the record; ID is 4 bytes, big-endian, so that keys sort by id
// controller/operations   next operation id 4
// operation/ID         an `OperationRecord`
// retired/ID           a `RetiredReplica`, by replica id
// former/ID            a `FormerShard`, by operation id
// held/ID              a node that is given no replicas; no value
// decision/NUMBER      a `Decision`; NUMBER is 8 bytes, big-endian
// setting/NAME         a setting that was changed at run time; its value as text
// history/ID           a `ShardHistory`, by shard id
// cold/ID              a `RuleState.ColdSeam`, by the upper shard's id
// weight/ID            of node ID: 1 byte
// maintenance/ID       of node ID: the wall clock at which it ends, 8 bytes
// nomination/ID        of group ID: term 8, nominee 4
// controller/audit     an `AuditHead`
// audit/NUMBER         an `AuditEntry`; NUMBER is 8 bytes, big-endian

import KVBase
import ShardCore

enum StoreKey {
    static let cluster = Bytes("controller/cluster".utf8)
    static let term = Bytes("controller/term".utf8)
    static let acting = Bytes("controller/acting".utf8)
    static let ids = Bytes("controller/ids".utf8)
    static let restored = Bytes("controller/restored".utf8)
    static let home = Bytes("controller/home".utf8)

    static let auditHead = Bytes("controller/audit".utf8)
    static let nextOperation = Bytes("controller/operations".utf8)

    static let nodePrefix = Bytes("node/".utf8)
    static let groupPrefix = Bytes("group/".utf8)
    static let tablePrefix = Bytes("table/".utf8)
    static let shardPrefix = Bytes("shard/".utf8)
    static let nominationPrefix = Bytes("nomination/".utf8)
    static let operationPrefix = Bytes("operation/".utf8)
    static let retiredPrefix = Bytes("retired/".utf8)
    static let formerPrefix = Bytes("former/".utf8)
    static let heldPrefix = Bytes("held/".utf8)
    static let decisionPrefix = Bytes("decision/".utf8)
    static let settingPrefix = Bytes("setting/".utf8)
    static let historyPrefix = Bytes("history/".utf8)
    static let coldPrefix = Bytes("cold/".utf8)
    static let weightPrefix = Bytes("weight/".utf8)
    static let maintenancePrefix = Bytes("maintenance/".utf8)
    static let auditPrefix = Bytes("audit/".utf8)

    static func node(_ id: NodeID) -> Bytes { key(nodePrefix, id.rawValue) }
    static func group(_ id: GroupID) -> Bytes { key(groupPrefix, id.rawValue) }
    static func table(_ id: TableID) -> Bytes { key(tablePrefix, id.rawValue) }
    static func shard(_ id: ShardID) -> Bytes { key(shardPrefix, id.rawValue) }
    static func nomination(_ id: GroupID) -> Bytes { key(nominationPrefix, id.rawValue) }

    static func operation(_ id: OperationID) -> Bytes { key(operationPrefix, id.rawValue) }
    static func retired(_ id: ReplicaID) -> Bytes { key(retiredPrefix, id.rawValue) }
    static func former(_ id: OperationID) -> Bytes { key(formerPrefix, id.rawValue) }
    static func held(_ id: NodeID) -> Bytes { key(heldPrefix, id.rawValue) }
    static func setting(_ name: String) -> Bytes { settingPrefix + Bytes(name.utf8) }
    static func history(_ id: ShardID) -> Bytes { key(historyPrefix, id.rawValue) }
    static func cold(_ upper: ShardID) -> Bytes { key(coldPrefix, upper.rawValue) }
    static func weight(_ id: NodeID) -> Bytes { key(weightPrefix, id.rawValue) }
    static func maintenance(_ id: NodeID) -> Bytes { key(maintenancePrefix, id.rawValue) }
    static func decision(_ number: UInt64) -> Bytes { key(decisionPrefix, number) }
    static func audit(_ number: UInt64) -> Bytes { key(auditPrefix, number) }

    /// The id at the end of a key.
    static func number(of key: Bytes) -> UInt32 {
        key.suffix(4).reduce(UInt32(0)) { $0 << 8 | UInt32($1) }
    }

    private static func key(_ prefix: Bytes, _ id: some FixedWidthInteger) -> Bytes {
        prefix + withUnsafeBytes(of: id.bigEndian) { Bytes($0) }
    }
}

/// The next id of each kind. Ids are never reused: a counter only rises, and is stored with the
/// record that took the id.
struct IDAllocators: Hashable, Sendable {
    var node: UInt32 = 1
    var group: UInt32 = 1
    var replica: UInt32 = 1
    var table: UInt32 = 1
    var shard: UInt32 = 1

    static func take<ID: IntegerIdentity>(_ counter: inout UInt32) -> ID
    where ID.RawValue == UInt32 {
        precondition(counter < UInt32.max)
        defer { counter += 1 }
        return ID(rawValue: counter)
    }

    func encode(into writer: inout ByteWriter) {
        writer.write(node)
        writer.write(group)
        writer.write(replica)
        writer.write(table)
        writer.write(shard)
    }

    init() {}

    init(from reader: inout ByteReader) throws(DatabaseError) {
        node = try reader.readUInt32()
        group = try reader.readUInt32()
        replica = try reader.readUInt32()
        table = try reader.readUInt32()
        shard = try reader.readUInt32()
    }
}

/// A group with what is known to be done for it.
struct GroupRecord: Hashable, Sendable {
    var group: Group
    /// Bit i: the replica of placement i was created once. It is never created again: a replica that
    /// lost its data must not come back empty under its old id.
    var createdMask: UInt8
    /// Replicas that the tables of its kind ask for. There are fewer placements while it lacks some.
    var wanted: UInt8

    var isComplete: Bool { createdMask == UInt8((1 << group.placements.count) - 1) }

    func encode(into writer: inout ByteWriter) {
        group.encode(into: &writer)
        writer.write(createdMask)
        writer.write(wanted)
    }

    /// - Parameter wanted: as many as are placed, unless told.
    init(group: Group, createdMask: UInt8 = 0, wanted: Int? = nil) {
        self.group = group
        self.createdMask = createdMask
        self.wanted = UInt8(wanted ?? group.placements.count)
    }

    init(from reader: inout ByteReader) throws(DatabaseError) {
        group = try Group(from: &reader)
        createdMask = try reader.readUInt8()
        // Groups of earlier versions are whole.
        wanted = reader.isAtEnd ? UInt8(group.placements.count) : try reader.readUInt8()
        guard group.placements.count <= 7 else {
            throw DatabaseError(.malformed, "group of \(group.placements.count) replicas")
        }
    }
}

/// The newest nomination of a group: no later one may reuse its term.
struct Nomination: Hashable, Sendable {
    var term: Term
    var nominee: ReplicaID

    func encode(into writer: inout ByteWriter) {
        writer.write(term)
        writer.write(nominee)
    }

    init(term: Term, nominee: ReplicaID) {
        self.term = term
        self.nominee = nominee
    }

    init(from reader: inout ByteReader) throws(DatabaseError) {
        term = try reader.read()
        nominee = try reader.read()
    }
}

/// Everything durable, decoded from a snapshot of the store.
struct DurableState {
    var cluster: UInt64 = 0
    var term: Term = .none
    var termRevision: Revision = .none
    var acting: (holder: String, revision: Revision)?
    var ids = IDAllocators()
    /// Ids below it were issued, perhaps, by metadata that was lost; `.none` without a restore.
    var issuedBelow = NodeID.none
    /// Of the last restore, milliseconds since 1970; 0 without one.
    var restoredAt: UInt64 = 0
    var nodes: [Node] = []
    var groups: [GroupRecord] = []
    var tables: [Table] = []
    var shards: [Shard] = []
    var nominations: [(GroupID, Nomination)] = []
    var nextOperation: UInt32 = 1
    var operations: [OperationRecord] = []
    var retired: [RetiredReplica] = []
    var former: [FormerShard] = []
    var held: [NodeID] = []
    var decisions: [Decision] = []
    var settings: [(name: String, value: String)] = []
    var histories: [ShardHistory] = []
    var cold: [RuleState.ColdSeam] = []
    var weights: [(NodeID, UInt8)] = []
    /// Wall clock in milliseconds since 1970 at which each ends.
    var maintenances: [(NodeID, UInt64)] = []
    var auditHead = AuditHead()

    init(_ snapshot: MetadataSnapshot) throws(DatabaseError) {
        for record in snapshot.records {
            do throws(DatabaseError) {
                try take(record)
            } catch {
                throw DatabaseError(
                    .storageFailed,
                    "metadata record \(String(decoding: record.key, as: UTF8.self)): "
                        + error.message)
            }
        }
    }

    private mutating func take(_ record: MetadataRecord) throws(DatabaseError) {
        let key = record.key
        let value = record.value
        if key == StoreKey.cluster {
            cluster = try ByteReader.decode(value) { (reader) throws(DatabaseError) in
                try reader.readUInt64()
            }
        } else if key == StoreKey.term {
            termRevision = record.modRevision
            term = try ByteReader.decode(value) { (reader) throws(DatabaseError) in
                let term: Term = try reader.read()
                _ = try reader.readString()
                return term
            }
        } else if key == StoreKey.acting {
            acting = (String(decoding: value, as: UTF8.self), record.modRevision)
        } else if key == StoreKey.ids {
            ids = try ByteReader.decode(value) { (reader) throws(DatabaseError) in
                try IDAllocators(from: &reader)
            }
        } else if key == StoreKey.restored {
            (issuedBelow, restoredAt) = try ByteReader.decode(value) {
                (reader) throws(DatabaseError) in
                (try reader.read(), try reader.readUInt64())
            }
        } else if key.starts(with: StoreKey.nodePrefix) {
            nodes.append(
                try ByteReader.decode(value) { (reader) throws(DatabaseError) in
                    try Node(from: &reader)
                })
        } else if key.starts(with: StoreKey.groupPrefix) {
            groups.append(
                try ByteReader.decode(value) { (reader) throws(DatabaseError) in
                    try GroupRecord(from: &reader)
                })
        } else if key.starts(with: StoreKey.tablePrefix) {
            tables.append(
                try ByteReader.decode(value) { (reader) throws(DatabaseError) in
                    try Table(from: &reader)
                })
        } else if key.starts(with: StoreKey.shardPrefix) {
            shards.append(
                try ByteReader.decode(value) { (reader) throws(DatabaseError) in
                    try Shard(from: &reader)
                })
        } else if key.starts(with: StoreKey.nominationPrefix) {
            let id = StoreKey.number(of: key)
            let nomination = try ByteReader.decode(value) { (reader) throws(DatabaseError) in
                try Nomination(from: &reader)
            }
            nominations.append((GroupID(id), nomination))
        } else if key == StoreKey.nextOperation {
            nextOperation = try ByteReader.decode(value) { (reader) throws(DatabaseError) in
                try reader.readUInt32()
            }
        } else if key == StoreKey.auditHead {
            auditHead = try ByteReader.decode(value) { (reader) throws(DatabaseError) in
                try AuditHead(from: &reader)
            }
        } else if key.starts(with: StoreKey.auditPrefix) || key == StoreKey.home {
            // Read from the store by those who ask for them.
        } else if key.starts(with: StoreKey.operationPrefix) {
            operations.append(
                try ByteReader.decode(value) { (reader) throws(DatabaseError) in
                    try OperationRecord(from: &reader)
                })
        } else if key.starts(with: StoreKey.retiredPrefix) {
            retired.append(
                try ByteReader.decode(value) { (reader) throws(DatabaseError) in
                    try RetiredReplica(from: &reader)
                })
        } else if key.starts(with: StoreKey.formerPrefix) {
            former.append(
                try ByteReader.decode(value) { (reader) throws(DatabaseError) in
                    try FormerShard(from: &reader)
                })
        } else if key.starts(with: StoreKey.heldPrefix) {
            held.append(NodeID(StoreKey.number(of: key)))
        } else if key.starts(with: StoreKey.decisionPrefix) {
            decisions.append(
                try ByteReader.decode(value) { (reader) throws(DatabaseError) in
                    try Decision(from: &reader)
                })
        } else if key.starts(with: StoreKey.settingPrefix) {
            settings.append(
                (
                    String(decoding: key.dropFirst(StoreKey.settingPrefix.count), as: UTF8.self),
                    String(decoding: value, as: UTF8.self)
                ))
        } else if key.starts(with: StoreKey.historyPrefix) {
            let shard = ShardID(StoreKey.number(of: key))
            histories.append(
                try ByteReader.decode(value) { (reader) throws(DatabaseError) in
                    try ShardHistory(shard, from: &reader)
                })
        } else if key.starts(with: StoreKey.coldPrefix) {
            let upper = ShardID(StoreKey.number(of: key))
            cold.append(
                try ByteReader.decode(value) { (reader) throws(DatabaseError) in
                    try RuleState.ColdSeam(upper, from: &reader)
                })
        } else if key.starts(with: StoreKey.weightPrefix) {
            let weight = try ByteReader.decode(value) { (reader) throws(DatabaseError) in
                try reader.readUInt8()
            }
            weights.append((NodeID(StoreKey.number(of: key)), weight))
        } else if key.starts(with: StoreKey.maintenancePrefix) {
            let until = try ByteReader.decode(value) { (reader) throws(DatabaseError) in
                try reader.readUInt64()
            }
            maintenances.append((NodeID(StoreKey.number(of: key)), until))
        } else {
            throw DatabaseError(.malformed, "not a record of this version")
        }
    }
}

extension MetadataTransaction {
    mutating func put(
        _ key: Bytes, lease: LeaseID = .none, _ body: (inout ByteWriter) -> Void
    ) {
        var writer = ByteWriter()
        body(&writer)
        changes.append(.put(key: key, value: writer.take(), lease: lease))
    }

    mutating func put(_ node: Node) { put(StoreKey.node(node.id)) { node.encode(into: &$0) } }
    mutating func put(_ record: GroupRecord) {
        put(StoreKey.group(record.group.id)) { record.encode(into: &$0) }
    }
    mutating func put(_ table: Table) { put(StoreKey.table(table.id)) { table.encode(into: &$0) } }
    mutating func put(_ shard: Shard) { put(StoreKey.shard(shard.id)) { shard.encode(into: &$0) } }
    mutating func put(_ ids: IDAllocators) { put(StoreKey.ids) { ids.encode(into: &$0) } }
}
