// One framed connection between daemons: hello first, then frames both ways.

import EventLoop
import KVBase
import WireProtocol

/// What a framed connection tells its owner, always on the loop's thread.
public protocol RPCConnectionDelegate: AnyObject {
    /// Both hellos were exchanged; `peer` is set.
    func connectionDidOpen(_ connection: RPCConnection)
    /// A frame came. `body` is valid during the call only. Throwing says goodbye and closes.
    func connection(
        _ connection: RPCConnection, didReceive kind: FrameKind, body: UnsafeRawBufferPointer
    ) throws(DatabaseError)
    /// The last call, once per connection, also for one that never opened. `reason` is nil when
    /// this side closed without one.
    func connectionDidClose(_ connection: RPCConnection, reason: DatabaseError?)
}

public final class RPCConnection {
    /// The other side's hello; nil until it came.
    public private(set) var peer: Hello?
    public weak var delegate: (any RPCConnectionDelegate)?
    public var remoteAddress: SocketAddress { tcp.remoteAddress }
    /// Free for the owner: which session this connection belongs to.
    public var tag: UInt64 = 0
    /// What the other side said last of its wall clock, in nanoseconds ahead of the acting
    /// controller's; nil when it knows nothing.
    public private(set) var peerClockOffset: Int64?
    /// Hears of every ping of this side that was answered.
    public var didMeasure: (RoundTrip) -> Void = { _ in }

    /// Frames of so many bytes go out as they are, without another copy.
    private static let sharedBytesMin = 256 << 10

    private let transport: RPCTransport
    private let tcp: TCPConnection
    private let hello: Hello
    private var output = ByteWriter()
    private var isDirty = false
    private var isClosed = false
    /// Bytes of a frame that has not come whole.
    private var input: Bytes = []
    private var closeReason: DatabaseError?
    /// Keeps the connection alive while the loop knows only the TCP connection.
    private var keepAlive: RPCConnection?
    /// Runs until the hello of an accepted connection comes.
    private var helloTimer: LoopTimer?

    /// Takes over an accepted connection and says hello.
    init(
        accepted tcp: TCPConnection, transport: RPCTransport, hello: Hello
    ) {
        self.tcp = tcp
        self.transport = transport
        self.hello = hello
        keepAlive = self
        tcp.delegate = self
        configure()
        sendHello()
        helloTimer = transport.loop.schedule(after: transport.helloTimeout) { [weak self] in
            self?.close(DatabaseError(.malformed, "no hello came"))
        }
    }

    /// Dials. `delegate` hears `connectionDidOpen` or `connectionDidClose`.
    init(
        dialling address: SocketAddress, transport: RPCTransport, hello: Hello,
        timeout: Nanoseconds, delegate: any RPCConnectionDelegate
    ) {
        self.transport = transport
        self.hello = hello
        self.delegate = delegate
        tcp = TCPConnection.connect(
            loop: transport.loop, to: address, timeout: timeout, delegate: nil)
        keepAlive = self
        tcp.delegate = self
        configure()
        sendHello()
    }

    /// Bytes not yet taken by the kernel.
    public var pendingBytes: Int { output.count + tcp.pendingWriteBytes }

    /// Room left before the owner should stop producing on its own account.
    public var isCongested: Bool { pendingBytes > tcp.writeHighWaterBytes }

    public var isOpen: Bool { peer != nil && !isClosed }

    /// Appends one frame; it leaves at the end of the turn. Dropped after `close`.
    public func send(_ kind: FrameKind, _ body: (inout ByteWriter) -> Void) {
        guard !isClosed else { return }
        Frame.append(kind, to: &output, body)
        markDirty()
    }

    /// Appends frames that the caller has already built with `Frame`. Dropped after `close`. Large ones are
    /// not copied, so that many connections can be sent the same.
    public func sendFrames(_ frames: Bytes) {
        guard !isClosed else { return }
        if frames.count >= Self.sharedBytesMin {
            flush()
            tcp.write(frames)
            return
        }
        if output.count == 0 {
            output = ByteWriter(continuing: frames)
        } else {
            output.writeRaw(frames)
        }
        markDirty()
    }

    /// Asks the other side for an answer, which `didMeasure` hears of. `clockOffset`: what this side
    /// knows of its wall clock.
    public func ping(clockOffset: Int64? = nil) {
        let ping = Ping(sentAt: transport.loop.now, clockOffset: clockOffset)
        send(.ping) { ping.encode(into: &$0) }
    }

    /// Says goodbye with `reason` when there is one, and closes. Idempotent. With `linger` what still
    /// comes is dropped for as long as that at most, so that the peer reads all that was sent.
    public func close(_ reason: DatabaseError? = nil, linger: Nanoseconds = .zero) {
        guard !isClosed else { return }
        if let reason {
            Frame.append(.goodbye, to: &output) { $0.write(reason) }
            closeReason = reason
        }
        flush()
        isClosed = true
        tcp.closeAfterWrites(linger: linger)
    }

