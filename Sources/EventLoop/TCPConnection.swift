// TCP connections: reading into the loop's buffer, gathered writing with back-pressure.

import CUV
import Glibc
import KVBase

/// What a connection tells its owner, always on the loop's thread. Each method may close this
/// connection or any other one.
public protocol TCPConnectionDelegate: AnyObject {
    /// An outgoing connection stands. Not called for accepted ones.
    func connectionDidConnect(_ connection: TCPConnection)
    /// Bytes came. They are valid during the call only, and never after `close` was called.
    func connection(_ connection: TCPConnection, didReceive bytes: UnsafeRawBufferPointer)
    /// Unwritten bytes fell below `writeLowWaterBytes` after having been above
    /// `writeHighWaterBytes`.
    func connectionDidDrain(_ connection: TCPConnection)
    /// The last call, exactly once per connection, never from within `close`. `reason` is nil when
    /// this side closed.
    func connectionDidClose(_ connection: TCPConnection, reason: DatabaseError?)
}

/// One TCP connection, with `TCP_NODELAY` and keep-alive. The loop keeps it until it is closed.
public final class TCPConnection: LoopHandle {
    /// Not retained.
    public weak var delegate: (any TCPConnectionDelegate)?
    /// Above this many unwritten bytes the owner should stop producing; see `connectionDidDrain`.
    public var writeHighWaterBytes = 1 << 20
    public var writeLowWaterBytes = 256 << 10
    /// A connection that would hold more unwritten bytes than this is closed as `overloaded`.
    public var writeBytesMax = 256 << 20

    private enum Phase {
        case connecting
        case open
        /// Closes once everything is written.
        case finishing
        /// Everything is written and this side ended; the peer's is not.
        case lingering
        case closed
    }

    private var phase: Phase
    private var writes = WriteQueue()
    private var isAboveHighWater = false
    private var isPaused = false
    private var isReading = false
    private var closeReason: DatabaseError?
    private var lingerTime = Nanoseconds.zero
    private var peer: SocketAddress?
    private var connectTimer: LoopTimer?

    private init(loop: EventLoop, phase: Phase, peer: SocketAddress?) {
        self.phase = phase
        self.peer = peer
        super.init(loop: loop, byteCount: MemoryLayout<uv_tcp_t>.size)
    }

    // MARK: Opening

    /// Starts to connect. The outcome is `connectionDidConnect` or `connectionDidClose`, both from
    /// the loop, never from within this call. What is written before goes out first. A loop that
    /// is ending makes no connection and tells nobody, so that reconnecting ends too.
    public static func connect(
        loop: EventLoop, to address: SocketAddress, timeout: Nanoseconds,
        delegate: (any TCPConnectionDelegate)?
    ) -> TCPConnection {
        let connection = TCPConnection(loop: loop, phase: .connecting, peer: address)
        if !loop.isClosing { connection.delegate = delegate }
        let status = uv_tcp_init(loop.uv, connection.tcp)
        precondition(status == 0, "uv_tcp_init opens nothing and cannot fail")
        connection.activate()
        connection.connectTimer = loop.schedule(after: timeout) { [weak connection] in
            connection?.close(
                reason: DatabaseError(.unavailable, "connect to \(address): timed out"))
        }
        if let numeric = address.numeric {
            connection.connect(to: numeric)
        } else {
            Lookup.start(connection, address)
        }
        return connection
    }

    static func accept(loop: EventLoop, from listener: UnsafeMutablePointer<uv_stream_t>)
        -> TCPConnection?
    {
        let connection = TCPConnection(loop: loop, phase: .open, peer: nil)
        guard uv_tcp_init(loop.uv, connection.tcp) == 0 else {
            connection.abandon()
            return nil
        }
        connection.activate()
        guard uv_accept(listener, connection.stream) == 0 else {
            connection.close()
            return nil
        }
        connection.setOptions()
        return connection
    }

    fileprivate func connect(to address: sockaddr_storage) {
        guard phase == .connecting else { return }
        let request = UnsafeMutablePointer<uv_connect_t>.allocate(capacity: 1)
        let status = SocketAddress.withSockaddr(address) { address in
            uv_tcp_connect(request, tcp, address) { request, status in
                let connection: TCPConnection = LoopHandle.owner(
                    request!.pointee.handle.pointee.data)
                request!.deallocate()
                connection.didConnect(status)
            }
        }
        if status != 0 {
            request.deallocate()
            didConnect(status)
        }
    }

