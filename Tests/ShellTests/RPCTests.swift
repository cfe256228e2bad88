import EventLoop
import KVBase
import RPC
import Testing
import WireProtocol

/// Ends the loop when the connection under test is closed.
private final class Observer: RPCConnectionDelegate {
    let loop: EventLoop
    var opened = 0
    var reasons: [DatabaseError?] = []

    init(loop: EventLoop) { self.loop = loop }

    func connectionDidOpen(_ connection: RPCConnection) { opened += 1 }
    func connection(
        _ connection: RPCConnection, didReceive kind: FrameKind, body: UnsafeRawBufferPointer
    ) throws(DatabaseError) {}
    func connectionDidClose(_ connection: RPCConnection, reason: DatabaseError?) {
        reasons.append(reason)
        loop.stop()
    }
}

private final class Silent: TCPConnectionDelegate {
    func connectionDidConnect(_ connection: TCPConnection) {}
    func connection(_ connection: TCPConnection, didReceive bytes: UnsafeRawBufferPointer) {}
    func connectionDidDrain(_ connection: TCPConnection) {}
    func connectionDidClose(_ connection: TCPConnection, reason: DatabaseError?) {}
}

@Suite struct RPCTests {
    private static func hello(_ name: String, cluster: UInt64 = 0) -> Hello {
        Hello(role: .operatorTool, cluster: cluster, name: name)
    }

    @Test func aConnectionWithoutHelloIsClosed() throws {
        let loop = try EventLoop()
        let transport = RPCTransport(loop: loop)
        transport.helloTimeout = .milliseconds(20)
        let observer = Observer(loop: loop)
        let server = try RPCServer(
            transport: transport, address: SocketAddress(host: "127.0.0.1", port: 0),
            hello: { Self.hello("server") }, accept: { _ in observer })
        let silent = Silent()
        let client = TCPConnection.connect(
            loop: loop, to: server.localAddress, timeout: .seconds(5), delegate: silent)
        loop.run()
        withExtendedLifetime((client, silent, server)) {}
        #expect(observer.opened == 0)
        #expect(observer.reasons.map { $0?.code } == [.malformed])
    }

    @Test func anotherClusterIsRefusedByName() throws {
        let loop = try EventLoop()
        let transport = RPCTransport(loop: loop)
        let observer = Observer(loop: loop)
        let server = try RPCServer(
            transport: transport, address: SocketAddress(host: "127.0.0.1", port: 0),
            hello: { Self.hello("server", cluster: 1) }, accept: { _ in observer })
        let dialled = Observer(loop: loop)
        let client = RPCClient(
            transport: transport, address: server.localAddress,
            hello: { Self.hello("client", cluster: 2) }, delegate: dialled)
        loop.run()
        withExtendedLifetime((client, server)) {}
        #expect(observer.opened + dialled.opened <= 1)
        let codes = (observer.reasons + dialled.reasons).compactMap { $0?.code }
        #expect(codes.contains(.refused))
    }
}
