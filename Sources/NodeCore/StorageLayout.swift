// How records and a replica's own state lie in an engine.
//
// Record:  key   = store 4 (big-endian) | table 4 (big-endian) | routed key
//          value = sequencer 16 | flags 1 | value
// State:   key   = store 4 | FF FF FF FF | one letter
// Catalog: key   = 00 00 00 00 | "g" | group 4 | replica 4, value = store 4
// Removed: key   = 00 00 00 00 | "x" | group 4 | replica 4, value = ranges still to be deleted
//
// A *store* is one replica's place in the engine of its disk. A snapshot is received into a new
// store, and the catalog switches to it in one batch. Overhead per record: 8 + 17 bytes, 2 more in
// HASH tables, within the 30 that DESIGN allows.

import KVBase
import ReplicationCore
import ShardCore

public struct StoreID: IntegerIdentity {
    public let rawValue: UInt32
    public init(rawValue: UInt32) { self.rawValue = rawValue }
}

public enum StorageLayout {
    public static let keyPrefixByteCount = 8
    public static let recordHeaderByteCount = Sequencer.byteCount + 1
    /// Record overhead in bytes, the virtual range of HASH tables included.
    public static let recordOverheadMax = keyPrefixByteCount + 2 + recordHeaderByteCount

    /// Flag bits of a record.
    public static let tombstoneFlag: UInt8 = 1

    /// The key of a routed key, owned: for range bounds. Hot paths use `StorageKey`.
    public static func key(_ store: StoreID, _ table: TableID, _ routedKey: Bytes) -> Bytes {
        bigEndian(store.rawValue) + bigEndian(table.rawValue) + routedKey
    }

    /// All records of a routed range.
    public static func range(_ store: StoreID, _ table: TableID, _ range: KeyRange) -> KeyRange {
        KeyRange(
            start: key(store, table, range.start),
            end: range.end.map { key(store, table, $0) }
                ?? key(store, TableID(table.rawValue + 1), []))
    }

    /// Everything in a store, state included.
    public static func range(_ store: StoreID) -> KeyRange {
        KeyRange(start: bigEndian(store.rawValue), end: bigEndian(store.rawValue + 1))
    }

    /// The store that a key lies in; nil for a key that is none of this layout.
    public static func store(of key: UnsafeRawBufferPointer) -> StoreID? {
        guard key.count >= 4 else { return nil }
        return StoreID(UInt32(bigEndian: key.loadUnaligned(as: UInt32.self)))
    }

    /// The applied record: index, term, floor.
    public static func appliedKey(_ store: StoreID) -> Bytes { stateKey(store, "a") }
    /// The encoded `GroupState`.
    public static func stateKey(_ store: StoreID) -> Bytes { stateKey(store, "s") }
    /// `GroupState.encodeCursors`.
    public static func cursorsKey(_ store: StoreID) -> Bytes { stateKey(store, "c") }
    /// Ranges whose tombstones are still to be deleted.
    public static func sweepKey(_ store: StoreID) -> Bytes { stateKey(store, "t") }
    /// Ranges whose records are still to be deleted.
    public static func garbageKey(_ store: StoreID) -> Bytes { stateKey(store, "g") }

    public static func catalogKey(_ group: GroupID, _ replica: ReplicaID) -> Bytes {
        catalogPrefix + bigEndian(group.rawValue) + bigEndian(replica.rawValue)
    }

    public static let catalogRange = KeyRange(
        start: catalogPrefix, end: [0, 0, 0, 0, UInt8(ascii: "g") + 1])

    /// Stands for ever for a replica that was removed: it is never created again.
    public static func tombstoneKey(_ group: GroupID, _ replica: ReplicaID) -> Bytes {
        tombstonePrefix + bigEndian(group.rawValue) + bigEndian(replica.rawValue)
    }

    public static let tombstoneRange = KeyRange(
        start: tombstonePrefix, end: [0, 0, 0, 0, UInt8(ascii: "x") + 1])

    /// Group and replica of a catalog or tombstone key; nil when it is none.
    public static func parseCatalogKey(_ key: UnsafeRawBufferPointer) -> (GroupID, ReplicaID)? {
        guard key.count == catalogPrefix.count + 8 else { return nil }
        func integer(_ offset: Int) -> UInt32 {
            UInt32(bigEndian: key.loadUnaligned(fromByteOffset: offset, as: UInt32.self))
        }
        let start = catalogPrefix.count
        return (GroupID(integer(start)), ReplicaID(integer(start + 4)))
    }

