import EventLoop
import Glibc
import KVBase
import Testing

@Suite struct TCPTests {
    @Test func echoesSmallAndLargeWrites() throws {
        let loop = try EventLoop()
        loop.stopInTime()
        let server = ConnectionRecorder()
        server.onReceive = { connection, bytes in connection.write(Array(bytes)) }
        let listener = try TCPListener(loop: loop, address: .loopback) { $0.delegate = server }
        let client = ConnectionRecorder()
        let total = 5 << 20
        var random = SeededRandom(seed: 11)
        var sent: [UInt8] = []
        client.onConnect = { connection in
            #expect(connection.localPort != nil)
            while sent.count < total {
                let part = (0..<Int(random.below(100_000) + 1)).map { _ in
                    UInt8(truncatingIfNeeded: random.next())
                }
                sent += part
                connection.write(part)
            }
        }
        client.onReceive = { connection, _ in
            if client.received.count == sent.count { connection.close() }
        }
        client.onClose = { _ in listener.close() }
        server.onClose = { _ in loop.stop() }
        let connection = TCPConnection.connect(
            loop: loop, to: listener.localAddress, timeout: loopTimeMax, delegate: client)
        loop.run()
        #expect(client.connected == 1)
        #expect(client.received == sent)
        #expect(client.closed == [nil])
        #expect(server.closed.count == 1)
        #expect(server.closed.first??.code == .unavailable)
        #expect(connection.pendingWriteBytes == 0)
    }

    @Test func backPressureDrains() throws {
        let loop = try EventLoop()
        loop.stopInTime()
        let server = ConnectionRecorder()
        var accepted: TCPConnection?
        let listener = try TCPListener(loop: loop, address: .loopback) {
            $0.delegate = server
            $0.pauseReading()
            accepted = $0
        }
        let client = ConnectionRecorder()
        let size = 32 << 20
        client.onConnect = { connection in
            connection.write(Array(repeating: 7, count: size))
            #expect(connection.pendingWriteBytes > connection.writeHighWaterBytes)
            loop.schedule(after: .milliseconds(1)) { accepted?.resumeReading() }
        }
        client.onDrain = { $0.closeAfterWrites() }
        server.onClose = { _ in loop.stop() }
        _ = TCPConnection.connect(
            loop: loop, to: listener.localAddress, timeout: loopTimeMax, delegate: client)
        loop.run()
        #expect(client.drained == 1)
        #expect(server.received.count == size)
        #expect(client.closed == [nil])
    }

    /// Bytes that the peer sends after the end do not make the kernel reset what it has not read yet.
    @Test func lingeringLosesNothingOfWhatWasWritten() throws {
        let loop = try EventLoop()
        loop.stopInTime()
        let server = ConnectionRecorder()
        let listener = try TCPListener(loop: loop, address: .loopback) { $0.delegate = server }
        let size = 1 << 20
        server.onReceive = { connection, _ in
            connection.write(Array(repeating: 7, count: size))
            connection.closeAfterWrites(linger: loopTimeMax)
        }
        let client = ConnectionRecorder()
        client.onConnect = { connection in
            connection.write([1])
            // Sent while the server ends its side; read after that.
            connection.pauseReading()
            loop.schedule(after: .milliseconds(50)) { connection.write([2]) }
            loop.schedule(after: .milliseconds(100)) { connection.resumeReading() }
        }
        server.onClose = { _ in loop.stop() }
        _ = TCPConnection.connect(
            loop: loop, to: listener.localAddress, timeout: loopTimeMax, delegate: client)
        loop.run()
        #expect(client.received.count == size)
        #expect(server.received == [1], "what comes after the end is dropped")
        #expect(server.closed == [nil])
    }

    @Test func lingeringEndsInTime() throws {
        let loop = try EventLoop()
        loop.stopInTime()
        let server = ConnectionRecorder()
        let listener = try TCPListener(loop: loop, address: .loopback) { $0.delegate = server }
        server.onReceive = { connection, _ in
            connection.closeAfterWrites(linger: .milliseconds(20))
        }
        let client = ConnectionRecorder()
        client.onConnect = { connection in
            connection.write([1])
            // Never sees the end.
            connection.pauseReading()
        }
        server.onClose = { _ in loop.stop() }
        _ = TCPConnection.connect(
            loop: loop, to: listener.localAddress, timeout: loopTimeMax, delegate: client)
        loop.run()
        #expect(server.closed == [nil])
    }

