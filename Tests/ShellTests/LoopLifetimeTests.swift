import EventLoop
import Glibc
import KVBase
import Testing

/// The end of a loop ends everything on it.
@Suite struct LoopLifetimeTests {
    @Test func endOfLoopClosesEveryConnection() throws {
        let loop = try EventLoop()
        loop.stopInTime()
        let server = ConnectionRecorder()
        let listener = try TCPListener(loop: loop, address: .loopback) { $0.delegate = server }
        let client = ConnectionRecorder()
        client.onConnect = { _ in loop.schedule(after: .milliseconds(5)) { loop.stop() } }
        weak var weakConnection: TCPConnection?
        do {
            weakConnection = TCPConnection.connect(
                loop: loop, to: listener.localAddress, timeout: loopTimeMax, delegate: client)
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
        weak var weakRecorder: ConnectionRecorder?
        func use() throws {
            let loop = try EventLoop()
            let recorder = ConnectionRecorder()
            let listener = try TCPListener(loop: loop, address: .loopback) {
                $0.delegate = recorder
                $0.write([1, 2, 3])
                loop.stop()
            }
            let mailbox = loop.makeMailbox(capacity: 4) { (_: [Int]) in loop.stop() }
            loop.onTurnEnd { _ = loop.now }
            loop.onSignal(SIGUSR1) { loop.stop() }
            loop.schedule(after: loopTimeMax, repeating: loopTimeMax) { loop.stop() }
            _ = TCPConnection.connect(
                loop: loop, to: listener.localAddress, timeout: loopTimeMax, delegate: recorder)
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
        let listener = try TCPListener(loop: loop, address: .loopback) { _ in }
        let client = ConnectionRecorder()
        var timerRan = false
        let reconnect = { [unowned loop, unowned client] in
            _ = TCPConnection.connect(
                loop: loop, to: listener.localAddress, timeout: loopTimeMax, delegate: client)
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
}
