// The integer cursors of HSCAN: Redis clients want numbers, a sorted table needs a key.

import KVBase

/// Remembers where the last scans stopped. A bounded number: the oldest is forgotten.
public struct CursorTable: Sendable {
    private struct Entry: Sendable {
        var id: UInt64 = 0
        var table: Bytes = []
        var lastKey: Bytes = []
    }

    private let capacity: Int
    private var entries: [Entry] = []
    private var lastID: UInt64 = 0

    public init(capacity: Int = 65_536) {
        precondition(capacity > 0)
        self.capacity = capacity
    }

    /// A cursor, never zero, for the place behind `lastKey` of `table`.
    public mutating func remember(table: Bytes, lastKey: Bytes) -> UInt64 {
        lastID += 1
        let place = Int(lastID % UInt64(capacity))
        while entries.count <= min(place, capacity - 1) { entries.append(Entry()) }
        entries[place] = Entry(id: lastID, table: table, lastKey: lastKey)
        return lastID
    }

    /// The last key of a scan of `table`; nil for a cursor that was forgotten or never issued.
    public func lastKey(of cursor: UInt64, table: Bytes) -> Bytes? {
        let place = Int(cursor % UInt64(capacity))
        guard cursor > 0, place < entries.count, entries[place].id == cursor,
            entries[place].table == table
        else { return nil }
        return entries[place].lastKey
    }
}
