// Replies in the order of requests: the slots of one client connection.

import KVBase

/// The commands of one client that are not answered yet, oldest first. Answers may come in any
/// order; one that comes early lies encoded in a stash of its owner until those before it are out.
///
/// A slot is named by a serial that rises by one with each command (and wraps around).
public struct ReplyRing: Sendable {
    /// One command that waits for its reply.
    public struct Slot: Sendable {
        /// What the owner makes of it: which command it is.
        public var kind: UInt8
        /// Operations of the command that are not answered.
        public var remaining: UInt32
        /// Sum over the answered ones, as the kind has it.
        public var tally: UInt32 = 0
        /// When the command was taken.
        public var opened: Instant
        fileprivate var isStashed = false
        fileprivate var stashStart: UInt32 = 0
        fileprivate var stashEnd: UInt32 = 0
    }

    private var slots: [Slot] = []
    /// Serial of the oldest slot; its place is the serial modulo the capacity, a power of two.
    public private(set) var head: UInt32 = 0
    public private(set) var count = 0
    /// Slots whose reply lies in the stash.
    public private(set) var stashedCount = 0

    public init() {}

    public var isEmpty: Bool { count == 0 }

    /// A new youngest slot; returns its serial.
    public mutating func open(kind: UInt8, remaining: Int = 1, now: Instant) -> UInt32 {
        if count == slots.count { grow() }
        let serial = head &+ UInt32(count)
        slots[place(serial)] = Slot(kind: kind, remaining: UInt32(remaining), opened: now)
        count += 1
        return serial
    }

    /// Precondition for all that take a serial: the slot is in the ring.
    public subscript(serial: UInt32) -> Slot {
        get { slots[place(serial)] }
        set { slots[place(serial)] = newValue }
    }

    /// Whether the slot is the oldest, so that its reply can go straight out.
    public func isHead(_ serial: UInt32) -> Bool { serial == head }

    /// Drops the oldest slot, whose reply is out.
    public mutating func popHead() {
        precondition(count > 0)
        head &+= 1
        count -= 1
    }

    /// Notes that the reply of a younger slot lies in the stash.
    public mutating func stash(_ serial: UInt32, _ range: Range<Int>) {
        precondition(serial != head)
        let place = place(serial)
        slots[place].isStashed = true
        slots[place].stashStart = UInt32(range.lowerBound)
        slots[place].stashEnd = UInt32(range.upperBound)
        stashedCount += 1
    }

    /// Drops the oldest slot if its reply is stashed, and tells where.
    public mutating func popStashedHead() -> Range<Int>? {
        guard count > 0 else { return nil }
        let slot = slots[place(head)]
        guard slot.isStashed else { return nil }
        popHead()
        stashedCount -= 1
        return Int(slot.stashStart)..<Int(slot.stashEnd)
    }

    private func place(_ serial: UInt32) -> Int {
        precondition(serial &- head < UInt32(max(count, 1)) || serial &- head == UInt32(count))
        return Int(serial) & (slots.count - 1)
    }

    private mutating func grow() {
        let old = slots
        let oldMask = old.count - 1
        let blank = Slot(kind: 0, remaining: 0, opened: .origin)
        slots = Array(repeating: blank, count: max(4, old.count * 2))
        for offset in 0..<count {
            let serial = head &+ UInt32(offset)
            slots[Int(serial) & (slots.count - 1)] = old[Int(serial) & oldMask]
        }
    }
}