    private func didConnect(_ status: Int32) {
        guard phase == .connecting || (phase == .finishing && connectTimer != nil) else { return }
        connectTimer?.cancel()
        connectTimer = nil
        guard status == 0 else {
            close(reason: DatabaseError(uv: status, "connect to \(remoteAddress)"))
            return
        }
        setOptions()
        if phase == .connecting { phase = .open }
        delegate?.connectionDidConnect(self)
        guard phase != .closed else { return }
        startReading()
        flush()
        finishIfWritten()
    }

    fileprivate func lookupFailed(_ status: Int32) {
        close(reason: DatabaseError(uv: status, "look up \(remoteAddress)"))
    }

    private func setOptions() {
        uv_tcp_nodelay(tcp, 1)
        uv_tcp_keepalive(tcp, 1, 30)
    }

    // MARK: Reading

    /// Stops the calls of `didReceive`; the peer feels it when the socket buffers are full.
    public func pauseReading() {
        isPaused = true
        guard isReading, !isClosing else { return }
        isReading = false
        uv_read_stop(stream)
    }

    /// Undoes `pauseReading`.
    public func resumeReading() {
        isPaused = false
        startReading()
    }

    func startReading() {
        guard !isPaused, !isReading, connectTimer == nil,
            phase == .open || phase == .finishing || phase == .lingering
        else { return }
        isReading = true
        uv_read_start(
            stream,
            { handle, _, buffer in
                let connection: TCPConnection = LoopHandle.owner(handle!.pointee.data)
                let target = connection.loop.readBuffer
                buffer!.pointee = uv_buf_init(
                    target.baseAddress!.assumingMemoryBound(to: CChar.self), UInt32(target.count))
            },
            { stream, count, buffer in
                let connection: TCPConnection = LoopHandle.owner(stream!.pointee.data)
                connection.didRead(count, buffer!.pointee.base)
            })
    }

    private func didRead(_ count: Int, _ base: UnsafeMutablePointer<CChar>?) {
        if phase == .lingering {
            if count < 0 { close() }
        } else if count > 0 {
            delegate?.connection(
                self, didReceive: UnsafeRawBufferPointer(start: base, count: count))
        } else if count < 0 {
            // Zero means "nothing now" and is no event.
            let status = Int32(truncatingIfNeeded: count)
            close(
                reason: status == UV_EOF.rawValue
                    ? DatabaseError(.unavailable, "closed by the peer")
                    : DatabaseError(uv: status, "read"))
        }
    }

    // MARK: Writing

    /// Bytes given to `write` that the kernel has not taken yet.
    public var pendingWriteBytes: Int { writes.pendingBytes }

    /// Sends `bytes` without copying them: at once as far as the kernel takes them, the rest when
    /// it can. After `close` or `closeAfterWrites` they are dropped.
    public func write(_ bytes: consuming [UInt8]) {
        guard phase == .open || phase == .connecting, !bytes.isEmpty else { return }
        var written = 0
        if phase == .open, writes.isEmpty {
            let status = bytes.withUnsafeBytes { raw in
                withBuffer(raw) { uv_try_write(stream, $0, 1) }
            }
            if status < 0, status != UV_EAGAIN.rawValue {
                close(reason: DatabaseError(uv: status, "write"))
                return
            }
            written = max(0, Int(status))
            if written == bytes.count { return }
        }
        writes.append(bytes, from: written)
        guard writes.pendingBytes <= writeBytesMax else {
            close(
                reason: DatabaseError(
                    .overloaded, "\(writes.pendingBytes) bytes unwritten: the peer does not read"))
            return
        }
        if writes.pendingBytes > writeHighWaterBytes { isAboveHighWater = true }
        if phase == .open { flush() }
    }

    private func withBuffer(
        _ raw: UnsafeRawBufferPointer, _ body: (UnsafePointer<uv_buf_t>) -> Int32
    ) -> Int32 {
        var buffer = uv_buf_t()
        buffer.base = UnsafeMutablePointer(
            mutating: raw.baseAddress!.assumingMemoryBound(to: CChar.self))
        buffer.len = raw.count
        return body(&buffer)
    }

    private func flush() {
        guard let batch = writes.startBatch() else { return }
        let status = batch.send(on: stream) { [self] batch, status in
            didWrite(batch, status)
        }
        if status != 0 { close(reason: DatabaseError(uv: status, "write")) }
    }

