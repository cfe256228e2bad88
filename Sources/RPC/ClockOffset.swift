// How far a daemon's wall clock is from the acting controller's, in the manner of NTP (RFC 5905, section
// 8): half a round trip is added to what the other side said, and of some samples the one with the
// shortest round trip counts, for it can be wrong by half of that at most.

import KVBase
import Synchronization

/// A ping that was answered.
public struct RoundTrip: Hashable, Sendable {
    public var duration: Nanoseconds
    /// The other side's wall clock when it answered, in nanoseconds since 1970.
    public var peerWallClock: UInt64

    public init(duration: Nanoseconds, peerWallClock: UInt64) {
        self.duration = duration
        self.peerWallClock = peerWallClock
    }
}

/// The newest estimate. Written by the loop, read by any thread.
public final class ClockOffset: Sendable {
    /// Clocks of daemons may differ by this much; who differs by `warningShare` of it is told of.
    /// docs/internals/clocks.md says what depends on it.
    public static let bound = Nanoseconds.milliseconds(500)
    public static let warningBound = Nanoseconds.milliseconds(300)
    /// Of the gauge that shows it.
    public static let metricName = "kv_clock_offset_seconds"
    public static let metricHelp =
        "How far the wall clock is ahead of the acting controller's; below zero when behind."

    static let window = 8
    /// Without an answer for so long nothing is known.
    static let memory = Nanoseconds.seconds(30)

    private struct Sample {
        var offset: Int64
        var duration: Nanoseconds
        var takenAt: Instant
    }

    private struct State {
        var reference = ""
        /// The newest last.
        var samples: [Sample] = []
    }

    private let state = Mutex(State())

    public init() {}

    /// Takes in a round trip to the acting controller, called `reference`. `now` and `wallClock` are
    /// this side's clocks when the answer came.
    public func take(
        _ trip: RoundTrip, from reference: String, now: Instant, wallClock: UInt64
    ) {
        let there = trip.peerWallClock &+ trip.duration.count / 2
        let sample = Sample(
            offset: Int64(bitPattern: wallClock &- there), duration: trip.duration, takenAt: now)
        state.withLock { state in
            // Another clock to go by: what was measured before says nothing of it.
            if state.reference != reference { state.samples.removeAll() }
            state.reference = reference
            if state.samples.count == Self.window { state.samples.removeFirst() }
            state.samples.append(sample)
        }
    }

    /// This daemon is the acting controller: its clock is the one to go by.
    public func takeOwn(now: Instant) {
        take(RoundTrip(duration: .zero, peerWallClock: 0), from: "", now: now, wallClock: 0)
    }

    /// In nanoseconds; above zero when this daemon's clock is ahead. Nil when nothing is known.
    public func value(at now: Instant) -> Int64? {
        state.withLock { state in
            guard let newest = state.samples.last, now < newest.takenAt + Self.memory else {
                return nil
            }
            return state.samples.min { $0.duration < $1.duration }?.offset
        }
    }
}
