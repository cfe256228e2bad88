// Records on their way to the disk: encoded once, into the memory that is written.

import Glibc
import KVBase
import ReplicationCore

/// A growing buffer of encoded records. Owned by one thread at a time: the owner stages into it,
/// hands it to the writer, and gets it back empty.
final class LogBuffer: @unchecked Sendable {
    private(set) var base: UnsafeMutableRawPointer
    private(set) var capacity: Int
    private(set) var count = 0
    private(set) var records: UInt32 = 0

    init(capacity: Int = 64 << 10) {
        self.capacity = capacity
        base = .allocate(byteCount: capacity, alignment: 64)
    }

    deinit { base.deallocate() }

    var isEmpty: Bool { count == 0 }
    var bytes: UnsafeRawBufferPointer { UnsafeRawBufferPointer(start: base, count: count) }

    func removeAll() {
        count = 0
        records = 0
    }

    func append(_ entry: LogEntry, group: GroupID, replica: ReplicaID) {
        appendHead(.entry, entry.kind.rawValue, 16 + entry.payload.count, group, replica)
        append(entry.term.rawValue)
        append(entry.index.rawValue)
        entry.payload.withUnsafeBytes { payload in
            guard let source = payload.baseAddress else { return }
            (base + count).copyMemory(from: source, byteCount: payload.count)
            count += payload.count
        }
    }

    func append(_ state: HardState, group: GroupID, replica: ReplicaID) {
        appendHead(.hardState, 0, 12, group, replica)
        append(state.term.rawValue)
        append(state.vote.rawValue)
    }

    func append(snapshot position: LogPosition, group: GroupID, replica: ReplicaID) {
        appendHead(.snapshot, 0, 16, group, replica)
        append(position.index.rawValue)
        append(position.term.rawValue)
    }

    /// A record without content: `.created` or `.removed`.
    func append(_ kind: RecordKind, group: GroupID, replica: ReplicaID) {
        appendHead(kind, 0, 0, group, replica)
    }

    func append(
        _ state: HardState, compacted: LogPosition, group: GroupID, replica: ReplicaID
    ) {
        appendHead(.state, 0, 28, group, replica)
        append(state.term.rawValue)
        append(state.vote.rawValue)
        append(compacted.index.rawValue)
        append(compacted.term.rawValue)
    }

    /// Length of the content (4 bytes), kind, entry kind, two zero bytes, group, replica.
    private func appendHead(
        _ kind: RecordKind, _ entryKind: UInt8, _ contentBytes: Int, _ group: GroupID,
        _ replica: ReplicaID
    ) {
        reserve(LogFormat.recordHeaderBytes + contentBytes)
        append(UInt32(contentBytes))
        append(kind.rawValue)
        append(entryKind)
        append(UInt16(0))
        append(group.rawValue)
        append(replica.rawValue)
        records += 1
    }

    private func append<T: FixedWidthInteger>(_ value: T) {
        base.storeBytes(of: value.littleEndian, toByteOffset: count, as: T.self)
        count += MemoryLayout<T>.size
    }

    private func reserve(_ more: Int) {
        guard count + more > capacity else { return }
        capacity = max(capacity * 2, count + more)
        let larger = UnsafeMutableRawPointer.allocate(byteCount: capacity, alignment: 64)
        larger.copyMemory(from: base, byteCount: count)
        base.deallocate()
        base = larger
    }
}
