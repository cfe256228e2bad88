// A router's (or another client's) connection to this node: answers collected per turn.

import KVBase
import RPC
import WireProtocol

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

/// Collects the responses of one turn in frames of a few megabytes.
final class RouterSession {
    static let frameBytes = 4 << 20

    let connection: RPCConnection
    let slot: Int32
    let generation: UInt32
    /// Noted by the node for the flush at the end of the turn.
    var isDirty = false
    private var output = ByteWriter()
    private var frameStart = -1

    init(connection: RPCConnection, slot: Int32, generation: UInt32) {
        self.connection = connection
        self.slot = slot
        self.generation = generation
    }

    func respond(_ body: (inout ByteWriter) -> Void) {
        if frameStart < 0 { frameStart = Frame.begin(.responses, in: &output) }
        body(&output)
        if output.count - frameStart > Self.frameBytes { endFrame() }
    }

    /// Hands the collected frames to the connection, which sends them at the end of the turn.
    func flush() {
        isDirty = false
        endFrame()
        if output.count > 0 { connection.sendFrames(output.take()) }
    }

    private func endFrame() {
        guard frameStart >= 0 else { return }
        Frame.end(frameStart, in: &output)
        frameStart = -1
    }
}
