// Round trips to the other nodes, and the clock of this one beside the acting controller's.

import EventLoop
import KVBase
import RPC

extension NodeServer {
    /// Called every second. Pings travel beside the data path, one to each peer, however many groups
    /// there are.
    func ping() {
        peers.ping()
        let offset = clockOffset.value(at: now)
        for controller in controllers { controller.ping(clockOffset: offset) }
    }

    /// A controller that acts has answered.
    func compareClock(_ trip: RoundTrip, with name: String) {
        clockOffset.take(
            trip, from: name, now: now, wallClock: EventLoop.wallClockNanoseconds())
    }
}
