// Talking to a router as any Redis client does.

import KVBase
import RESP

/// A connection to one router, one command at a time. Not for more than one thread.
public final class RouterConnection {
    private let socket: BlockingSocket
    private var parser = ReplyParser()

    /// Connects to `address` (`host:port`).
    public init(address: String, deadline: Deadline) throws(ClientError) {
        socket = try BlockingSocket(address: address, deadline: deadline)
    }

    /// Sends a command and waits for its reply. Throws `.answered` when that is an error: the
    /// first word of a typed error tells which code, and the message keeps it.
    public func call(_ arguments: [Bytes], deadline: Deadline) throws(ClientError) -> RESPReply {
        var command: Bytes = []
        CommandEncoder.append(arguments, to: &command)
        try socket.send(command, deadline: deadline)
        while true {
            if let reply = try nextReply() {
                guard case .error(let line) = reply else { return reply }
                throw ClientError(.answered(Self.code(of: line)), line)
            }
            var received: Bytes = []
            guard try socket.receive(into: &received, deadline: deadline) else {
                throw ClientError(.unreachable, "\(socket.address) closed the connection")
            }
            received.withUnsafeBytes { parser.append($0) }
        }
    }

    private func nextReply() throws(ClientError) -> RESPReply? {
        do throws(DatabaseError) {
            return try parser.next()
        } catch {
            throw ClientError(
                .malformed, "\(socket.address) does not speak the Redis protocol: \(error.message)")
        }
    }

    /// The code that a typed error line stands for.
    private static func code(of line: String) -> ErrorCode {
        switch line.prefix(while: { $0 != " " }) {
        case "TOOLARGE": .tooLarge
        case "CONDITION": .conditionFailed
        case "UNKNOWN": .unknownOutcome
        case "TRYAGAIN": .overloaded
        case "UNAVAILABLE": .unavailable
        case "NOAUTH": .unauthenticated
        default: .refused
        }
    }
}
