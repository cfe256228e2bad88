// A sorted map of byte strings in chunks of sorted arrays: one allocation per record, logarithmic
// look-up, and copies that share every chunk that was not changed since.

/// Byte strings by byte string, in the order of `compareBytes`.
///
/// A copy is a consistent view: it costs one retained array at once, and a copy of the chunk list
/// at the first change afterwards.
///
/// Invariants: no chunk is empty; keys rise strictly within a chunk and from chunk to chunk.
public struct SortedMap: Sendable {
    /// One record in one allocation: the key, then the value.
    struct Entry: Sendable {
        var bytes: Bytes
        var keyCount: Int

        @inline(__always)
        func withKey<R>(_ body: (UnsafeRawBufferPointer) -> R) -> R {
            bytes.withUnsafeBytes { body(UnsafeRawBufferPointer(rebasing: $0[..<keyCount])) }
        }
    }

    /// The place of an entry; valid until the map changes.
    public struct Position: Hashable, Sendable {
        var chunk: Int
        var slot: Int
    }

    static let chunkEntriesMax = 128

    var chunks: [[Entry]] = []
    /// Number of records.
    public private(set) var count = 0
    /// Bytes of all keys and values, without the map's own overhead.
    public private(set) var byteCount = 0

    public init() {}

    public var isEmpty: Bool { count == 0 }

    /// An estimate of the memory in use, with allocator and map overhead.
    public var memoryBytes: Int { byteCount + count * 64 }

    // MARK: Reading

    /// Calls `body` with the value of `key`, nil when there is none.
    public func get<R>(
        _ key: UnsafeRawBufferPointer, _ body: (UnsafeRawBufferPointer?) -> R
    ) -> R {
        let position = lowerBound(key)
        guard holds(key, at: position) else { return body(nil) }
        return withEntry(at: position) { _, value in body(value) }
    }

    /// The first entry whose key is not below `key`.
    public func lowerBound(_ key: UnsafeRawBufferPointer) -> Position {
        // The last chunk whose first key is at most `key` is the only one that can hold it.
        var low = 0
        var high = chunks.count
        while low < high {
            let middle = (low + high) / 2
            if chunks[middle][0].withKey({ compareBytes($0, key) }) <= 0 {
                low = middle + 1
            } else {
                high = middle
            }
        }
        guard low > 0 else { return Position(chunk: 0, slot: 0) }
        let chunk = low - 1
        let slot = lowerBound(key, in: chunk)
        return slot < chunks[chunk].count
            ? Position(chunk: chunk, slot: slot) : Position(chunk: chunk + 1, slot: 0)
    }

    public var startPosition: Position { Position(chunk: 0, slot: 0) }

    /// Whether `position` is behind the last entry.
    public func isEnd(_ position: Position) -> Bool { position.chunk >= chunks.count }

    /// The entry behind the one at `position`. Precondition: not the end.
    public func next(_ position: Position) -> Position {
        position.slot + 1 < chunks[position.chunk].count
            ? Position(chunk: position.chunk, slot: position.slot + 1)
            : Position(chunk: position.chunk + 1, slot: 0)
    }

    /// Lends key and value of the entry at `position`. Precondition: not the end.
    public func withEntry<R>(
        at position: Position,
        _ body: (_ key: UnsafeRawBufferPointer, _ value: UnsafeRawBufferPointer) -> R
    ) -> R {
        let entry = chunks[position.chunk][position.slot]
        return entry.bytes.withUnsafeBytes {
            body(
                UnsafeRawBufferPointer(rebasing: $0[..<entry.keyCount]),
                UnsafeRawBufferPointer(rebasing: $0[entry.keyCount...]))
        }
    }

    /// Records with `from <= key < to` in order, while `body` returns true; `to == nil`: to the end.
    public func scan(
        from: UnsafeRawBufferPointer, to: UnsafeRawBufferPointer?,
        _ body: (_ key: UnsafeRawBufferPointer, _ value: UnsafeRawBufferPointer) -> Bool
    ) {
        var position = lowerBound(from)
        while !isEnd(position) {
            let goOn = withEntry(at: position) { key, value in
                if let to, compareBytes(key, to) >= 0 { return false }
                return body(key, value)
            }
            guard goOn else { return }
            position = next(position)
        }
    }

    // MARK: Changing

    /// Sets the value of `key`.
    public mutating func put(_ key: UnsafeRawBufferPointer, _ value: UnsafeRawBufferPointer) {
        put(key, header: UnsafeRawBufferPointer(start: nil, count: 0), value)
    }

