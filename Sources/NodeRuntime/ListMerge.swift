// One page of a sorted list over several shards of a group.

import KVBase
import NodeCore
import ShardCore
import StorageAPI

/// Merges the shards' records by key. Each shard (each virtual range of a HASH table) is read ahead
/// in small chunks, so a page over many shards reads little more than it returns.
struct ListMerge {
    private struct Cursor {
        var range: KeyRange
        var prefixCount: Int
        var chunk: [ListedRecord] = []
        var position = 0
        var isAtEnd = false
    }

    private let engine: any StorageEngine
    private let request: ListRequest
    private var cursors: [Cursor] = []
    private let chunkRecords: Int
    /// Most bytes of a page, and of what is read ahead of one shard. One record may exceed them.
    private let pageBytes: Int
    private let chunkBytes: Int

    init(engine: any StorageEngine, store: StoreID, parts: [OwnedShard], request: ListRequest) {
        self.engine = engine
        self.request = request
        chunkRecords =
            parts.count == 1
            ? Int(request.limit) + 1 : max(16, 2 * Int(request.limit) / parts.count)
        pageBytes = max(1, min(Int(request.bytesMax), Limits.listPageBytesMax))
        chunkBytes = max(pageBytes / max(1, parts.count), min(pageBytes, 16 << 10))
        // The first key after `from` in byte order is `from` with a zero byte behind it.
        let from = request.isFromExclusive ? request.from + [0] : request.from
        for owned in parts {
            for (range, prefixCount) in Self.keyRanges(of: owned, from: from, to: request.to) {
                cursors.append(
                    Cursor(
                        range: StorageLayout.range(store, owned.shard.table, range),
                        prefixCount: StorageLayout.keyPrefixByteCount + prefixCount))
            }
        }
    }

    consuming func run() throws(DatabaseError) -> ListPage {
        var page = ListPage(count: 0, hasMore: false, lastKey: [], records: [])
        var bytes = 0
        for position in cursors.indices { try fill(position) }
        while let next = lowest() {
            if page.count >= request.limit || bytes >= pageBytes {
                page.hasMore = true
                break
            }
            let record = cursors[next].chunk[cursors[next].position]
            cursors[next].position += 1
            if cursors[next].position == cursors[next].chunk.count { try fill(next) }
            page.count += 1
            page.lastKey = record.key
            if !request.isCountOnly {
                bytes += record.key.count + record.value.count
                page.records.append(record)
            }
        }
        return page
    }

    private func lowest() -> Int? {
        var best: Int?
        for (position, cursor) in cursors.enumerated() where cursor.position < cursor.chunk.count {
            guard let current = best else {
                best = position
                continue
            }
            let order = compareBytes(
                cursor.chunk[cursor.position].key,
                cursors[current].chunk[cursors[current].position].key)
            if order < 0 { best = position }
        }
        return best
    }

    private mutating func fill(_ position: Int) throws(DatabaseError) {
        guard !cursors[position].isAtEnd else { return }
        var chunk: [ListedRecord] = []
        var bytes = 0
        var last: Bytes?
        let prefixCount = cursors[position].prefixCount
        let range = cursors[position].range
        var isFull = false
        try engine.scan(range) { key, value in
            if chunk.count >= chunkRecords || bytes >= chunkBytes {
                isFull = true
                return false
            }
            last = Bytes(key)
            if let record = StoredRecord(value), !record.isTombstone {
                chunk.append(
                    ListedRecord(
                        key: Bytes(key[prefixCount...]),
                        value: request.isCountOnly ? [] : Bytes(record.value),
                        sequencer: record.sequencer))
                bytes += key.count + value.count
            }
            return true
        }
        cursors[position].chunk = chunk
        cursors[position].position = 0
        if isFull, let last {
            cursors[position].range.start = last + [0]
        } else {
            cursors[position].isAtEnd = true
        }
    }

    /// The routed ranges of a shard that hold the keys `from..<to`, with the routed prefix's length.
    /// Empty ranges are left out.
    private static func keyRanges(
        of owned: OwnedShard, from: Bytes, to: Bytes?
    ) -> [(KeyRange, Int)] {
        switch owned.partitioning {
        case .range:
            var range = owned.shard.range
            if compareBytes(range.start, from) < 0 { range.start = from }
            if let to, range.end.map({ compareBytes(to, $0) < 0 }) ?? true { range.end = to }
            return range.isEmpty ? [] : [(range, 0)]
        case .hash(let count):
            var ranges: [(KeyRange, Int)] = []
            for virtual in virtualRanges(of: owned.shard.range, count: count) {
                let whole = owned.partitioning.routedRange(ofVirtualRange: virtual)
                let prefix: Bytes = [UInt8(virtual >> 8), UInt8(virtual & 0xFF)]
                let range = KeyRange(
                    start: prefix + from, end: to.map { prefix + $0 } ?? whole.end)
                if !range.isEmpty { ranges.append((range, 2)) }
            }
            return ranges
        }
    }
}

/// The virtual ranges that a shard of a HASH table consists of: shards are cut at their boundaries.
private func virtualRanges(of range: KeyRange, count: UInt16) -> Range<UInt16> {
    func virtualRange(at boundary: Bytes) -> UInt16 {
        boundary.count < 2 ? 0 : UInt16(boundary[0]) << 8 | UInt16(boundary[1])
    }
    let first = virtualRange(at: range.start)
    return first..<max(first, range.end.map(virtualRange) ?? count)
}

extension EngineReader {
    func scan(
        _ range: KeyRange,
        _ body: (_ key: UnsafeRawBufferPointer, _ value: UnsafeRawBufferPointer) -> Bool
    ) throws(DatabaseError) {
        try range.start.withRawBytes { (start) throws(DatabaseError) in
            guard let end = range.end else { return try scan(from: start, to: nil, body) }
            try end.withRawBytes { (end) throws(DatabaseError) in
                try scan(from: start, to: end, body)
            }
        }
    }
}
