// The part of a group's log that a replica holds in memory.

import KVBase

/// Contiguous entries above a compaction point.
///
/// Invariants: the first entry has index `compacted.index + 1`, indexes rise by one, terms never
/// fall, `payloadBytes` is the sum of all payload lengths.
struct EntryLog: Sendable {
    /// The entry before the first one held; its payload is gone, its term is still known.
    private(set) var compacted: LogPosition
    private(set) var payloadBytes = 0
    private var entries: [LogEntry] = []

    init(compacted: LogPosition) { self.compacted = compacted }

    var count: Int { entries.count }
    var firstIndex: LogIndex { compacted.index.next() }
    var lastIndex: LogIndex { compacted.index.advanced(by: entries.count) }
    var last: LogPosition {
        guard let entry = entries.last else { return compacted }
        return LogPosition(index: entry.index, term: entry.term)
    }

    /// Nil when the entry is compacted away (but for the last such one) or not there yet.
    func term(at index: LogIndex) -> Term? {
        if index == compacted.index { return compacted.term }
        guard index > compacted.index, index <= lastIndex else { return nil }
        return entries[offset(of: index)].term
    }

    /// Precondition: `firstIndex <= index <= lastIndex`.
    subscript(index: LogIndex) -> LogEntry { entries[offset(of: index)] }

    /// Entries from `first` on, at least one if there is one, else as many as stay in both bounds.
    /// Precondition: `first >= firstIndex`.
    func slice(from first: LogIndex, countMax: Int = .max, bytesMax: Int = .max) -> [LogEntry] {
        guard first <= lastIndex else { return [] }
        let start = offset(of: first)
        var end = start
        var bytes = 0
        while end < entries.count, end - start < countMax {
            bytes += entries[end].payload.count
            if bytes > bytesMax, end > start { break }
            end += 1
        }
        return Array(entries[start..<end])
    }

    /// Entries `first...last`. Precondition: both are held.
    func slice(from first: LogIndex, through last: LogIndex) -> ArraySlice<LogEntry> {
        entries[offset(of: first)...offset(of: last)]
    }

    /// Precondition: `entry.index == lastIndex + 1`.
    mutating func append(_ entry: LogEntry) {
        precondition(entry.index == lastIndex.next())
        payloadBytes += entry.payload.count
        entries.append(entry)
    }

    /// Removes `first` and everything above. Precondition: `first > compacted.index`.
    mutating func truncate(from first: LogIndex) {
        precondition(first > compacted.index)
        while let entry = entries.last, entry.index >= first {
            payloadBytes -= entry.payload.count
            entries.removeLast()
        }
    }

    /// Moves the compaction point up to `index`. Precondition: `index <= lastIndex`.
    mutating func compact(through index: LogIndex) {
        guard index > compacted.index else { return }
        precondition(index <= lastIndex)
        let drop = offset(of: index) + 1
        for entry in entries[..<drop] { payloadBytes -= entry.payload.count }
        compacted = LogPosition(index: index, term: entries[drop - 1].term)
        entries.removeFirst(drop)
    }

    /// Forgets everything: the log is empty and starts behind `position`.
    mutating func reset(to position: LogPosition) {
        compacted = position
        entries.removeAll()
        payloadBytes = 0
    }

    /// The last position at or below `limit` whose term is not above `term`, or the compaction point.
    func lastPosition(atMost limit: LogIndex, term: Term) -> LogPosition {
        var index = min(limit, lastIndex)
        while index > compacted.index {
            let entry = entries[offset(of: index)]
            if entry.term <= term { return LogPosition(index: index, term: entry.term) }
            index = index.previous()
        }
        return compacted
    }

    private func offset(of index: LogIndex) -> Int {
        Int(index.rawValue - compacted.index.rawValue) - 1
    }
}

extension LogIndex {
    func advanced(by count: Int) -> LogIndex { LogIndex(rawValue + UInt64(count)) }
}

extension LogPosition {
    /// Whether a log ending here is at least as complete as one ending at `other` (Ongaro 2014,
    /// section 3.6.1).
    func isUpToDate(with other: LogPosition) -> Bool {
        term != other.term ? term > other.term : index >= other.index
    }
}
