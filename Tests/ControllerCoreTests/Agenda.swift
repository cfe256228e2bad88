// What is to happen in a simulation, and when.

import KVBase

/// In order of time; what is due at the same time happens in the order in which it was added.
struct Agenda<What> {
    private var items: [(at: Instant, order: Int, what: What)] = []
    private var added = 0

    mutating func add(_ what: What, at: Instant) {
        added += 1
        let item = (at: at, order: added, what: what)
        var low = 0
        var high = items.count
        while low < high {
            let middle = (low + high) / 2
            if (items[middle].at, items[middle].order) < (item.at, item.order) {
                low = middle + 1
            } else {
                high = middle
            }
        }
        items.insert(item, at: low)
    }

    /// Nil when nothing is due at `end` or before.
    mutating func takeFirst(until end: Instant) -> (at: Instant, what: What)? {
        guard let first = items.first, first.at <= end else { return nil }
        items.removeFirst()
        return (first.at, first.what)
    }
}
