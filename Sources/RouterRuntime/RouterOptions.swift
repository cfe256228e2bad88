// How one router is started.

import EventLoop
import KVBase
import Metrics
import RouterCore

/// What a router is started with.
struct RouterOptions: Sendable {
    var name: String
    var listen: SocketAddress
    /// A listening socket that was handed over; used instead of `listen`.
    var inheritedSocket: Int32?
    var controllers: [SocketAddress]
    /// Where its admin server is; empty without one.
    var advertisedAdmin: String
    var clientsMax: Int
    var password: Bytes?
    var tuning = RouterTuning()
    /// By get, put, delete, list.
    var upstreamDurations: [DurationHistogram] = []
    /// By operation class.
    var requestDurations: [DurationHistogram] = []
    /// A command that takes longer is told in the log; zero tells none.
    var slowRequest = Nanoseconds.zero
}