    @Test func writeBoundClosesTheConnection() throws {
        let loop = try EventLoop()
        loop.stopInTime()
        let server = ConnectionRecorder()
        let listener = try TCPListener(loop: loop, address: .loopback) {
            $0.delegate = server
            $0.pauseReading()
        }
        let client = ConnectionRecorder()
        client.onConnect = { connection in
            connection.writeBytesMax = 1 << 20
            connection.write(Array(repeating: 7, count: 64 << 20))
            connection.write([1])
        }
        client.onClose = { _ in loop.stop() }
        _ = TCPConnection.connect(
            loop: loop, to: listener.localAddress, timeout: loopTimeMax, delegate: client)
        loop.run()
        #expect(client.closed.first??.code == .overloaded)
    }

    @Test func refusedConnectionReportsOnce() throws {
        let loop = try EventLoop()
        loop.stopInTime()
        let listener = try TCPListener(loop: loop, address: .loopback) { _ in }
        let address = listener.localAddress
        listener.close()
        let client = ConnectionRecorder()
        client.onClose = { _ in loop.stop() }
        loop.schedule(after: .milliseconds(1)) {
            let connection = TCPConnection.connect(
                loop: loop, to: address, timeout: loopTimeMax, delegate: client)
            connection.write([1, 2, 3])
            #expect(client.closed.isEmpty)
        }
        loop.run()
        #expect(client.connected == 0)
        #expect(client.closed.count == 1)
        #expect(client.closed.first??.message.contains("refused") == true)
    }

    @Test func hostNamesAreLookedUp() throws {
        let loop = try EventLoop()
        loop.stopInTime()
        let server = ConnectionRecorder()
        let listener = try TCPListener(loop: loop, address: .loopback) { $0.delegate = server }
        let client = ConnectionRecorder()
        client.onConnect = { _ in loop.stop() }
        let failing = ConnectionRecorder()
        _ = TCPConnection.connect(
            loop: loop,
            to: SocketAddress(host: "localhost", port: listener.localAddress.port),
            timeout: loopTimeMax, delegate: client)
        let closedEarly = TCPConnection.connect(
            loop: loop, to: SocketAddress(host: "localhost", port: 1), timeout: loopTimeMax,
            delegate: failing)
        closedEarly.close()
        loop.run()
        #expect(client.connected == 1)
        #expect(failing.connected == 0)
        #expect(failing.closed == [nil])
    }

    @Test func anyConnectionMayBeClosedInAnyCallback() throws {
        let loop = try EventLoop()
        loop.stopInTime()
        let count = 200
        let servers = ConnectionRecorder()
        var accepted: [TCPConnection] = []
        let listener = try TCPListener(loop: loop, address: .loopback) {
            $0.delegate = servers
            accepted.append($0)
            // Every third is refused at the door.
            if accepted.count % 3 == 0 { $0.close() }
        }
        servers.onReceive = { connection, _ in
            // Closes itself and a neighbour.
            connection.write([9])
            connection.close()
            connection.write([9])
            accepted[accepted.count / 2].close()
        }
        let clients = ConnectionRecorder()
        clients.onConnect = { $0.write([1]) }
        clients.onClose = { _ in
            if clients.closed.count == count { loop.stop() }
        }
        for _ in 0..<count {
            _ = TCPConnection.connect(
                loop: loop, to: listener.localAddress, timeout: loopTimeMax, delegate: clients)
        }
        loop.run()
        #expect(clients.closed.count == count)
        #expect(servers.closed.count == accepted.count)
    }

    @Test func adoptsAListeningSocket() throws {
        let descriptor = socket(AF_INET, Int32(SOCK_STREAM.rawValue), 0)
        var address = sockaddr_in()
        address.sin_family = sa_family_t(AF_INET)
        address.sin_addr.s_addr = UInt32(0x7F00_0001).bigEndian
        let bound = withUnsafeBytes(of: address) { raw in
            bind(
                descriptor, raw.baseAddress!.assumingMemoryBound(to: sockaddr.self),
                socklen_t(raw.count))
        }
        try #require(bound == 0 && listen(descriptor, 8) == 0)
        let loop = try EventLoop()
        loop.stopInTime()
        var accepted = 0
        let listener = try TCPListener(loop: loop, adoptingFileDescriptor: descriptor) { _ in
            accepted += 1
            loop.stop()
        }
        #expect(listener.localAddress.port != 0)
        _ = TCPConnection.connect(
            loop: loop, to: listener.localAddress, timeout: loopTimeMax, delegate: nil)
        loop.run()
        #expect(accepted == 1)
    }

    @Test func takenAddressIsAnError() throws {
        let loop = try EventLoop()
        let listener = try TCPListener(loop: loop, address: .loopback) { _ in }
        #expect(throws: DatabaseError.self) {
            _ = try TCPListener(loop: loop, address: listener.localAddress) { _ in }
        }
        loop.close()
    }
}
