// Who waits for the answer of a request.

/// Names a request that waits for its answer. Outlives its session safely: a slot that was reused
/// has another generation.
struct Waiter {
    var slot: Int32
    var generation: UInt32
    /// The router's token, or the controller's command id.
    var token: UInt64
    /// When the request came, in microseconds of the loop's clock, cut to 32 bits.
    var received: UInt32 = 0
    /// What metrics count it as.
    var kind = RequestKind.get

    /// The waiter is a controller command: `token` is its id, unique within the controller's term,
    /// whose low half is `generation`.
    static let commandSlot: Int32 = -1
    /// Nobody waits: what the node logs on its own account.
    static let noOne = Waiter(slot: -2, generation: 0, token: 0)
}
