// An HTTP server of the tests: one thread per connection, answers given by a closure.

import Glibc
import KVBase
import Synchronization

/// What a request looked like, as text.
struct SeenRequest: Sendable {
    var head: String
    var body: Bytes

    var line: Substring { head.prefix { $0 != "\r\n" } }
    func header(_ name: String) -> String? {
        for line in head.split(separator: "\r\n").dropFirst() {
            let parts = line.split(separator: ":", maxSplits: 1)
            if parts.count == 2, parts[0].lowercased() == name.lowercased() {
                return String(parts[1].drop { $0 == " " })
            }
        }
        return nil
    }
}

/// Writes to one connection of the server.
struct Responder: Sendable {
    let descriptor: Int32

    func send(_ text: String) {
        let bytes = Bytes(text.utf8)
        _ = bytes.withUnsafeBytes { write(descriptor, $0.baseAddress, $0.count) }
    }

    func answer(_ status: String, _ body: String) {
        send("HTTP/1.1 \(status)\r\nContent-Length: \(body.utf8.count)\r\n\r\n\(body)")
    }

    /// Returns when the client has closed the connection.
    func waitForEnd() {
        var byte: UInt8 = 0
        while read(descriptor, &byte, 1) > 0 {}
    }
}

final class LoopbackServer: Sendable {
    typealias Handler = @Sendable (SeenRequest, Responder) -> Void

    let port: UInt16
    let connections = Mutex(0)
    private let listener: Int32
    private let handler: Handler

    init(_ handler: @escaping Handler) {
        signal(SIGPIPE, SIG_IGN)
        self.handler = handler
        listener = socket(AF_INET, Int32(SOCK_STREAM.rawValue), 0)
        var address = sockaddr_in()
        address.sin_family = sa_family_t(AF_INET)
        address.sin_addr.s_addr = UInt32(0x7F00_0001).bigEndian
        var length = socklen_t(MemoryLayout<sockaddr_in>.size)
        let descriptor = listener
        port = withUnsafeMutablePointer(to: &address) {
            $0.withMemoryRebound(to: sockaddr.self, capacity: 1) {
                precondition(bind(descriptor, $0, length) == 0)
                precondition(listen(descriptor, 16) == 0)
                precondition(getsockname(descriptor, $0, &length) == 0)
            }
            return UInt16(bigEndian: $0.pointee.sin_port)
        }
        startThread { [self] in
            while true {
                let connection = accept(listener, nil, nil)
                guard connection >= 0 else { return }
                connections.withLock { $0 += 1 }
                startThread { [self] in serve(connection) }
            }
        }
    }

    var url: String { "http://127.0.0.1:\(port)" }

    func close() { shutdown(listener, Int32(SHUT_RDWR)) }

    private func serve(_ connection: Int32) {
        defer { Glibc.close(connection) }
        var received: Bytes = []
        while let request = next(connection, &received) {
            handler(request, Responder(descriptor: connection))
        }
    }

    private func next(_ connection: Int32, _ received: inout Bytes) -> SeenRequest? {
        while true {
            if let end = received.firstRange(of: Bytes("\r\n\r\n".utf8)) {
                let head = String(decoding: received[..<end.lowerBound], as: UTF8.self)
                var request = SeenRequest(head: head, body: [])
                let count = Int(request.header("Content-Length") ?? "0") ?? 0
                if received.count >= end.upperBound + count {
                    request.body = Bytes(received[end.upperBound..<(end.upperBound + count)])
                    received.removeSubrange(..<(end.upperBound + count))
                    return request
                }
            }
            var piece = Bytes(repeating: 0, count: 65_536)
            let count = read(connection, &piece, piece.count)
            guard count > 0 else { return nil }
            received += piece[..<count]
        }
    }
}

func startThread(_ body: @escaping @Sendable () -> Void) {
    final class Box {
        let body: @Sendable () -> Void
        init(_ body: @escaping @Sendable () -> Void) { self.body = body }
    }
    var thread = pthread_t()
    let context = Unmanaged.passRetained(Box(body)).toOpaque()
    let result = pthread_create(
        &thread, nil,
        { context in
            Unmanaged<Box>.fromOpaque(context!).takeRetainedValue().body()
            return nil
        }, context)
    precondition(result == 0)
    pthread_detach(thread)
}
