// A router's (or another client's) connection to this node: answers collected per turn.

import KVBase
import RPC
import WireProtocol

/// Collects the responses of one turn in frames of a few megabytes.
final class RouterSession {
    static let frameBytes = 4 << 20

    let connection: RPCConnection
    let slot: Int32
    let generation: UInt32
    /// Noted for the flush at the end of the turn.
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