    /// Sets the value of `key` to `header` followed by `value`.
    public mutating func put(
        _ key: UnsafeRawBufferPointer, header: UnsafeRawBufferPointer,
        _ value: UnsafeRawBufferPointer
    ) {
        let total = key.count + header.count + value.count
        let bytes = Bytes(unsafeUninitializedCapacity: total) { buffer, initialized in
            let raw = UnsafeMutableRawBufferPointer(buffer)
            raw.copyMemory(from: key)
            UnsafeMutableRawBufferPointer(rebasing: raw[key.count...]).copyMemory(from: header)
            UnsafeMutableRawBufferPointer(rebasing: raw[(key.count + header.count)...])
                .copyMemory(from: value)
            initialized = total
        }
        insert(Entry(bytes: bytes, keyCount: key.count), key: key)
    }

    /// Removes the record of `key`; false when there was none.
    @discardableResult
    public mutating func remove(_ key: UnsafeRawBufferPointer) -> Bool {
        let position = lowerBound(key)
        guard holds(key, at: position) else { return false }
        let removed = chunks[position.chunk].remove(at: position.slot)
        count -= 1
        byteCount -= removed.bytes.count
        if chunks[position.chunk].isEmpty { chunks.remove(at: position.chunk) }
        return true
    }

    /// Removes all records with `from <= key < to`; `to == nil`: to the end.
    public mutating func removeRange(from: UnsafeRawBufferPointer, to: UnsafeRawBufferPointer?) {
        let first = lowerBound(from)
        let last = to.map { lowerBound($0) } ?? Position(chunk: chunks.count, slot: 0)
        guard first.chunk < last.chunk || (first.chunk == last.chunk && first.slot < last.slot)
        else { return }
        if first.chunk == last.chunk {
            drop(chunk: first.chunk, slots: first.slot..<last.slot)
        } else {
            if last.slot > 0 { drop(chunk: last.chunk, slots: 0..<last.slot) }
            for chunk in first.chunk + 1..<last.chunk {
                drop(chunk: chunk, slots: 0..<chunks[chunk].count)
            }
            drop(chunk: first.chunk, slots: first.slot..<chunks[first.chunk].count)
        }
        let emptied = first.chunk..<min(last.chunk + 1, chunks.count)
        let start = chunks[emptied].firstIndex { $0.isEmpty }
        guard let start else { return }
        let end = chunks[start..<emptied.upperBound].firstIndex { !$0.isEmpty }
        chunks.removeSubrange(start..<(end ?? emptied.upperBound))
    }

    public mutating func removeAll() { self = SortedMap() }

    // MARK: Helpers

    private func holds(_ key: UnsafeRawBufferPointer, at position: Position) -> Bool {
        !isEnd(position)
            && chunks[position.chunk][position.slot].withKey { compareBytes($0, key) } == 0
    }

    private func lowerBound(_ key: UnsafeRawBufferPointer, in chunk: Int) -> Int {
        var low = 0
        var high = chunks[chunk].count
        while low < high {
            let middle = (low + high) / 2
            if chunks[chunk][middle].withKey({ compareBytes($0, key) }) < 0 {
                low = middle + 1
            } else {
                high = middle
            }
        }
        return low
    }

    private mutating func insert(_ entry: Entry, key: UnsafeRawBufferPointer) {
        byteCount += entry.bytes.count
        guard !chunks.isEmpty else {
            chunks.append([entry])
            count = 1
            return
        }
        var position = lowerBound(key)
        if holds(key, at: position) {
            byteCount -= chunks[position.chunk][position.slot].bytes.count
            chunks[position.chunk][position.slot] = entry
            return
        }
        // A key between two chunks goes to the end of the left one, so that rising keys fill chunks.
        if position.slot == 0, position.chunk > 0 {
            position = Position(
                chunk: position.chunk - 1, slot: chunks[position.chunk - 1].count)
        }
        count += 1
        chunks[position.chunk].insert(entry, at: position.slot)
        if chunks[position.chunk].count > Self.chunkEntriesMax {
            split(position.chunk, appending: position.slot + 1 == chunks[position.chunk].count)
        }
    }

    /// Halves a full chunk; when it grew at its end only the last entry moves on, so that rising
    /// keys leave full chunks behind.
    private mutating func split(_ chunk: Int, appending: Bool) {
        let keep = appending ? chunks[chunk].count - 1 : chunks[chunk].count / 2
        var tail: [Entry] = []
        tail.reserveCapacity(Self.chunkEntriesMax + 1)
        tail.append(contentsOf: chunks[chunk][keep...])
        chunks[chunk].removeSubrange(keep...)
        chunks.insert(tail, at: chunk + 1)
    }

    private mutating func drop(chunk: Int, slots: Range<Int>) {
        for slot in slots { byteCount -= chunks[chunk][slot].bytes.count }
        count -= slots.count
        chunks[chunk].removeSubrange(slots)
    }
}
