// The accepting side of framed connections.

import EventLoop
import KVBase
import WireProtocol

public final class RPCServer {
    private let listener: TCPListener

    /// Listens at `address`. `hello` is asked anew for each connection, since a node may learn its
    /// identity late. `accept` names the connection's delegate, which the caller keeps alive.
    public init(
        transport: RPCTransport, address: SocketAddress, hello: @escaping () -> Hello,
        accept: @escaping (RPCConnection) -> any RPCConnectionDelegate
    ) throws(DatabaseError) {
        listener = try TCPListener(loop: transport.loop, address: address, backlog: 1_024) { tcp in
            let connection = RPCConnection(accepted: tcp, transport: transport, hello: hello())
            connection.delegate = accept(connection)
        }
    }

    public var localAddress: SocketAddress { listener.localAddress }

    /// Stops accepting; open connections stay.
    public func close() { listener.close() }
}
