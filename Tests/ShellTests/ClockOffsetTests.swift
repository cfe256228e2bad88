import EventLoop
import KVBase
import Testing
import WireProtocol

@testable import RPC

@Suite struct ClockOffsetTests {
    private static let wall: UInt64 = 1_700_000_000_000_000_000

    private func at(_ seconds: UInt64) -> Instant { Instant.origin + .seconds(seconds) }

    private func trip(_ duration: Nanoseconds, there: UInt64) -> RoundTrip {
        RoundTrip(duration: duration, peerWallClock: there)
    }

    @Test func halfARoundTripIsAddedToWhatTheOtherSideSaid() {
        let clock = ClockOffset()
        #expect(clock.value(at: at(1)) == nil)
        // The other side looked at its clock when half of the time was over.
        clock.take(
            trip(.milliseconds(10), there: Self.wall), from: "c", now: at(1),
            wallClock: Self.wall + 5_000_000 + 700)
        #expect(clock.value(at: at(1)) == 700)
        let behind = ClockOffset()
        behind.take(
            trip(.milliseconds(10), there: Self.wall), from: "c", now: at(1),
            wallClock: Self.wall - 2_000_000_000)
        #expect(behind.value(at: at(1)) == -2_005_000_000)
    }

    @Test func theShortestRoundTripOfTheWindowCounts() {
        let clock = ClockOffset()
        let tripMillis: [UInt64] = [9, 3, 40, 8, 7, 7, 7, 7]
        for (index, millis) in tripMillis.enumerated() {
            clock.take(
                trip(.milliseconds(millis), there: Self.wall), from: "c", now: at(UInt64(index)),
                wallClock: Self.wall + millis * 500_000 + UInt64(index))
        }
        #expect(clock.value(at: at(8)) == 1)
        // Two more, and the shortest is out of the window.
        for index in 8..<10 as Range<UInt64> {
            clock.take(
                trip(.milliseconds(20), there: Self.wall), from: "c", now: at(index),
                wallClock: Self.wall + 10_000_000 + index)
        }
        #expect(clock.value(at: at(10)) == 4)
    }

    @Test func anotherControllersClockBeginsAnew() {
        let clock = ClockOffset()
        clock.take(
            trip(.milliseconds(1), there: Self.wall), from: "one", now: at(1),
            wallClock: Self.wall + 500_000)
        clock.take(
            trip(.milliseconds(8), there: Self.wall), from: "two", now: at(2),
            wallClock: Self.wall + 4_000_000 + 33)
        #expect(clock.value(at: at(2)) == 33)
        clock.takeOwn(now: at(3))
        #expect(clock.value(at: at(3)) == 0)
    }

    @Test func whatIsOldIsNotKnown() {
        let clock = ClockOffset()
        clock.takeOwn(now: at(1))
        #expect(clock.value(at: at(30)) == 0)
        #expect(clock.value(at: at(31)) == nil)
    }
}

/// Pings when the connection opens, and ends the loop with the answer.
private final class Pinging: RPCConnectionDelegate {
    let loop: EventLoop
    let offset: Int64?
    var trips: [RoundTrip] = []
    var other: RPCConnection?

    init(loop: EventLoop, offset: Int64?) {
        self.loop = loop
        self.offset = offset
    }

    func connectionDidOpen(_ connection: RPCConnection) {
        other = connection
        connection.didMeasure = { [unowned self] trip in
            trips.append(trip)
            loop.stop()
        }
        if let offset { connection.ping(clockOffset: offset) }
    }

    func connection(
        _ connection: RPCConnection, didReceive kind: FrameKind, body: UnsafeRawBufferPointer
    ) throws(DatabaseError) {
        Issue.record("\(kind) is the connection's own matter")
    }

    func connectionDidClose(_ connection: RPCConnection, reason: DatabaseError?) {}
}

@Suite struct PingTests {
    @Test func aPingIsAnsweredByTheConnection() throws {
        let loop = try EventLoop()
        let transport = RPCTransport(loop: loop)
        let accepted = Pinging(loop: loop, offset: nil)
        let server = try RPCServer(
            transport: transport, address: SocketAddress(host: "127.0.0.1", port: 0),
            hello: { Hello(role: .controller, cluster: 0, name: "server") },
            accept: { _ in accepted })
        let dialled = Pinging(loop: loop, offset: -42)
        let before = EventLoop.wallClockNanoseconds()
        let client = RPCClient(
            transport: transport, address: server.localAddress,
            hello: { Hello(role: .node, cluster: 0, name: "client") }, delegate: dialled)
        loop.run()
        let after = EventLoop.wallClockNanoseconds()
        withExtendedLifetime((client, server)) {}
        let trip = try #require(dialled.trips.first)
        #expect(dialled.trips.count == 1 && accepted.trips.isEmpty)
        #expect((before...after).contains(trip.peerWallClock))
        #expect(trip.duration > .zero && trip.duration.count <= after - before + 1_000_000_000)
        #expect(accepted.other?.peerClockOffset == -42)
        #expect(dialled.other?.peerClockOffset == nil)
    }
}
