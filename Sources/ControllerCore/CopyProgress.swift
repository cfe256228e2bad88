// How far the copy of a step has come, and how fast.

import KVBase

/// Never goes back: a snapshot that is sent again, or a leader that counts anew, shows nothing before it
/// has come further.
public struct CopyProgress: Sendable {
    private static let window = Nanoseconds.seconds(10)
    /// Over less time a pace tells nothing.
    private static let spanMin = Nanoseconds.milliseconds(900)
    private static let markDistance = Nanoseconds.milliseconds(500)

    public private(set) var bytes: UInt64 = 0
    public private(set) var records: UInt64 = 0
    /// As the one that copies now counts them.
    private var counted = (bytes: UInt64(0), records: UInt64(0))
    /// What was reached when, at least half a second apart; of the last ten seconds.
    private var marks: [(at: Instant, bytes: UInt64)] = []

    /// So much is there.
    mutating func reach(_ reached: UInt64, now: Instant) {
        bytes = max(bytes, reached)
        if let last = marks.last, now - last.at < Self.markDistance { return }
        marks.append((now, bytes))
        while let first = marks.first, now - first.at > Self.window { marks.removeFirst() }
    }

    /// A leader counts what it copied since it leads; one that took over goes on where the last one was.
    mutating func count(bytes: UInt64, records: UInt64, now: Instant) {
        if bytes < counted.bytes || records < counted.records { counted = (0, 0) }
        self.records += records - counted.records
        let more = bytes - counted.bytes
        counted = (bytes, records)
        reach(self.bytes + more, now: now)
    }

    /// Over the last ten seconds; nil while nothing was copied in them, or it was not watched long enough.
    public func bytesPerSecond(now: Instant) -> UInt64? {
        guard let first = marks.first(where: { now - $0.at <= Self.window }), bytes > first.bytes,
            now - first.at >= Self.spanMin
        else { return nil }
        return max(1, (bytes - first.bytes) * 1_000 / ((now - first.at).count / 1_000_000))
    }
}
