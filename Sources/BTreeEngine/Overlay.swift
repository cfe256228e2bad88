// Changes that are not in the tree yet.

import KVBase
import StorageAPI

/// What a layer knows of a key.
enum LayerAnswer<Value> {
    case value(Value)
    /// Deleted here: layers below do not count.
    case deleted
    /// Nothing: the layer below knows.
    case unknown
}

/// A layer of changes above the tree: records, tombstones and deleted ranges.
///
/// Invariants: `deleted` is sorted, its ranges neither overlap nor touch; a record or tombstone in
/// `records` is newer than any deleted range around it.
struct Overlay: Sendable {
    static let valueTag: UInt8 = 1
    static let tombstoneTag: UInt8 = 0

    /// Key to tag and value.
    private(set) var records = SortedMap()
    private(set) var deleted: [KeyRange] = []

    var isEmpty: Bool { records.isEmpty && deleted.isEmpty }

    var memoryBytes: Int {
        records.memoryBytes
            + deleted.reduce(0) { $0 + 96 + $1.start.count + ($1.end?.count ?? 0) }
    }

    mutating func apply(_ batch: EngineBatch) {
        batch.forEachOperation { operation in
            switch operation {
            case .put(let key, let value):
                withUnsafeBytes(of: Self.valueTag) { records.put(key, header: $0, value) }
            case .delete(let key):
                withUnsafeBytes(of: Self.tombstoneTag) { records.put(key, $0) }
            case .deleteRange(let from, let to):
                records.removeRange(from: from, to: to)
                delete(KeyRange(start: Bytes(from), end: Bytes(to)))
            }
        }
    }

    /// Lends the value of `key`.
    func get<R>(
        _ key: UnsafeRawBufferPointer, _ body: (LayerAnswer<UnsafeRawBufferPointer>) -> R
    ) -> R {
        records.get(key) { tagged in
            if let tagged { return body(Self.answer(tagged)) }
            return body(deletedRange(around: key) != nil ? .deleted : .unknown)
        }
    }

    static func answer(_ tagged: UnsafeRawBufferPointer) -> LayerAnswer<UnsafeRawBufferPointer> {
        tagged[0] == valueTag
            ? .value(UnsafeRawBufferPointer(rebasing: tagged[1...])) : .deleted
    }

    /// The deleted range that holds `key`.
    func deletedRange(around key: UnsafeRawBufferPointer) -> KeyRange? {
        guard !deleted.isEmpty else { return nil }
        var low = 0
        var high = deleted.count
        while low < high {
            let middle = (low + high) / 2
            if deleted[middle].start.withUnsafeBytes({ compareBytes($0, key) }) <= 0 {
                low = middle + 1
            } else {
                high = middle
            }
        }
        guard low > 0, deleted[low - 1].contains(key) else { return nil }
        return deleted[low - 1]
    }

    /// Adds a deleted range and joins those it meets. The ranges' ends are never nil.
    private mutating func delete(_ range: KeyRange) {
        var joined = range
        let first =
            deleted.firstIndex { compareBytes($0.end!, range.start) >= 0 } ?? deleted.count
        var last = first
        while last < deleted.count, compareBytes(deleted[last].start, range.end!) <= 0 {
            if compareBytes(deleted[last].start, joined.start) < 0 {
                joined.start = deleted[last].start
            }
            if compareBytes(deleted[last].end!, joined.end!) > 0 { joined.end = deleted[last].end }
            last += 1
        }
        deleted.replaceSubrange(first..<last, with: [joined])
    }
}
