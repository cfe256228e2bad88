// Asking a controller: hello, then requests in JSON, one at a time.

import KVBase
import WireProtocol

/// A connection to one controller. Not for more than one thread.
public final class ControllerConnection {
    /// How the controller introduced itself.
    public let peer: Hello
    private let socket: BlockingSocket
    private var received: Bytes = []
    private var nextRequest: UInt32 = 1

    /// Connects to `address` (`host:port`) and exchanges hellos.
    public init(address: String, deadline: Deadline) throws(ClientError) {
        let socket = try BlockingSocket(address: address, deadline: deadline)
        var received: Bytes = []
        peer = try ToolGreeting.exchange(socket, &received, deadline: deadline)
        guard peer.role == .controller else {
            throw ClientError(
                .answered(.invalidRequest), "\(address) is no controller but a \(peer.role)")
        }
        self.socket = socket
        self.received = received
    }

    /// Sends one admin request and waits for its result.
    ///
    /// Throws `.answered` with the controller's code and message when it refused.
    public func call(
        _ verb: String, _ arguments: JSONValue = [:], deadline: Deadline
    ) throws(ClientError) -> JSONValue {
        let request = nextRequest
        nextRequest += 1
        let document: JSONValue = ["verb": .string(verb), "arguments": arguments]
        let body = Bytes(document.encoded(pretty: false).utf8)
        guard body.count < Limits.frameBytesMax - 16 else {
            throw ClientError(.answered(.tooLarge), "a request of \(body.count) bytes")
        }
        var writer = ByteWriter()
        Frame.append(.adminRequest, to: &writer) {
            $0.write(request)
            $0.writeRaw(body)
        }
        try socket.send(writer.take(), deadline: deadline)
        while true {
            let (kind, body) = try ToolGreeting.readFrame(socket, &received, deadline)
            guard kind == .adminResponse, body.count >= 4 else {
                throw ClientError(.malformed, "\(socket.address) answered with \(kind)")
            }
            let answered = body.withUnsafeBytes { $0.loadUnaligned(as: UInt32.self).littleEndian }
            if answered == request { return try Self.result(Bytes(body[4...]), of: socket.address) }
        }
    }

    private static func result(_ bytes: Bytes, of address: String) throws(ClientError) -> JSONValue
    {
        guard let document = JSONValue(parsing: bytes), let ok = document["ok"].bool else {
            throw ClientError(.malformed, "the answer of \(address) is not the JSON expected")
        }
        if ok { return document["result"] }
        let name = document["code"].string ?? ""
        let code = ErrorCode.allCases.first { "\($0)" == name } ?? .unavailable
        throw ClientError(
            .answered(code), document["message"].string ?? name,
            redirect: document["acting"].string ?? "")
    }
}
