// Records by id, walked in order of id.

import KVBase

/// Records in sorted chunks: found by binary search, set and removed in the time of one chunk, so
/// that 200,000 of them can come and go. A copy shares every chunk that was not changed since.
/// Inlinable, so that other modules use it with their types and not with any.
///
/// Invariants: no chunk is empty; ids rise strictly within a chunk and from chunk to chunk.
public struct SortedRecords<ID: IntegerIdentity, Record> {
    @usableFromInline
    struct Chunk {
        @usableFromInline var ids: [ID]
        @usableFromInline var records: [Record]

        @inlinable
        init(ids: [ID], records: [Record]) {
            self.ids = ids
            self.records = records
        }
    }

    @inlinable static var chunkMax: Int { 128 }

    @usableFromInline var chunks: [Chunk] = []
    @usableFromInline var recordCount = 0
    @inlinable
    public var count: Int { recordCount }

    @inlinable
    public init() {}

    @inlinable
    public var isEmpty: Bool { count == 0 }
    @inlinable
    public var last: Record? { chunks.last?.records.last }

    /// All records in order of id.
    @inlinable
    public var elements: Elements { Elements(chunks: chunks, count: count) }

    @inlinable
    public subscript(id: ID) -> Record? {
        let (chunk, slot, isThere) = find(id)
        return isThere ? chunks[chunk].records[slot] : nil
    }

    @inlinable
    public mutating func set(_ record: Record, for id: ID) {
        let (chunk, slot, isThere) = find(id)
        if isThere {
            chunks[chunk].records[slot] = record
            return
        }
        recordCount += 1
        guard !chunks.isEmpty else {
            chunks.append(Chunk(ids: [id], records: [record]))
            return
        }
        chunks[chunk].ids.insert(id, at: slot)
        chunks[chunk].records.insert(record, at: slot)
        if chunks[chunk].ids.count > Self.chunkMax { split(chunk) }
    }

    @discardableResult
    @inlinable
    public mutating func remove(_ id: ID) -> Record? {
        let (chunk, slot, isThere) = find(id)
        guard isThere else { return nil }
        recordCount -= 1
        chunks[chunk].ids.remove(at: slot)
        let record = chunks[chunk].records.remove(at: slot)
        if chunks[chunk].ids.isEmpty {
            chunks.remove(at: chunk)
        } else if chunk > 0 {
            unite(chunk - 1)
        }
        return record
    }

    /// Changes a record in place; false when there is none.
    @discardableResult
    @inlinable
    public mutating func update(_ id: ID, _ body: (inout Record) -> Void) -> Bool {
        let (chunk, slot, isThere) = find(id)
        guard isThere else { return false }
        body(&chunks[chunk].records[slot])
        return true
    }

    // MARK: Chunks

    /// Where the record of `id` is, or would be inserted.
    @inlinable
    func find(_ id: ID) -> (chunk: Int, slot: Int, isThere: Bool) {
        // The last chunk whose first id is at most `id`, or the first one. Ids are issued in rising
        // order, so it is often the last.
        var low = 0
        var high = chunks.count
        if let last = chunks.last, last.ids[0] <= id {
            low = chunks.count
        }
        while low < high {
            let middle = (low + high) / 2
            if chunks[middle].ids[0] <= id { low = middle + 1 } else { high = middle }
        }
        let chunk = max(0, low - 1)
        guard chunk < chunks.count else { return (0, 0, false) }
        return chunks[chunk].ids.withUnsafeBufferPointer { ids in
            var low = 0
            var high = ids.count
            while low < high {
                let middle = (low + high) / 2
                if ids[middle] < id { low = middle + 1 } else { high = middle }
            }
            return (chunk, low, low < ids.count && ids[low] == id)
        }
    }

    /// Halves a full chunk; the last one keeps all but its newest, since ids mostly rise.
    @inlinable
    mutating func split(_ chunk: Int) {
        let count = chunks[chunk].ids.count
        let keep = chunk + 1 == chunks.count ? count - 1 : count / 2
        let tail = Chunk(
            ids: Array(chunks[chunk].ids[keep...]), records: Array(chunks[chunk].records[keep...]))
        chunks[chunk].ids.removeSubrange(keep...)
        chunks[chunk].records.removeSubrange(keep...)
        chunks.insert(tail, at: chunk + 1)
    }

    /// Puts two neighbours together when they fill half a chunk at most.
    @inlinable
    mutating func unite(_ chunk: Int) {
        guard chunk + 1 < chunks.count,
            chunks[chunk].ids.count + chunks[chunk + 1].ids.count <= Self.chunkMax / 2
        else { return }
        let tail = chunks.remove(at: chunk + 1)
        chunks[chunk].ids += tail.ids
        chunks[chunk].records += tail.records
    }
}

extension SortedRecords {
    /// The records as they were when this was asked for.
    public struct Elements: BidirectionalCollection {
        public struct Index: Comparable {
            @usableFromInline var chunk: Int
            @usableFromInline var slot: Int

            @inlinable
            init(chunk: Int, slot: Int) {
                self.chunk = chunk
                self.slot = slot
            }

            @inlinable
            public static func < (left: Index, right: Index) -> Bool {
                (left.chunk, left.slot) < (right.chunk, right.slot)
            }
        }

        public struct Iterator: IteratorProtocol {
            @usableFromInline let chunks: [Chunk]
            @usableFromInline var chunk = 0
            @usableFromInline var slot = 0

            @inlinable
            init(chunks: [Chunk]) { self.chunks = chunks }

            @inlinable
            public mutating func next() -> Record? {
                guard chunk < chunks.count else { return nil }
                let record = chunks[chunk].records[slot]
                slot += 1
                if slot == chunks[chunk].records.count {
                    chunk += 1
                    slot = 0
                }
                return record
            }
        }

        @usableFromInline let chunks: [Chunk]
        public let count: Int

        @inlinable
        init(chunks: [Chunk], count: Int) {
            self.chunks = chunks
            self.count = count
        }

        @inlinable
        public var isEmpty: Bool { count == 0 }
        @inlinable
        public var startIndex: Index { Index(chunk: 0, slot: 0) }
        @inlinable
        public var endIndex: Index { Index(chunk: chunks.count, slot: 0) }
        @inlinable
        public subscript(index: Index) -> Record { chunks[index.chunk].records[index.slot] }
        @inlinable
        public func makeIterator() -> Iterator { Iterator(chunks: chunks) }

        @inlinable
        public func index(after index: Index) -> Index {
            index.slot + 1 < chunks[index.chunk].records.count
                ? Index(chunk: index.chunk, slot: index.slot + 1)
                : Index(chunk: index.chunk + 1, slot: 0)
        }

        @inlinable
        public func index(before index: Index) -> Index {
            index.slot > 0
                ? Index(chunk: index.chunk, slot: index.slot - 1)
                : Index(chunk: index.chunk - 1, slot: chunks[index.chunk - 1].records.count - 1)
        }
    }
}

extension SortedRecords: Sendable where Record: Sendable {}
extension SortedRecords.Chunk: Sendable where Record: Sendable {}
extension SortedRecords.Elements: Sendable where Record: Sendable {}

extension SortedRecords.Elements: Equatable where Record: Equatable {
    public static func == (left: Self, right: Self) -> Bool { left.elementsEqual(right) }
}

extension SortedRecords.Elements: ExpressibleByArrayLiteral {
    /// So that `records?.elements ?? []` walks over nothing where there are none.
    @inlinable
    public init(arrayLiteral records: Record...) {
        self.init(
            chunks: records.isEmpty ? [] : [.init(ids: [], records: records)], count: records.count)
    }
}
