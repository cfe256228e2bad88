// What the writer thread tells of itself.

import KVBase

/// Counters of the writer; they only rise, except the last two.
public struct LogStatistics: Hashable, Sendable {
    /// Batches written; each is one write and one fdatasync.
    public var batches: UInt64 = 0
    public var submissions: UInt64 = 0
    public var records: UInt64 = 0
    /// Bytes written, with headers and padding.
    public var bytes: UInt64 = 0
    public var syncNanoseconds: UInt64 = 0
    /// Syncs by duration: element `n` counts those of `2^n ..< 2^(n+1)` nanoseconds.
    public var syncHistogram: [UInt64] = Array(repeating: 0, count: 40)
    public var segmentsCreated: UInt64 = 0
    public var segmentsRemoved: UInt64 = 0
    /// When the write or sync under way began, on the monotonic clock; nil when none is.
    public var writeStartedAt: Instant?
    /// Bytes handed over that are not yet durable.
    public var queuedBytes = 0
}

/// How fast the disk takes writes, each with its sync.
public struct LogPace: Hashable, Sendable {
    /// How long the newest one took that has ended.
    public var newest = Nanoseconds.zero
    /// When that one ended, on the monotonic clock.
    public var endedAt: Instant
    /// When the one under way began; nil when none is.
    public var startedAt: Instant?

    /// What a write costs now, as far as can be told at `now`: a stalled disk shows while it stalls.
    public func delay(at now: Instant) -> Nanoseconds {
        guard let startedAt, startedAt < now else { return newest }
        return max(newest, now - startedAt)
    }
}