    func flush() {
        isDirty = false
        guard !isClosed, output.count > 0 else { return }
        tcp.write(output.take())
    }

    private func configure() {
        tcp.writeHighWaterBytes = 4 << 20
        tcp.writeLowWaterBytes = 1 << 20
    }

    private func sendHello() { send(.hello) { hello.encode(into: &$0) } }

    private func markDirty() {
        guard !isDirty else { return }
        isDirty = true
        transport.markDirty(self)
    }
}

extension RPCConnection: TCPConnectionDelegate {
    public func connectionDidConnect(_ connection: TCPConnection) {}
    public func connectionDidDrain(_ connection: TCPConnection) {}

    public func connection(_ connection: TCPConnection, didReceive bytes: UnsafeRawBufferPointer) {
        do throws(DatabaseError) {
            if input.isEmpty {
                let consumed = try consume(bytes)
                if consumed < bytes.count {
                    keep(UnsafeRawBufferPointer(rebasing: bytes[consumed...]))
                }
            } else {
                input.append(contentsOf: bytes)
                try consumeInput()
            }
        } catch {
            if Frame.isChecksumMismatch(error) { transport.checksumFailures += 1 }
            close(error)
        }
    }

    public func connectionDidClose(_ connection: TCPConnection, reason: DatabaseError?) {
        isClosed = true
        helloTimer?.cancel()
        let owner = delegate
        delegate = nil
        owner?.connectionDidClose(self, reason: closeReason ?? reason)
        keepAlive = nil
    }

    private func consumeInput() throws(DatabaseError) {
        // The buffer is out of `self` while its bytes are handed out: a callback may re-enter.
        var buffer: Bytes = []
        swap(&buffer, &input)
        let consumed = try buffer.withRawBytes { (bytes) throws(DatabaseError) in
            try consume(bytes)
        }
        if consumed == buffer.count {
            buffer.removeAll(keepingCapacity: buffer.capacity <= 1 << 20)
        } else if consumed > 0 {
            buffer.removeFirst(consumed)
        }
        input = buffer
    }

    private func keep(_ rest: UnsafeRawBufferPointer) {
        if let expected = Frame.expectedByteCount(rest), expected <= Limits.frameBytesMax {
            input.reserveCapacity(expected)
        }
        input.append(contentsOf: rest)
    }

    /// Hands out every whole frame; returns how many bytes those were.
    private func consume(_ bytes: UnsafeRawBufferPointer) throws(DatabaseError) -> Int {
        var offset = 0
        while !isClosed,
            let frame = try Frame.parse(UnsafeRawBufferPointer(rebasing: bytes[offset...]))
        {
            offset += frame.byteCount
            try receive(frame.kind, frame.body)
        }
        return isClosed ? bytes.count : offset
    }

    private func receive(_ kind: FrameKind, _ body: UnsafeRawBufferPointer) throws(DatabaseError) {
        switch kind {
        case .hello:
            var reader = ByteReader(body)
            let greeting = try Hello(from: &reader)
            guard peer == nil else { throw DatabaseError(.malformed, "second hello") }
            if hello.cluster != 0, greeting.cluster != 0, hello.cluster != greeting.cluster {
                throw DatabaseError(
                    .refused, "\(greeting.name) belongs to another cluster than \(hello.name)")
            }
            if greeting.expects != .none, greeting.expects != hello.node {
                throw DatabaseError(
                    .fenced, "\(hello.name) is not node \(greeting.expects)")
            }
            peer = greeting
            helloTimer?.cancel()
            delegate?.connectionDidOpen(self)
        case .goodbye:
            var reader = ByteReader(body)
            closeReason = try reader.readError()
            isClosed = true
            tcp.close()
        case .ping where peer != nil:
            var reader = ByteReader(body)
            let ping = try Ping(from: &reader)
            peerClockOffset = ping.clockOffset
            let pong = Pong(sentAt: ping.sentAt, wallClock: EventLoop.wallClockNanoseconds())
            send(.pong) { pong.encode(into: &$0) }
        case .pong where peer != nil:
            var reader = ByteReader(body)
            let pong = try Pong(from: &reader)
            let now = transport.loop.now
            guard pong.sentAt <= now else {
                throw DatabaseError(.malformed, "the answer to a ping that was never sent")
            }
            didMeasure(RoundTrip(duration: now - pong.sentAt, peerWallClock: pong.wallClock))
        default:
            guard peer != nil else { throw DatabaseError(.malformed, "\(kind) before hello") }
            try delegate?.connection(self, didReceive: kind, body: body)
        }
    }
}
