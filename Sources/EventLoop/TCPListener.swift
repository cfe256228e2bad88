// Listening sockets.

import CUV
import Glibc
import KVBase

/// Accepts TCP connections on one address until `close`.
public final class TCPListener: LoopHandle {
    /// The address it is bound to, with the port that the kernel chose if 0 was asked for.
    public private(set) var localAddress: SocketAddress
    /// Connections that could not be taken, for want of file descriptors as a rule.
    public private(set) var acceptFailures: UInt64 = 0
    private var accept: ((TCPConnection) -> Void)?

    /// Binds and listens. `accept` runs on the loop for each connection; it sets the connection's
    /// delegate and keeps the connection; reading starts when it returns. Throws `unavailable` when
    /// the address is taken, unknown or not allowed.
    public convenience init(
        loop: EventLoop, address: SocketAddress, backlog: Int = 1024,
        accept: @escaping (TCPConnection) -> Void
    ) throws(DatabaseError) {
        let storage = try address.resolve()
        try self.init(loop: loop, address: address, backlog: backlog, accept) { tcp in
            SocketAddress.withSockaddr(storage) { uv_tcp_bind(tcp, $0, 0) }
        }
    }

    /// Takes over a listening socket that was opened elsewhere (socket activation) and owns it from
    /// here on.
    public convenience init(
        loop: EventLoop, adoptingFileDescriptor descriptor: Int32, backlog: Int = 1024,
        accept: @escaping (TCPConnection) -> Void
    ) throws(DatabaseError) {
        let address = SocketAddress(host: "descriptor \(descriptor)", port: 0)
        try self.init(loop: loop, address: address, backlog: backlog, accept) { tcp in
            uv_tcp_open(tcp, descriptor)
        }
    }

    private init(
        loop: EventLoop, address: SocketAddress, backlog: Int,
        _ accept: @escaping (TCPConnection) -> Void,
        _ open: (UnsafeMutablePointer<uv_tcp_t>) -> Int32
    ) throws(DatabaseError) {
        self.accept = accept
        localAddress = address
        super.init(loop: loop, byteCount: MemoryLayout<uv_tcp_t>.size)
        var status = uv_tcp_init(loop.uv, tcp)
        guard status == 0 else {
            abandon()
            throw DatabaseError(uv: status, "listen on \(address)")
        }
        activate()
        status = open(tcp)
        if status == 0 {
            status = uv_listen(stream, Int32(clamping: backlog)) { handle, status in
                let listener: TCPListener = LoopHandle.owner(handle!.pointee.data)
                listener.didConnect(status)
            }
        }
        guard status == 0 else {
            close()
            throw DatabaseError(uv: status, "listen on \(address)")
        }
        if let bound = SocketAddress.of(tcp, uv_tcp_getsockname) { localAddress = bound }
    }

    /// Stops accepting; connections accepted before live on. Idempotent.
    public func close() {
        accept = nil
        closeHandle()
    }

    override func tearDown() { close() }

    private func didConnect(_ status: Int32) {
        guard status == 0, let accept,
            let connection = TCPConnection.accept(loop: loop, from: stream)
        else {
            acceptFailures += 1
            return
        }
        accept(connection)
        connection.startReading()
    }

    private var tcp: UnsafeMutablePointer<uv_tcp_t> {
        raw.assumingMemoryBound(to: uv_tcp_t.self)
    }

    private var stream: UnsafeMutablePointer<uv_stream_t> {
        raw.assumingMemoryBound(to: uv_stream_t.self)
    }
}
