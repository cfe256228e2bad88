import AdminHTTP
import EventLoop
import Glibc
import KVBase
import Testing

/// Sends `request` and returns everything that comes until the server closes.
func exchange(port: UInt16, _ request: String) throws -> String {
    final class Client: TCPConnectionDelegate {
        var received: [UInt8] = []
        let loop: EventLoop
        init(loop: EventLoop) { self.loop = loop }
        func connectionDidConnect(_ connection: TCPConnection) {}
        func connection(_ connection: TCPConnection, didReceive bytes: UnsafeRawBufferPointer) {
            received.append(contentsOf: bytes)
        }
        func connectionDidDrain(_ connection: TCPConnection) {}
        func connectionDidClose(_ connection: TCPConnection, reason: DatabaseError?) {
            loop.stop()
        }
    }
    let loop = try EventLoop()
    let client = Client(loop: loop)
    let connection = TCPConnection.connect(
        loop: loop, to: SocketAddress(host: "127.0.0.1", port: port), timeout: .seconds(20),
        delegate: client)
    connection.write(Array(request.utf8))
    loop.schedule(after: .seconds(20)) { loop.stop() }
    loop.run()
    return String(decoding: client.received, as: UTF8.self)
}

private func get(_ port: UInt16, _ path: String, method: String = "GET") throws -> String {
    try exchange(
        port: port, "\(method) \(path) HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
}

/// A connection with a request that does not go on.
private final class HalfOpenRequest {
    private let descriptor: Int32

    init(port: UInt16) throws {
        descriptor = socket(AF_INET, Int32(SOCK_STREAM.rawValue), 0)
        var address = sockaddr_in()
        address.sin_family = sa_family_t(AF_INET)
        address.sin_port = port.bigEndian
        address.sin_addr.s_addr = UInt32(0x7F00_0001).bigEndian
        let connected = withUnsafePointer(to: &address) {
            $0.withMemoryRebound(to: sockaddr.self, capacity: 1) {
                connect(descriptor, $0, socklen_t(MemoryLayout<sockaddr_in>.size))
            }
        }
        try #require(connected == 0)
        let begin = Array("GET /hel".utf8)
        try #require(write(descriptor, begin, begin.count) == begin.count)
    }

    deinit { close(descriptor) }

    /// Whether the other side ends it in that many seconds.
    func isClosed(within seconds: Int32) -> Bool {
        var waiting = pollfd(fd: descriptor, events: Int16(POLLIN), revents: 0)
        guard poll(&waiting, 1, seconds * 1_000) == 1 else { return false }
        var buffer = [UInt8](repeating: 0, count: 4_096)
        while case let count = read(descriptor, &buffer, buffer.count), count > 0 {}
        return true
    }
}

@Suite struct AdminServerTests {
    private func server() throws -> AdminServer {
        try AdminServer(
            host: "127.0.0.1", port: 0,
            handlers: [
                "/hello": { _ in .text("hello\n") },
                "/ill": { _ in .json("{\"ready\":false}", status: 503) },
                "/echo": { .text("\($0.parameter("a") ?? "-") \($0.parameter("b") ?? "-")") },
                "/empty": { _ in .text("") },
                "/fields": { .text("\($0.accept ?? "-")|\($0.acceptEncoding ?? "-")") },
                "/packed": { _ in
                    AdminResponse(contentType: "text/x", contentEncoding: "gzip", body: [1])
                },
            ], actions: ["/act": { .text("did \($0.parameter("what") ?? "-")") }])
    }

    @Test func servesPages() throws {
        let server = try server()
        defer { server.stop() }
        let hello = try get(server.port, "/hello")
        #expect(hello.hasPrefix("HTTP/1.1 200 OK\r\n"))
        #expect(hello.contains("Content-Type: text/plain; charset=utf-8\r\n"))
        #expect(hello.hasSuffix("\r\n\r\nhello\n"))
        let ill = try get(server.port, "/ill")
        #expect(ill.hasPrefix("HTTP/1.1 503 "))
        #expect(ill.hasSuffix("{\"ready\":false}"))
        #expect(try get(server.port, "/echo?a=1%202&b").hasSuffix("\r\n\r\n1 2 "))
        #expect(try get(server.port, "/empty").hasPrefix("HTTP/1.1 200 OK\r\n"))
        #expect(try get(server.port, "/hello", method: "HEAD").hasSuffix("\r\n\r\n"))
    }

    @Test func refusesTheRest() throws {
        let server = try server()
        defer { server.stop() }
        #expect(try get(server.port, "/missing").hasPrefix("HTTP/1.1 404 "))
        let deleted = try get(server.port, "/hello", method: "DELETE")
        #expect(deleted.hasPrefix("HTTP/1.1 405 "))
        #expect(deleted.contains("Allow: GET, HEAD\r\n"))
        let posted = try exchange(
            port: server.port,
            "POST /hello HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nConnection: close\r\n\r\nabcde"
        )
        #expect(posted.hasPrefix("HTTP/1.1 405 "))
        #expect(
            try exchange(port: server.port, "nonsense\r\n\r\n").hasPrefix("HTTP/1.1 2") == false)
    }

    @Test func handsOutFieldsAndEncodings() throws {
        let server = try server()
        defer { server.stop() }
        let fields = try exchange(
            port: server.port,
            "GET /fields HTTP/1.1\r\nHost: x\r\naccept: a/b\r\nAccept-Encoding: gzip\r\n"
                + "Connection: close\r\n\r\n")
        #expect(fields.hasSuffix("\r\n\r\na/b|gzip"))
        #expect(try get(server.port, "/fields").hasSuffix("\r\n\r\n-|-"))
        let packed = try get(server.port, "/packed")
        #expect(packed.contains("Content-Encoding: gzip\r\n"))
        #expect(packed.contains("Vary: Accept, Accept-Encoding\r\n"))
    }

    @Test func actsOnPostAlone() throws {
        let server = try server()
        defer { server.stop() }
        let acted = try get(server.port, "/act?what=this", method: "POST")
        #expect(acted.hasPrefix("HTTP/1.1 200 OK\r\n"))
        #expect(acted.hasSuffix("\r\n\r\ndid this"))
        let withBody = try exchange(
            port: server.port,
            "POST /act?what=that HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n"
                + "Connection: close\r\n\r\nabcde")
        #expect(withBody.hasSuffix("\r\n\r\ndid that"))
        let read = try get(server.port, "/act")
        #expect(read.hasPrefix("HTTP/1.1 405 "))
        #expect(read.contains("Allow: POST\r\n"))
    }

    @Test func connectionsThatSendNothingDelayNobody() throws {
        let server = try server()
        defer { server.stop() }
        let idle = try (0..<100).map { _ in try HalfOpenRequest(port: server.port) }
        let began = ContinuousClock.now
        for _ in 0..<3 {
            #expect(try get(server.port, "/hello").hasPrefix("HTTP/1.1 200 OK\r\n"))
        }
        #expect(ContinuousClock.now - began < .seconds(2))
        // None of them stays.
        #expect(idle.allSatisfy { $0.isClosed(within: 10) })
    }

    @Test func stopFreesThePort() throws {
        let first = try server()
        #expect(throws: DatabaseError.self) {
            _ = try AdminServer(host: "127.0.0.1", port: first.port, handlers: [:])
        }
        first.stop()
        first.stop()
        let second = try AdminServer(
            host: "127.0.0.1", port: first.port, handlers: ["/x": { _ in .text("x") }])
        #expect(try get(second.port, "/x").hasSuffix("\r\n\r\nx"))
        second.stop()
    }
}
