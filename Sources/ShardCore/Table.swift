// Tables: how their keys are spread over shards, and on what kind of groups they live.

import KVBase

/// The storage engine of a group, and so of the tables placed on it.
public enum EngineKind: UInt8, Sendable, CaseIterable, CustomStringConvertible {
    /// Log-structured merge tree (RocksDB): write heavy.
    case lsm = 1
    /// B+ tree (LMDB): read heavy.
    case btree = 2

    public var description: String { self == .lsm ? "LSM" : "BTREE" }
}

/// How a table's keys become routed keys, whose order the shards cut.
public enum Partitioning: Hashable, Sendable, CustomStringConvertible {
    /// The routed key is the key: neighbours stay together, lists touch few shards.
    case range
    /// Consistent hashing: the routed key is a 2-byte virtual range, then the key. Each virtual
    /// range is a shard of its own, so that adding a group moves only its share. 2...4096.
    case hash(virtualRanges: UInt16)

    public var description: String {
        switch self {
        case .range: "RANGE"
        case .hash: "HASH"
        }
    }

    public static let virtualRangesDefault: UInt16 = 64
    public static let virtualRangeBounds: ClosedRange<UInt16> = 2...4_096

    /// The virtual range that a key belongs to; 0 for RANGE tables.
    @inlinable
    public func virtualRange(of key: UnsafeRawBufferPointer) -> UInt16 {
        switch self {
        case .range: return 0
        case .hash(let count):
            // Multiply-shift keeps each virtual range a contiguous piece of the hash space.
            return UInt16(((stableHash(key) >> 32) &* UInt64(count)) >> 32)
        }
    }

    /// The routed key of `key`, owned.
    public func routedKey(_ key: UnsafeRawBufferPointer) -> Bytes {
        switch self {
        case .range: return Bytes(key)
        case .hash:
            let range = virtualRange(of: key)
            return [UInt8(range >> 8), UInt8(range & 0xFF)] + Bytes(key)
        }
    }

    /// The routed keys of one virtual range of a HASH table.
    public func routedRange(ofVirtualRange range: UInt16) -> KeyRange {
        guard case .hash(let count) = self else { return .all }
        func boundary(_ value: UInt16) -> Bytes { [UInt8(value >> 8), UInt8(value & 0xFF)] }
        return KeyRange(
            start: range == 0 ? [] : boundary(range),
            end: range + 1 == count ? nil : boundary(range + 1))
    }

    public func encode(into writer: inout ByteWriter) {
        switch self {
        case .range: writer.write(UInt16(0))
        case .hash(let count): writer.write(count)
        }
    }

    public init(from reader: inout ByteReader) throws(DatabaseError) {
        let count = try reader.readUInt16()
        if count == 0 {
            self = .range
        } else if Self.virtualRangeBounds.contains(count) {
            self = .hash(virtualRanges: count)
        } else {
            throw DatabaseError(.malformed, "\(count) virtual ranges")
        }
    }
}

/// A table as the cluster map holds it.
public struct Table: Hashable, Sendable {
    public enum State: UInt8, Sendable {
        /// Its shards are being created; not yet visible to clients.
        case creating = 1
        case active = 2
        /// Refused to clients; its shards are being removed.
        case dropping = 3
    }

    public var id: TableID
    public var name: String
    public var partitioning: Partitioning
    public var engine: EngineKind
    /// Replicas of the groups it lives on: 3 or 5 (1 for development clusters).
    public var replicas: UInt8
    public var state: State

    public init(
        id: TableID, name: String, partitioning: Partitioning, engine: EngineKind, replicas: UInt8,
        state: State
    ) {
        self.id = id
        self.name = name
        self.partitioning = partitioning
        self.engine = engine
        self.replicas = replicas
        self.state = state
    }

    public func encode(into writer: inout ByteWriter) {
        writer.write(id)
        writer.write(name)
        partitioning.encode(into: &writer)
        writer.write(engine.rawValue)
        writer.write(replicas)
        writer.write(state.rawValue)
    }

    public init(from reader: inout ByteReader) throws(DatabaseError) {
        id = try reader.read()
        name = try reader.readString()
        partitioning = try Partitioning(from: &reader)
        engine = try reader.readEnum()
        replicas = try reader.readUInt8()
        state = try reader.readEnum()
    }
}
