import EventLoop
import Glibc
import KVBase
import Testing

/// Collects what a connection reports; hooks let a test act within the callbacks.
private final class Recorder: TCPConnectionDelegate {
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

private let loopback = SocketAddress(host: "127.0.0.1", port: 0)
private let limit = Nanoseconds.seconds(20)

/// Ends a test that hangs; the test's own expectations then say what did not happen.
private func guardTime(_ loop: EventLoop) { loop.schedule(after: limit) { loop.stop() } }

@Suite struct EventLoopTests {
    @Test func timersRunInOrderAndNeverEarly() throws {
        let loop = try EventLoop()
        var order: [Int] = []
        let start = loop.now
        var elapsed = Nanoseconds.zero
        loop.schedule(after: .milliseconds(20)) {
            order.append(2)
            elapsed = loop.now - start
            loop.stop()
        }
        loop.schedule(after: .milliseconds(5)) { order.append(1) }
        let cancelled = loop.schedule(after: .milliseconds(1)) { order.append(0) }
        cancelled.cancel()
        cancelled.cancel()
        loop.run()
        #expect(order == [1, 2])
        #expect(elapsed >= .milliseconds(20))
    }

    @Test func repeatingTimerRunsUntilCancelledInItsOwnBody() throws {
        let loop = try EventLoop()
        var count = 0
        var timer: LoopTimer?
        timer = loop.schedule(after: .zero, repeating: .milliseconds(1)) {
            count += 1
            if count == 3 {
                timer?.cancel()
                loop.schedule(after: .milliseconds(10)) { loop.stop() }
            }
        }
        loop.run()
        #expect(count == 3)
    }

    @Test func turnEndFollowsTheCallbacksOfTheTurn() throws {
        let loop = try EventLoop()
        var trace: [String] = []
        loop.onTurnEnd { trace.append("a") }
        loop.onTurnEnd { trace.append("b") }
        loop.schedule(after: .zero) { trace.append("x") }
        loop.schedule(after: .zero) { trace.append("y") }
        loop.schedule(after: .milliseconds(2)) { loop.stop() }
        loop.run()
        #expect(Array(trace.prefix(4)) == ["x", "y", "a", "b"])
        #expect(loop.turns > 0)
    }

    @Test func mailboxDeliversEverythingInOrderPerThread() throws {
        let loop = try EventLoop()
        guardTime(loop)
        let threads = 4
        let each = 20_000
        var next = Array(repeating: 0, count: threads)
        var outOfOrder = 0
        var total = 0
        let mailbox = loop.makeMailbox(capacity: 1_000) { (batch: [(thread: Int, number: Int)]) in
            for message in batch {
                if message.number != next[message.thread] { outOfOrder += 1 }
                next[message.thread] += 1
                total += 1
            }
            if total == threads * each { loop.stop() }
        }
        let workers = try (0..<threads).map { thread in
            try NamedThread(name: "poster-\(thread)") {
                for number in 0..<each {
                    // Full is an expected answer: the loop needs the processor to catch up.
                    var attempts = 0
                    while !mailbox.post((thread, number)), attempts < 1_000_000 {
                        attempts += 1
                        sched_yield()
                    }
                }
            }
        }
        loop.run()
        for worker in workers { worker.join() }
        #expect(outOfOrder == 0)
        #expect(total == threads * each)
        #expect(!mailbox.post((0, 0)), "a mailbox of an ended loop takes nothing")
    }

    @Test func fullMailboxRefuses() throws {
        let loop = try EventLoop()
        var batches: [[Int]] = []
        let mailbox = loop.makeMailbox(capacity: 3) { batches.append($0) }
        #expect(mailbox.post(1))
        #expect(!mailbox.post(contentsOf: [2, 3, 4]))
        #expect(mailbox.post(contentsOf: [2, 3]))
        #expect(!mailbox.post(5))
        loop.schedule(after: .milliseconds(1)) { loop.stop() }
        loop.run()
        #expect(batches == [[1, 2, 3]])
    }

    @Test func loopThreadHandsBackSetupAndStops() throws {
        let (thread, mailbox) = try LoopThread.start(name: "test-loop") { loop in
            loop.makeMailbox(capacity: 8) { (latches: [Latch<Int>]) in
                for latch in latches { latch.open(7) }
            }
        }
        let answer = Latch<Int>()
        #expect(mailbox.post(answer))
        #expect(answer.wait() == 7)
        thread.stop()
        thread.join()
        #expect(!mailbox.post(answer))
    }

    @Test func loopThreadReportsFailedSetup() {
        #expect(throws: DatabaseError(.refused, "no")) {
            _ = try LoopThread.start(name: "test-loop") { _ throws(DatabaseError) -> Int in
                throw DatabaseError(.refused, "no")
            }
        }
    }
}

