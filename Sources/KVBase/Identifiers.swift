// The integer identities of the system, each in a type of its own so that they cannot be mixed.

/// An identity that is an integer on the wire and in logs.
public protocol IntegerIdentity: RawRepresentable, Hashable, Comparable, Sendable,
    CustomStringConvertible
where RawValue: FixedWidthInteger & UnsignedInteger {
    init(rawValue: RawValue)
}

extension IntegerIdentity {
    public static func < (left: Self, right: Self) -> Bool { left.rawValue < right.rawValue }
    public var description: String { String(rawValue) }
    /// Zero is never issued; it stands for "none" where an optional would cost space.
    public static var none: Self { Self(rawValue: 0) }
    public init(_ value: RawValue) { self.init(rawValue: value) }
}

/// A `kvnode` identity, issued by the controller at first registration and never reused. A wiped
/// node gets a new one.
public struct NodeID: IntegerIdentity {
    public let rawValue: UInt32
    public init(rawValue: UInt32) { self.rawValue = rawValue }
}

/// A replication group.
public struct GroupID: IntegerIdentity {
    public let rawValue: UInt32
    public init(rawValue: UInt32) { self.rawValue = rawValue }
}

/// One group's copy on one node. Unique in the whole cluster and never reused, so that a removed
/// replica that comes back is told apart from its successor.
public struct ReplicaID: IntegerIdentity {
    public let rawValue: UInt32
    public init(rawValue: UInt32) { self.rawValue = rawValue }
}

/// A table. Never reused: a dropped and recreated table has a new id.
public struct TableID: IntegerIdentity {
    public let rawValue: UInt32
    public init(rawValue: UInt32) { self.rawValue = rawValue }
}

/// A shard: one contiguous range of one table's routed keys.
public struct ShardID: IntegerIdentity {
    public let rawValue: UInt32
    public init(rawValue: UInt32) { self.rawValue = rawValue }
}

/// The version of a shard's ownership; it rises with every split, fence, activation and release.
public struct Epoch: IntegerIdentity {
    public let rawValue: UInt32
    public init(rawValue: UInt32) { self.rawValue = rawValue }
    public func next() -> Epoch { Epoch(rawValue &+ 1) }
}

/// The number of a leadership of a group; it rises with every election.
public struct Term: IntegerIdentity {
    public let rawValue: UInt64
    public init(rawValue: UInt64) { self.rawValue = rawValue }
    public func next() -> Term { Term(rawValue + 1) }
}

/// The position of an entry in a group's replicated log. The first entry has index 1.
public struct LogIndex: IntegerIdentity {
    public let rawValue: UInt64
    public init(rawValue: UInt64) { self.rawValue = rawValue }
    public func next() -> LogIndex { LogIndex(rawValue + 1) }
    /// The index before this one. Precondition: not zero.
    public func previous() -> LogIndex { LogIndex(rawValue - 1) }
}

/// The version of the metadata store; every transaction that changes something takes one.
public struct Revision: IntegerIdentity {
    public let rawValue: UInt64
    public init(rawValue: UInt64) { self.rawValue = rawValue }
    public func next() -> Revision { Revision(rawValue + 1) }
}
