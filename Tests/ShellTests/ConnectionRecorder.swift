// What tests of connections share.

import EventLoop
import KVBase

/// Collects what a connection reports; hooks let a test act within the callbacks.
final class ConnectionRecorder: TCPConnectionDelegate {
    var connected = 0
    var received: [UInt8] = []
    var drained = 0
    var closed: [DatabaseError?] = []
    var onConnect: (TCPConnection) -> Void = { _ in }
    var onReceive: (TCPConnection, UnsafeRawBufferPointer) -> Void = { _, _ in }
    var onDrain: (TCPConnection) -> Void = { _ in }
    var onClose: (TCPConnection) -> Void = { _ in }

    func connectionDidConnect(_ connection: TCPConnection) {
        connected += 1
        onConnect(connection)
    }
    func connection(_ connection: TCPConnection, didReceive bytes: UnsafeRawBufferPointer) {
        received.append(contentsOf: bytes)
        onReceive(connection, bytes)
    }
    func connectionDidDrain(_ connection: TCPConnection) {
        drained += 1
        onDrain(connection)
    }
    func connectionDidClose(_ connection: TCPConnection, reason: DatabaseError?) {
        closed.append(reason)
        onClose(connection)
    }
}

let loopTimeMax = Nanoseconds.seconds(20)

extension SocketAddress {
    static let loopback = SocketAddress(host: "127.0.0.1", port: 0)
}

extension EventLoop {
    /// Ends a test that hangs; the test's own expectations then say what did not happen.
    func stopInTime() { schedule(after: loopTimeMax) { self.stop() } }
}
