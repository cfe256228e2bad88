// How fast a shard or a whole group is copied: as fast as clients do not notice.

import KVBase

/// Rises by steps while requests are as fast as ever, and falls by a factor when they are not
/// (additive increase, multiplicative decrease, as in TCP: Jacobson 1988). Never below a floor, so
/// that every copy ends.
public struct CopyPace: Sendable {
    /// Bytes per second that cost nothing to speak of.
    public static let floor: UInt64 = 1 << 20
    /// The least for a whole group: 1 GiB in 43 s, so that with the 10 s until repair begins it is whole again
    /// within a minute, however busy its nodes are.
    static let groupFloor: UInt64 = 24 << 20
    /// The least bound for it: no setting makes a group that lacks a replica wait for longer than this
    /// takes.
    static let groupLimitMin: UInt64 = 8 << 20
    /// Where a copy begins when there are requests.
    static let cautious: UInt64 = 8 << 20
    /// A change shows in the p99 of the last second: it is waited for.
    static let patience = Nanoseconds.milliseconds(500)
    /// Strain at which the pace stays.
    static let contentPercent: UInt32 = 80

    /// Bytes per second.
    public private(set) var rate: UInt64
    public let limit: UInt64
    private let floor: UInt64
    private var changed: Instant?
    private var worst: UInt32 = 0

    /// Precondition: `limit` is above zero.
    public init(limit: UInt64) {
        self.limit = limit
        floor = min(Self.floor, limit)
        rate = limit
    }

    /// Of a group to a replica that it lacks: never so slow that another failure is likely to come first.
    public init(ofGroup limit: UInt64) {
        self.limit = max(limit, Self.groupLimitMin)
        floor = min(Self.groupFloor, self.limit)
        rate = self.limit
    }

    /// A slower copy could not be told from none, or must not be.
    public var isSlowest: Bool { rate <= floor }

    /// Requests take too long for the copy to go on at its full rate.
    public var isThrottled: Bool { rate < limit }

    /// Called with every chunk. `strain`: the p99 on the nodes involved in percent of its bound.
    public mutating func observe(strain: UInt32, now: Instant) {
        worst = max(worst, strain)
        guard let changed else {
            self.changed = now
            rate = strain == 0 ? limit : min(limit, max(floor, Self.cautious))
            return
        }
        guard now - changed >= Self.patience else { return }
        if worst > 100 {
            rate = max(floor, rate / 10 * 6)
        } else if worst == 0 {
            rate = min(limit, rate * 2)
        } else if worst <= Self.contentPercent {
            rate = min(limit, rate + max(rate / 8, Self.floor))
        }
        worst = 0
        self.changed = now
    }

    /// Slow copies go in small pieces, so that none of them is noticed.
    public var chunkBytes: UInt32 { UInt32(min(256 << 10, max(16 << 10, rate / 64))) }

    /// How long a chunk of this size is to last.
    public func duration(bytes: UInt64) -> Nanoseconds {
        Nanoseconds(bytes * 1_000_000_000 / rate)
    }
}
