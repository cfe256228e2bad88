// The future of a simulation: what happens next, in an order that only the seed decides.

/// A binary heap of events by time; events of one time leave in the order they were pushed.
public struct EventHeap<Payload> {
    private struct Item {
        var time: UInt64
        var sequence: UInt64
        var slot: Int

        func isBefore(_ other: Item) -> Bool {
            time != other.time ? time < other.time : sequence < other.sequence
        }
    }

    private var items: [Item] = []
    private var payloads: [Payload?] = []
    private var freeSlots: [Int] = []
    private var sequence: UInt64 = 0

    public init() {}

    public var count: Int { items.count }

    public mutating func push(_ payload: Payload, at time: UInt64) {
        let slot: Int
        if let free = freeSlots.popLast() {
            slot = free
            payloads[slot] = payload
        } else {
            slot = payloads.count
            payloads.append(payload)
        }
        items.append(Item(time: time, sequence: sequence, slot: slot))
        sequence += 1
        var child = items.count - 1
        while child > 0 {
            let parent = (child - 1) / 2
            guard items[child].isBefore(items[parent]) else { break }
            items.swapAt(child, parent)
            child = parent
        }
    }

    public mutating func pop() -> (time: UInt64, payload: Payload)? {
        guard let first = items.first, let last = items.popLast() else { return nil }
        if !items.isEmpty {
            items[0] = last
            var parent = 0
            while true {
                var least = parent
                for child in [2 * parent + 1, 2 * parent + 2]
                where child < items.count && items[child].isBefore(items[least]) {
                    least = child
                }
                if least == parent { break }
                items.swapAt(parent, least)
                parent = least
            }
        }
        let payload = payloads[first.slot]!
        payloads[first.slot] = nil
        freeSlots.append(first.slot)
        return (first.time, payload)
    }
}
