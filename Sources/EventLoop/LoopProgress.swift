// What other threads may know about a loop: whether it turns, and how busy it is.

import KVBase
import Synchronization

/// Counters of one loop, written by its thread once per turn and readable from every thread.
public final class LoopProgress: Sendable {
    private let turnCount = Atomic<UInt64>(0)
    private let busyCount = Atomic<UInt64>(0)
    private let delayMax = Atomic<UInt64>(0)

    init() {}

    /// Turns of the loop so far. A loop that is not stuck turns at least every
    /// `EventLoop.heartbeatInterval`, even with nothing to do.
    public var turns: UInt64 { turnCount.load(ordering: .relaxed) }

    /// Nanoseconds that the loop spent in callbacks rather than waiting.
    public var busyNanoseconds: UInt64 { busyCount.load(ordering: .relaxed) }

    /// The longest time by which a heartbeat came late since the last call: what a request had to
    /// wait for the loop in the worst case.
    public func takeDelayMax() -> Nanoseconds {
        Nanoseconds(delayMax.exchange(0, ordering: .relaxed))
    }

    func recordTurn(busyNanoseconds: UInt64) {
        turnCount.store(turnCount.load(ordering: .relaxed) &+ 1, ordering: .relaxed)
        busyCount.store(busyNanoseconds, ordering: .relaxed)
    }

    func recordDelay(_ delay: Nanoseconds) { delayMax.max(delay.count, ordering: .relaxed) }
}
