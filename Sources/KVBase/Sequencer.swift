// Sequencers: the 16-byte version of a record (seeds: "Sequencer"), kept as a hybrid logical clock.

/// The version of a record: 8 bytes of wall-clock nanoseconds, 4 of counter, 4 of node id. The
/// highest wins. Issued by a group's leader only; never repeated, never going back within a group.
public struct Sequencer: Hashable, Comparable, Sendable, CustomStringConvertible {
    /// Nanoseconds since 1970 of the hybrid clock: at least the wall clock when issued, more when
    /// the wall clock stood still or went back.
    public var time: UInt64
    public var counter: UInt32
    public var node: NodeID

    public static let byteCount = 16
    /// Below every issued sequencer: "no record".
    public static let zero = Sequencer(time: 0, counter: 0, node: .none)

    public init(time: UInt64, counter: UInt32, node: NodeID) {
        self.time = time
        self.counter = counter
        self.node = node
    }

    public static func < (left: Sequencer, right: Sequencer) -> Bool {
        if left.time != right.time { return left.time < right.time }
        if left.counter != right.counter { return left.counter < right.counter }
        return left.node < right.node
    }

    /// The sequencer `offset` places after this one within one batch of the same node.
    /// Precondition: the batch was issued by `SequencerClock`, so the counter has room.
    public func advanced(by offset: UInt32) -> Sequencer {
        Sequencer(time: time, counter: counter + offset, node: node)
    }

    /// Three fixed-width hexadecimal fields, `time-counter-node`; sorts as the sequencer does.
    public var description: String {
        "\(hex(time))-\(hex(UInt64(counter), count: 8))-\(hex(UInt64(node.rawValue), count: 8))"
    }

    /// Reads the form that `description` writes; nil for anything else.
    public init?(_ text: some StringProtocol) {
        let fields = text.split(separator: "-", omittingEmptySubsequences: false)
        guard fields.count == 3, let time = UInt64(hex: fields[0]),
            let counter = UInt64(hex: fields[1], count: 8),
            let node = UInt64(hex: fields[2], count: 8)
        else { return nil }
        self.init(time: time, counter: UInt32(counter), node: NodeID(UInt32(node)))
    }
}

/// Issues sequencers for one group's leader.
///
/// Invariant: every issued sequencer is higher than `floor`, and `floor` never goes down, whatever
/// the wall clock does.
public struct SequencerClock: Sendable {
    public let node: NodeID
    /// The highest sequencer seen: issued here, applied from the log, or handed over with a shard.
    public private(set) var floor: Sequencer = .zero

    public init(node: NodeID) { self.node = node }

    /// Raises the floor to `sequencer` if that is higher.
    public mutating func observe(_ sequencer: Sequencer) {
        if floor < sequencer { floor = sequencer }
    }

    /// Reserves `count` consecutive sequencers and returns the first; the others follow by
    /// `advanced(by:)`. `wallClock` is in nanoseconds since 1970. Precondition: `count >= 1`.
    public mutating func issue(_ count: UInt32, wallClock: UInt64) -> Sequencer {
        precondition(count >= 1)
        var first: Sequencer
        if wallClock > floor.time {
            first = Sequencer(time: wallClock, counter: 0, node: node)
        } else if UInt32.max - floor.counter > count {
            first = Sequencer(time: floor.time, counter: floor.counter + 1, node: node)
        } else {
            first = Sequencer(time: floor.time + 1, counter: 0, node: node)
        }
        floor = first.advanced(by: count - 1)
        return first
    }
}
