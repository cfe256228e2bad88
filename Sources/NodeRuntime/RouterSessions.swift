// The connections of routers (and other clients) to this node, by slot.

import RPC

/// A slot is used again once its connection is closed; its generation tells the uses apart.
final class RouterSessions {
    private var slots: [RouterSession?] = []
    private var nextGeneration: UInt32 = 1
    /// Slots with answers of this turn.
    private var dirty: [Int32] = []

    var all: some Sequence<RouterSession> { slots.lazy.compactMap { $0 } }
    var count: Int { slots.count { $0 != nil } }

    func open(_ connection: RPCConnection) -> RouterSession {
        let slot = slots.firstIndex { $0 == nil } ?? slots.count
        let session = RouterSession(
            connection: connection, slot: Int32(slot), generation: nextGeneration)
        nextGeneration += 1
        if slot == slots.count { slots.append(session) } else { slots[slot] = session }
        return session
    }

    func close(_ session: RouterSession) { slots[Int(session.slot)] = nil }

    /// The session to answer a waiter in, which is flushed with this turn; nil when it is gone.
    func session(of waiter: Waiter) -> RouterSession? {
        guard waiter.slot >= 0, let session = slots[Int(waiter.slot)],
            session.generation == waiter.generation
        else { return nil }
        if !session.isDirty {
            session.isDirty = true
            dirty.append(waiter.slot)
        }
        return session
    }

    /// Hands the answers of the turn to the connections.
    func flush() {
        for slot in dirty { slots[Int(slot)]?.flush() }
        dirty.removeAll(keepingCapacity: true)
    }
}
