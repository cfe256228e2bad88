// Where framed connections of one loop meet: what a turn collects goes out as one write each.

import EventLoop
import KVBase

/// Flushes the connections of one event loop at the end of each turn. Create it after registering
/// the turn-end hooks that still send.
public final class RPCTransport {
    public let loop: EventLoop
    /// An accepted connection whose hello has not come by then is closed.
    public var helloTimeout = Nanoseconds.seconds(10)
    /// Frames that came with other bytes than they were sent with; their connections were closed.
    public internal(set) var checksumFailures: UInt64 = 0
    private var dirty: [RPCConnection] = []

    public init(loop: EventLoop) {
        self.loop = loop
        loop.onTurnEnd { [unowned self] in flush() }
    }

    func markDirty(_ connection: RPCConnection) { dirty.append(connection) }

    private func flush() {
        guard !dirty.isEmpty else { return }
        var batch: [RPCConnection] = []
        swap(&batch, &dirty)
        for connection in batch { connection.flush() }
        batch.removeAll(keepingCapacity: true)
        if dirty.isEmpty { dirty = batch }
    }
}