    public static func encodeApplied(_ position: LogPosition, floor: Sequencer) -> Bytes {
        var writer = ByteWriter(reserving: 32)
        writer.write(position.index)
        writer.write(position.term)
        writer.write(floor)
        return writer.bytes
    }

    public static func decodeApplied(_ bytes: Bytes) throws(DatabaseError) -> (
        LogPosition, floor: Sequencer
    ) {
        try ByteReader.decode(bytes) { (reader) throws(DatabaseError) in
            let index: LogIndex = try reader.read()
            let term: Term = try reader.read()
            return (LogPosition(index: index, term: term), try reader.readSequencer())
        }
    }

    private static let catalogPrefix: Bytes = [0, 0, 0, 0, UInt8(ascii: "g")]
    private static let tombstonePrefix: Bytes = [0, 0, 0, 0, UInt8(ascii: "x")]

    private static func stateKey(_ store: StoreID, _ letter: Unicode.Scalar) -> Bytes {
        bigEndian(store.rawValue) + bigEndian(UInt32.max) + [UInt8(ascii: letter)]
    }

    static func bigEndian(_ value: UInt32) -> Bytes {
        withUnsafeBytes(of: value.bigEndian) { Bytes($0) }
    }
}

/// A record's value where it lies.
public struct StoredRecord {
    public var sequencer: Sequencer
    public var isTombstone: Bool
    public var value: UnsafeRawBufferPointer

    /// Nil when the bytes are too short to be a record: the engine's content is damaged.
    @inlinable
    public init?(_ bytes: UnsafeRawBufferPointer) {
        guard bytes.count >= StorageLayout.recordHeaderByteCount else { return nil }
        sequencer = Sequencer(
            time: UInt64(littleEndian: bytes.loadUnaligned(as: UInt64.self)),
            counter: UInt32(
                littleEndian: bytes.loadUnaligned(fromByteOffset: 8, as: UInt32.self)),
            node: NodeID(
                UInt32(littleEndian: bytes.loadUnaligned(fromByteOffset: 12, as: UInt32.self))))
        isTombstone = bytes[16] & StorageLayout.tombstoneFlag != 0
        value = UnsafeRawBufferPointer(
            rebasing: bytes[StorageLayout.recordHeaderByteCount...])
    }
}

/// A buffer in which storage keys are put together without allocation. One per event loop.
public final class StorageKey {
    private let buffer: UnsafeMutableRawBufferPointer
    private var count = 0

    public init() {
        buffer = .allocate(
            byteCount: StorageLayout.keyPrefixByteCount + 2 + Limits.keyBytesMax, alignment: 8)
    }

    deinit { buffer.deallocate() }

    /// The whole key; valid until the next `set`.
    @inlinable
    public var bytes: UnsafeRawBufferPointer { content }

    /// The routed key within it; valid until the next `set`.
    public var routedKey: UnsafeRawBufferPointer {
        UnsafeRawBufferPointer(rebasing: content[StorageLayout.keyPrefixByteCount...])
    }

    @usableFromInline
    var content: UnsafeRawBufferPointer { UnsafeRawBufferPointer(rebasing: buffer[..<count]) }

    /// Builds the key of a record. Precondition: `key` is within the limit.
    public func set(
        _ store: StoreID, _ table: TableID, _ partitioning: Partitioning,
        key: UnsafeRawBufferPointer
    ) {
        buffer.storeBytes(of: store.rawValue.bigEndian, toByteOffset: 0, as: UInt32.self)
        buffer.storeBytes(of: table.rawValue.bigEndian, toByteOffset: 4, as: UInt32.self)
        var offset = StorageLayout.keyPrefixByteCount
        if case .hash = partitioning {
            let range = partitioning.virtualRange(of: key)
            buffer.storeBytes(of: range.bigEndian, toByteOffset: offset, as: UInt16.self)
            offset += 2
        }
        count = offset + key.count
        UnsafeMutableRawBufferPointer(rebasing: buffer[offset..<count]).copyMemory(from: key)
    }
}
