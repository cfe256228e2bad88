// The dialling side of framed connections: keeps one connection up.

import EventLoop
import KVBase
import WireProtocol

/// Dials an address and dials again when the connection breaks, after 20 ms doubling to 1 s. Its
/// delegate hears every opening and every close, refused attempts included.
public final class RPCClient {
    public let address: SocketAddress
    /// The open connection; nil while there is none.
    public private(set) var connection: RPCConnection?

    private static let delayMin = Nanoseconds.milliseconds(20)
    private static let delayMax = Nanoseconds.seconds(1)
    private static let connectTimeout = Nanoseconds.seconds(2)

    private let transport: RPCTransport
    private let hello: () -> Hello
    private weak var delegate: (any RPCConnectionDelegate)?
    /// The connection being dialled or open.
    private var current: RPCConnection?
    private var delay = RPCClient.delayMin
    private var timer: LoopTimer?
    private var isClosed = false

    /// Starts to dial. `hello` is asked anew for each attempt. `delegate` is not retained.
    public init(
        transport: RPCTransport, address: SocketAddress, hello: @escaping () -> Hello,
        delegate: any RPCConnectionDelegate
    ) {
        self.transport = transport
        self.address = address
        self.hello = hello
        self.delegate = delegate
        dial()
    }

    /// Closes the connection and dials no more. The delegate still hears of the close.
    public func close() {
        isClosed = true
        timer?.cancel()
        current?.close()
    }

    private func dial() {
        current = RPCConnection(
            dialling: address, transport: transport, hello: hello(),
            timeout: Self.connectTimeout, delegate: self)
    }
}

extension RPCClient: RPCConnectionDelegate {
    public func connectionDidOpen(_ connection: RPCConnection) {
        delay = Self.delayMin
        self.connection = connection
        delegate?.connectionDidOpen(connection)
    }

    public func connection(
        _ connection: RPCConnection, didReceive kind: FrameKind, body: UnsafeRawBufferPointer
    ) throws(DatabaseError) {
        try delegate?.connection(connection, didReceive: kind, body: body)
    }

    public func connectionDidClose(_ connection: RPCConnection, reason: DatabaseError?) {
        current = nil
        self.connection = nil
        if !isClosed {
            timer = transport.loop.schedule(after: delay) { [weak self] in
                guard let self, !isClosed, current == nil else { return }
                dial()
            }
            delay = min(delay * 2, Self.delayMax)
        }
        delegate?.connectionDidClose(connection, reason: reason)
    }
}
