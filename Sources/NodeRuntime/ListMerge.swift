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
        /// What a former owner holds of the range, for a shard that is being copied: at each key
        /// the higher sequencer counts, a tombstone's too.
        var overlay: ArraySlice<ShardRecords.Record> = []
        /// The last key for which the former owner's record is known; nil: for all of them.
        var barrier: Bytes?

        /// The key that comes next; nil at the end.
        var next: Bytes? {
            position < chunk.count ? chunk[position].key : isAtEnd ? barrier : nil
        }
    }

    private let engine: any StorageEngine
    private let request: ListRequest
    private var cursors: [Cursor] = []
    private let chunkRecords: Int
    /// Most bytes of a page, and of what is read ahead of one shard. One record may exceed them.
    private let pageBytes: Int
    private let chunkBytes: Int

    /// `overlays`: what former owners hold, by the start of the range in `ranges`.
    init(
        engine: any StorageEngine, store: StoreID, parts: [OwnedShard], request: ListRequest,
        overlays: [Bytes: ShardRecords] = [:]
    ) {
        self.engine = engine
        self.request = request
        chunkRecords =
            parts.count == 1
            ? Int(request.limit) + 1 : max(16, 2 * Int(request.limit) / parts.count)
        pageBytes = max(1, min(Int(request.bytesMax), Limits.listPageBytesMax))
        chunkBytes = max(pageBytes / max(1, parts.count), min(pageBytes, 16 << 10))
        for owned in parts {
            for (range, prefixCount) in Self.keyRanges(of: owned, request) {
                var cursor = Cursor(
                    range: StorageLayout.range(store, owned.shard.table, range),
                    prefixCount: StorageLayout.keyPrefixByteCount + prefixCount)
                if let overlay = overlays[range.start] {
                    cursor.overlay = overlay.records[...]
                    if overlay.to != nil, let last = overlay.records.last?.routedKey {
                        cursor.barrier = Bytes(last[prefixCount...])
                        cursor.range.end = StorageLayout.key(store, owned.shard.table, last + [0])
                    }
                }
                cursors.append(cursor)
            }
        }
    }

    /// The routed ranges that a page reads of a shard.
    static func ranges(of owned: OwnedShard, _ request: ListRequest) -> [KeyRange] {
        keyRanges(of: owned, request).map { $0.0 }
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
            if cursors[next].position == cursors[next].chunk.count {
                page.hasMore = true
                page.lastKey = cursors[next].barrier ?? page.lastKey
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
        var best: (position: Int, key: Bytes)?
        for (position, cursor) in cursors.enumerated() {
            guard let key = cursor.next else { continue }
            if let current = best, compareBytes(key, current.key) >= 0 { continue }
            best = (position, key)
        }
        return best?.position
    }

    private mutating func fill(_ position: Int) throws(DatabaseError) {
        guard !cursors[position].isAtEnd else { return }
        var chunk: [ListedRecord] = []
        var bytes = 0
        var last: Bytes?
        let prefixCount = cursors[position].prefixCount
        let range = cursors[position].range
        var isFull = false
        var overlay = cursors[position].overlay
        let request = request
        func add(_ former: ShardRecords.Record) {
            guard !former.isTombstone else { return }
            chunk.append(
                ListedRecord(
                    key: Bytes(
                        former.routedKey[(prefixCount - StorageLayout.keyPrefixByteCount)...]),
                    value: request.isCountOnly ? [] : former.value,
                    sequencer: former.sequencer))
            bytes += former.routedKey.count + former.value.count
        }
        try engine.scan(range) { key, value in
            if chunk.count >= chunkRecords || bytes >= chunkBytes {
                isFull = true
                return false
            }
            last = Bytes(key)
            guard let record = StoredRecord(value) else { return true }
            let routedKey = UnsafeRawBufferPointer(
                rebasing: key[StorageLayout.keyPrefixByteCount...])
            while let former = overlay.first {
                let order = former.routedKey.withUnsafeBytes { compareBytes($0, routedKey) }
                if order > 0 { break }
                overlay.removeFirst()
                if order == 0, former.sequencer <= record.sequencer { break }
                add(former)
                if order == 0 { return true }
            }
            if !record.isTombstone {
                chunk.append(
                    ListedRecord(
                        key: Bytes(key[prefixCount...]),
                        value: request.isCountOnly ? [] : Bytes(record.value),
                        sequencer: record.sequencer))
                bytes += key.count + value.count
            }
            return true
        }
        if !isFull {
            for former in overlay { add(former) }
            overlay = []
        }
        cursors[position].overlay = overlay
        cursors[position].chunk = chunk
        cursors[position].position = 0
        if isFull, let last {
            cursors[position].range.start = last + [0]
        } else {
            cursors[position].isAtEnd = true
        }
    }

    /// The routed ranges of a shard that hold the keys of the request, with the routed prefix's
    /// length.
    /// Empty ranges are left out.
    private static func keyRanges(
        of owned: OwnedShard, _ request: ListRequest
    ) -> [(KeyRange, Int)] {
        // The first key after `from` in byte order is `from` with a zero byte behind it.
        let from = request.isFromExclusive ? request.from + [0] : request.from
        let to = request.to
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
