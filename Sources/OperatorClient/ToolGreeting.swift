// How a tool begins to speak with a daemon, and how it reads frames.

import Glibc
import KVBase
import WireProtocol

public enum ToolGreeting {
    /// Exchanges hellos; answers the daemon's. `received` holds what came behind it.
    static func exchange(
        _ socket: BlockingSocket, _ received: inout Bytes, deadline: Deadline
    ) throws(ClientError) -> Hello {
        var writer = ByteWriter()
        Frame.append(.hello, to: &writer) {
            Hello(role: .operatorTool, cluster: 0, name: caller).encode(into: &$0)
        }
        try socket.send(writer.take(), deadline: deadline)
        let (kind, body) = try readFrame(socket, &received, deadline)
        guard kind == .hello else {
            throw ClientError(.malformed, "\(socket.address) answered hello with \(kind)")
        }
        do throws(DatabaseError) {
            return try ByteReader.decode(body) { (reader) throws(DatabaseError) in
                try Hello(from: &reader)
            }
        } catch {
            throw ClientError(.malformed, "hello of \(socket.address): \(error.message)")
        }
    }

    /// For the audit log: the person at the terminal, also behind sudo, and the machine.
    public static let caller: String = {
        let user =
            getenv("SUDO_USER").map { String(cString: $0) }
            ?? getpwuid(getuid()).map { String(cString: $0.pointee.pw_name) } ?? "uid \(getuid())"
        var host = [CChar](repeating: 0, count: 256)
        gethostname(&host, host.count - 1)
        return user + "@" + String(decoding: host.prefix { $0 != 0 }.map(UInt8.init), as: UTF8.self)
    }()

    static func readFrame(
        _ socket: BlockingSocket, _ received: inout Bytes, _ deadline: Deadline
    ) throws(ClientError) -> (FrameKind, Bytes) {
        while true {
            if let (kind, body, count) = try parse(received, from: socket.address) {
                received.removeFirst(count)
                guard kind == .goodbye else { return (kind, body) }
                throw goodbye(body, from: socket.address)
            }
            guard try socket.receive(into: &received, deadline: deadline) else {
                throw ClientError(.unreachable, "\(socket.address) closed the connection")
            }
        }
    }

    private static func parse(
        _ received: Bytes, from address: String
    ) throws(ClientError) -> (FrameKind, Bytes, Int)? {
        do throws(DatabaseError) {
            return try received.withRawBytes { (buffer) throws(DatabaseError) in
                try Frame.parse(buffer).map { ($0.kind, Bytes($0.body), $0.byteCount) }
            }
        } catch {
            throw ClientError(
                .malformed, "\(address) does not speak the protocol: \(error.message)")
        }
    }

    private static func goodbye(_ body: Bytes, from address: String) -> ClientError {
        let decoded = try? ByteReader.decode(body) { (reader) throws(DatabaseError) in
            (try reader.readUInt8(), try reader.readString())
        }
        guard let (code, message) = decoded else {
            return ClientError(.unreachable, "\(address) said goodbye")
        }
        return ClientError(
            .answered(ErrorCode(rawValue: code) ?? .unavailable), "\(address): \(message)")
    }
}
