// The log of one replica as its disk holds it.
//
// Fault model: writes reach the disk in order. A crash keeps a prefix of what was not yet
// synced: some whole writes, then perhaps the hard state and some entries of the next. Damage and
// lost writes are the log's business, not the core's, and are tested there.

import KVBase
import ReplicationCore

struct StoredLog {
    var hardState = HardState()
    var compacted = LogPosition()
    var entries: [LogEntry] = []

    var last: LogPosition {
        entries.last.map { LogPosition(index: $0.index, term: $0.term) } ?? compacted
    }

    func entry(at index: LogIndex) -> LogEntry? {
        guard index > compacted.index, index <= last.index else { return nil }
        return entries[Int(index.rawValue - compacted.index.rawValue) - 1]
    }

    func term(at index: LogIndex) -> Term? {
        index == compacted.index ? compacted.term : entry(at: index)?.term
    }

    /// Writes a persist, or the part of it that a crash let through.
    mutating func write(_ persist: Persist, entryCount: Int = .max) {
        if let state = persist.hardState { hardState = state }
        if let position = persist.snapshot {
            compacted = position
            entries.removeAll()
        }
        guard let first = persist.entries.first, entryCount > 0 else { return }
        let keep = Int(first.index.rawValue - compacted.index.rawValue) - 1
        precondition(keep >= 0 && keep <= entries.count, "a hole in the log")
        entries.removeSubrange(keep...)
        entries.append(contentsOf: persist.entries.prefix(entryCount))
    }

    mutating func compact(through position: LogPosition) {
        guard position.index > compacted.index else { return }
        entries.removeFirst(Int(position.index.rawValue - compacted.index.rawValue))
        compacted = position
    }
}
