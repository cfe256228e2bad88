// Requests that are in a group's log and not applied yet.

import KVBase
import ReplicationCore

/// Who waits for which entry, in log order.
struct LoggedRequests {
    struct Entry {
        var index: LogIndex
        var term: Term
        var proposed: Instant
        var waiters: [Waiter]
    }

    private var entries: [Entry] = []
    /// Entries before this position are done; cut off now and then.
    private var head = 0

    var isEmpty: Bool { head == entries.count }
    var count: Int { entries.count - head }
    var first: Entry? { isEmpty ? nil : entries[head] }
    var last: Entry? { isEmpty ? nil : entries.last }
    var waiterCount: Int { entries[head...].reduce(0) { $0 + $1.waiters.count } }

    mutating func append(_ entry: Entry) { entries.append(entry) }

    mutating func removeFirst() {
        entries[head].waiters = []
        head += 1
        guard head > 1_024 || isEmpty else { return }
        entries.removeFirst(head)
        head = 0
    }

    mutating func removeLast() { entries.removeLast() }

    mutating func removeAll() -> [Entry] {
        let removed = Array(entries[head...])
        entries.removeAll()
        head = 0
        return removed
    }
}