@Suite struct TCPTests {
    @Test func echoesSmallAndLargeWrites() throws {
        let loop = try EventLoop()
        guardTime(loop)
        let server = Recorder()
        server.onReceive = { connection, bytes in connection.write(Array(bytes)) }
        let listener = try TCPListener(loop: loop, address: loopback) { $0.delegate = server }
        let client = Recorder()
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
            loop: loop, to: listener.localAddress, timeout: limit, delegate: client)
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
        guardTime(loop)
        let server = Recorder()
        var accepted: TCPConnection?
        let listener = try TCPListener(loop: loop, address: loopback) {
            $0.delegate = server
            $0.pauseReading()
            accepted = $0
        }
        let client = Recorder()
        let size = 32 << 20
        client.onConnect = { connection in
            connection.write(Array(repeating: 7, count: size))
            #expect(connection.pendingWriteBytes > connection.writeHighWaterBytes)
            loop.schedule(after: .milliseconds(1)) { accepted?.resumeReading() }
        }
        client.onDrain = { $0.closeAfterWrites() }
        server.onClose = { _ in loop.stop() }
        _ = TCPConnection.connect(
            loop: loop, to: listener.localAddress, timeout: limit, delegate: client)
        loop.run()
        #expect(client.drained == 1)
        #expect(server.received.count == size)
        #expect(client.closed == [nil])
    }

    /// Bytes that the peer sends after the end do not make the kernel reset what it has not read yet.
    @Test func lingeringLosesNothingOfWhatWasWritten() throws {
        let loop = try EventLoop()
        guardTime(loop)
        let server = Recorder()
        let listener = try TCPListener(loop: loop, address: loopback) { $0.delegate = server }
        let size = 1 << 20
        server.onReceive = { connection, _ in
            connection.write(Array(repeating: 7, count: size))
            connection.closeAfterWrites(linger: limit)
        }
        let client = Recorder()
        client.onConnect = { connection in
            connection.write([1])
            // Sent while the server ends its side; read after that.
            connection.pauseReading()
            loop.schedule(after: .milliseconds(50)) { connection.write([2]) }
            loop.schedule(after: .milliseconds(100)) { connection.resumeReading() }
        }
        server.onClose = { _ in loop.stop() }
        _ = TCPConnection.connect(
            loop: loop, to: listener.localAddress, timeout: limit, delegate: client)
        loop.run()
        #expect(client.received.count == size)
        #expect(server.received == [1], "what comes after the end is dropped")
        #expect(server.closed == [nil])
    }

    @Test func lingeringEndsInTime() throws {
        let loop = try EventLoop()
        guardTime(loop)
        let server = Recorder()
        let listener = try TCPListener(loop: loop, address: loopback) { $0.delegate = server }
        server.onReceive = { connection, _ in
            connection.closeAfterWrites(linger: .milliseconds(20))
        }
        let client = Recorder()
        client.onConnect = { connection in
            connection.write([1])
            // Never sees the end.
            connection.pauseReading()
        }
        server.onClose = { _ in loop.stop() }
        _ = TCPConnection.connect(
            loop: loop, to: listener.localAddress, timeout: limit, delegate: client)
        loop.run()
        #expect(server.closed == [nil])
    }

    @Test func writeBoundClosesTheConnection() throws {
        let loop = try EventLoop()
        guardTime(loop)
        let server = Recorder()
        let listener = try TCPListener(loop: loop, address: loopback) {
            $0.delegate = server
            $0.pauseReading()
        }
        let client = Recorder()
        client.onConnect = { connection in
            connection.writeBytesMax = 1 << 20
            connection.write(Array(repeating: 7, count: 64 << 20))
            connection.write([1])
        }
        client.onClose = { _ in loop.stop() }
        _ = TCPConnection.connect(
            loop: loop, to: listener.localAddress, timeout: limit, delegate: client)
        loop.run()
        #expect(client.closed.first??.code == .overloaded)
    }

    @Test func refusedConnectionReportsOnce() throws {
        let loop = try EventLoop()
        guardTime(loop)
        let listener = try TCPListener(loop: loop, address: loopback) { _ in }
        let address = listener.localAddress
        listener.close()
        let client = Recorder()
        client.onClose = { _ in loop.stop() }
        loop.schedule(after: .milliseconds(1)) {
            let connection = TCPConnection.connect(
                loop: loop, to: address, timeout: limit, delegate: client)
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
        guardTime(loop)
        let server = Recorder()
        let listener = try TCPListener(loop: loop, address: loopback) { $0.delegate = server }
        let client = Recorder()
        client.onConnect = { _ in loop.stop() }
        let failing = Recorder()
        _ = TCPConnection.connect(
            loop: loop,
            to: SocketAddress(host: "localhost", port: listener.localAddress.port),
            timeout: limit, delegate: client)
        let closedEarly = TCPConnection.connect(
            loop: loop, to: SocketAddress(host: "localhost", port: 1), timeout: limit,
            delegate: failing)
        closedEarly.close()
        loop.run()
        #expect(client.connected == 1)
        #expect(failing.connected == 0)
        #expect(failing.closed == [nil])
    }

    @Test func anyConnectionMayBeClosedInAnyCallback() throws {
        let loop = try EventLoop()
        guardTime(loop)
        let count = 200
        let servers = Recorder()
        var accepted: [TCPConnection] = []
        let listener = try TCPListener(loop: loop, address: loopback) {
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
        let clients = Recorder()
        clients.onConnect = { $0.write([1]) }
        clients.onClose = { _ in
            if clients.closed.count == count { loop.stop() }
        }
        for _ in 0..<count {
            _ = TCPConnection.connect(
                loop: loop, to: listener.localAddress, timeout: limit, delegate: clients)
        }
        loop.run()
        #expect(clients.closed.count == count)
        #expect(servers.closed.count == accepted.count)
    }

    @Test func endOfLoopClosesEveryConnection() throws {
        let loop = try EventLoop()
        guardTime(loop)
        let server = Recorder()
        let listener = try TCPListener(loop: loop, address: loopback) { $0.delegate = server }
        let client = Recorder()
        client.onConnect = { _ in loop.schedule(after: .milliseconds(5)) { loop.stop() } }
        weak var weakConnection: TCPConnection?
        do {
            weakConnection = TCPConnection.connect(
                loop: loop, to: listener.localAddress, timeout: limit, delegate: client)
        }
        loop.run()
        #expect(client.closed.count == 1)
        #expect(client.closed.first??.message.contains("loop ended") == true)
        #expect(server.closed.count == 1)
        #expect(weakConnection == nil, "the loop lets go of closed connections")
    }

    @Test func nothingOutlivesTheLoop() throws {
        weak var weakLoop: EventLoop?
        weak var weakListener: TCPListener?
        weak var weakMailbox: Mailbox<Int>?
        weak var weakRecorder: Recorder?
        func use() throws {
            let loop = try EventLoop()
            let recorder = Recorder()
            let listener = try TCPListener(loop: loop, address: loopback) {
                $0.delegate = recorder
                $0.write([1, 2, 3])
                loop.stop()
            }
            let mailbox = loop.makeMailbox(capacity: 4) { (_: [Int]) in loop.stop() }
            loop.onTurnEnd { _ = loop.now }
            loop.onSignal(SIGUSR1) { loop.stop() }
            loop.schedule(after: limit, repeating: limit) { loop.stop() }
            _ = TCPConnection.connect(
                loop: loop, to: listener.localAddress, timeout: limit, delegate: recorder)
            (weakLoop, weakListener, weakMailbox, weakRecorder) =
                (loop, listener, mailbox, recorder)
            loop.run()
        }
        try use()
        #expect(weakLoop == nil)
        #expect(weakListener == nil)
        #expect(weakMailbox == nil)
        #expect(weakRecorder == nil)
    }

    @Test func endOfLoopEndsReconnectingToo() throws {
        let loop = try EventLoop()
        let listener = try TCPListener(loop: loop, address: loopback) { _ in }
        let client = Recorder()
        var timerRan = false
        let reconnect = { [unowned loop, unowned client] in
            _ = TCPConnection.connect(
                loop: loop, to: listener.localAddress, timeout: limit, delegate: client)
        }
        client.onConnect = { [unowned loop] _ in loop.stop() }
        client.onClose = { [unowned loop] _ in
            reconnect()
            loop.schedule(after: .zero, repeating: .milliseconds(1)) { timerRan = true }
        }
        reconnect()
        loop.run()
        #expect(client.closed.count == 1)
        #expect(!timerRan)
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
        guardTime(loop)
        var accepted = 0
        let listener = try TCPListener(loop: loop, adoptingFileDescriptor: descriptor) { _ in
            accepted += 1
            loop.stop()
        }
        #expect(listener.localAddress.port != 0)
        _ = TCPConnection.connect(
            loop: loop, to: listener.localAddress, timeout: limit, delegate: nil)
        loop.run()
        #expect(accepted == 1)
    }

    @Test func takenAddressIsAnError() throws {
        let loop = try EventLoop()
        let listener = try TCPListener(loop: loop, address: loopback) { _ in }
        #expect(throws: DatabaseError.self) {
            _ = try TCPListener(loop: loop, address: listener.localAddress) { _ in }
        }
        loop.close()
    }

    @Test(arguments: [
        ("127.0.0.1:7000", "127.0.0.1", 7000), ("[::1]:7000", "::1", 7000),
        ("node-1.example:0", "node-1.example", 0), (":9", "0.0.0.0", 9),
    ])
    func addressesParse(text: String, host: String, port: Int) throws {
        let address = try SocketAddress.parse(text)
        #expect(address == SocketAddress(host: host, port: UInt16(port)))
    }

    @Test(arguments: [
        "", "host", "host:", "host:65536", "host:-1", "::1:7000", "[::1:7000", "[]:1", "[a]:1",
        "a b:1", "host:+1",
    ])
    func wrongAddressesAreRefused(text: String) {
        #expect(throws: DatabaseError.self) { try SocketAddress.parse(text) }
    }
}