    private func didWrite(_ batch: WriteBatch, _ status: Int32) {
        writes.finish(batch)
        guard phase != .closed else { return }
        guard status == 0 else {
            close(reason: DatabaseError(uv: status, "write"))
            return
        }
        flush()
        if isAboveHighWater, writes.pendingBytes < writeLowWaterBytes {
            isAboveHighWater = false
            delegate?.connectionDidDrain(self)
        }
        finishIfWritten()
    }

    // MARK: Closing

    /// Closes at once; unwritten bytes are lost. Idempotent, allowed within every callback.
    public func close() { close(reason: nil) }

    /// Takes no more writes and closes when those taken so far are with the kernel. With `linger`
    /// this side is then only ended: what still comes is dropped until the peer ends its own side, for
    /// as long as that at most. Otherwise bytes that cross the end would have the kernel reset the
    /// connection, and the peer might lose what was written last.
    public func closeAfterWrites(linger: Nanoseconds = .zero) {
        guard phase == .open || phase == .connecting else { return }
        phase = .finishing
        lingerTime = linger
        finishIfWritten()
    }

    private func finishIfWritten() {
        guard phase == .finishing, connectTimer == nil, writes.isEmpty else { return }
        var descriptor: Int32 = -1
        guard lingerTime > .zero, uv_fileno(uvHandle, &descriptor) == 0,
            shutdown(descriptor, Int32(SHUT_WR)) == 0
        else { return close() }
        phase = .lingering
        isPaused = false
        startReading()
        loop.schedule(after: lingerTime) { [weak self] in self?.close() }
    }

    private func close(reason: DatabaseError?) {
        guard phase != .closed else { return }
        phase = .closed
        closeReason = reason
        connectTimer?.cancel()
        connectTimer = nil
        peer = remoteAddress
        closeHandle()
    }

    override func handleDidClose() {
        let delegate = delegate
        self.delegate = nil
        delegate?.connectionDidClose(self, reason: closeReason)
    }

    override func tearDown() {
        close(reason: DatabaseError(.unavailable, "the event loop ended"))
    }

    // MARK: Facts

    /// True from the connection's establishment until `close`.
    public var isOpen: Bool {
        (phase == .open || phase == .finishing) && connectTimer == nil
    }

    /// The peer: as given to `connect`, or as the system names it.
    public var remoteAddress: SocketAddress {
        if let peer { return peer }
        guard !isClosing, let found = SocketAddress.of(tcp, uv_tcp_getpeername) else {
            return SocketAddress(host: "unknown", port: 0)
        }
        peer = found
        return found
    }

    /// This side's port; nil before the connection stands and after it was closed.
    public var localPort: UInt16? {
        isClosing ? nil : SocketAddress.of(tcp, uv_tcp_getsockname)?.port
    }

    private var tcp: UnsafeMutablePointer<uv_tcp_t> {
        raw.assumingMemoryBound(to: uv_tcp_t.self)
    }

    private var stream: UnsafeMutablePointer<uv_stream_t> {
        raw.assumingMemoryBound(to: uv_stream_t.self)
    }
}

/// One look-up of a host name on libuv's thread pool. Keeps its connection alive; the answer is
/// dropped if the connection was closed meanwhile.
private final class Lookup {
    private let connection: TCPConnection
    private let request: UnsafeMutablePointer<uv_getaddrinfo_t> = .allocate(capacity: 1)

    static func start(_ connection: TCPConnection, _ address: SocketAddress) {
        let lookup = Lookup(connection)
        var hints = addrinfo()
        hints.ai_socktype = Int32(SOCK_STREAM.rawValue)
        lookup.request.pointee.data = Unmanaged.passRetained(lookup).toOpaque()
        let status = uv_getaddrinfo(
            connection.loop.uv, lookup.request,
            { request, status, list in
                let lookup = Unmanaged<Lookup>.fromOpaque(request!.pointee.data)
                lookup.takeRetainedValue().finish(status, list)
            }, address.host, String(address.port), &hints)
        if status != 0 {
            Unmanaged.passUnretained(lookup).release()
            connection.lookupFailed(status)
        }
    }

    private init(_ connection: TCPConnection) { self.connection = connection }

    deinit { request.deallocate() }

    private func finish(_ status: Int32, _ list: UnsafeMutablePointer<addrinfo>?) {
        defer { uv_freeaddrinfo(list) }
        if status == 0, let list {
            connection.connect(to: SocketAddress.storage(of: list))
        } else {
            connection.lookupFailed(status)
        }
    }
}
