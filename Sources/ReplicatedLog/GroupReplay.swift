// What the records of one group add up to.

import KVBase
import ReplicationCore

/// A group's state while the log is read back, record by record.
///
/// The oldest kept segment may begin in the middle of a group's entries: what is missing before them
/// was released, and a later state table says so. Until then the gap is open.
struct GroupReplay {
    var replica: ReplicaID
    var hardState = HardState()
    var compacted = LogPosition()
    private(set) var entries: [LogEntry] = []
    /// Every index up to here must turn out to be compacted; zero when nothing is missing.
    private var missingUpTo = LogIndex.none

    init(replica: ReplicaID) { self.replica = replica }

    /// Appends; cuts the log first when the entry is not behind the last one.
    mutating func append(_ entry: LogEntry) {
        let first = entries.first?.index ?? compacted.index.next()
        let end = LogIndex(first.rawValue + UInt64(entries.count))
        if entry.index == end {
            entries.append(entry)
        } else if entry.index >= first, entry.index < end {
            entries.removeSubrange(Int(entry.index.rawValue - first.rawValue)...)
            entries.append(entry)
        } else if entry.index.rawValue > 0 {
            entries = [entry]
            missingUpTo = entry.index.previous()
        }
    }

    mutating func install(snapshot position: LogPosition) {
        entries = []
        compacted = position
        missingUpTo = .none
    }

    /// Forgets the entries up to `position`, which an engine holds.
    mutating func compact(to position: LogPosition) {
        guard position.index > compacted.index else { return }
        compacted = position
        let keep = entries.firstIndex { $0.index > position.index } ?? entries.count
        entries.removeFirst(keep)
    }

    /// The first index that is neither compacted nor in `entries`; nil when all are there.
    var missing: LogIndex? {
        if missingUpTo > compacted.index { return compacted.index.next() }
        if let first = entries.first, first.index != compacted.index.next() {
            return compacted.index.next()
        }
        return nil
    }
}

/// One group as the log had it.
public struct RecoveredGroup: Sendable {
    public var group: GroupID
    public var replica: ReplicaID
    public var hardState: HardState
    /// The entry before the first of `entries`.
    public var compacted: LogPosition
    /// Contiguous from `compacted.index + 1`.
    public var entries: [LogEntry]
}
