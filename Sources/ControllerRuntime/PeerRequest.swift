// One admin request from a controller to another one, for what they have to agree on while the metadata moves.

import EventLoop
import FoundationEssentials
import KVBase
import RPC
import WireProtocol

/// On the loop's thread. Keeps itself alive until `completion` was called, which is once.
final class PeerRequest: RPCConnectionDelegate {
    private struct Answer<Value: Decodable>: Decodable {
        var ok: Bool
        var result: Value?
        var code: String?
        var message: String?
    }

    private struct Request: Encodable {
        var verb: String
        var arguments: AdminRequest.Arguments
    }

    private let body: Bytes
    private var client: RPCClient?
    private var timer: LoopTimer?
    private var completion: ((Result<Bytes, DatabaseError>) -> Void)?
    private var kept: PeerRequest?

    /// A failure `.unavailable` means that the controller could not be reached; any other is its answer, or that
    /// none came in time.
    static func send<Value: Decodable>(
        _ verb: String, _ arguments: AdminRequest.Arguments, to address: String,
        transport: RPCTransport, hello: Hello, timeout: Nanoseconds,
        _ completion: @escaping (Result<Value, DatabaseError>) -> Void
    ) {
        let place: SocketAddress
        do throws(DatabaseError) { place = try SocketAddress.parse(address) } catch {
            return completion(.failure(error))
        }
        let request = PeerRequest(
            AdminJSON.encode(Request(verb: verb, arguments: arguments))
        ) { result in
            switch result {
            case .failure(let error): completion(.failure(error))
            case .success(let bytes):
                guard let answer: Answer<Value> = try? AdminJSON.decode(bytes) else {
                    return completion(
                        .failure(DatabaseError(.malformed, "an answer that cannot be read")))
                }
                if answer.ok, let value = answer.result { return completion(.success(value)) }
                let code = ErrorCode.allCases.first { "\($0)" == answer.code } ?? .refused
                completion(
                    .failure(
                        DatabaseError(
                            code == .unavailable ? .refused : code, answer.message ?? "no answer")))
            }
        }
        request.begin(place, transport, hello, timeout)
    }

    private init(_ body: Bytes, _ completion: @escaping (Result<Bytes, DatabaseError>) -> Void) {
        self.body = body
        self.completion = completion
    }

    private func begin(
        _ place: SocketAddress, _ transport: RPCTransport, _ hello: Hello, _ timeout: Nanoseconds
    ) {
        kept = self
        client = RPCClient(transport: transport, address: place, hello: { hello }, delegate: self)
        timer = transport.loop.schedule(after: timeout) { [weak self] in
            self?.end(.failure(DatabaseError(.deadlineExceeded, "no answer in time")))
        }
    }

    private func end(_ result: Result<Bytes, DatabaseError>) {
        guard let completion else { return }
        self.completion = nil
        timer?.cancel()
        client?.close()
        completion(result)
        kept = nil
    }

    func connectionDidOpen(_ connection: RPCConnection) {
        connection.send(.adminRequest) { writer in
            writer.write(UInt32(1))
            writer.writeRaw(body)
        }
    }

    func connection(
        _ connection: RPCConnection, didReceive kind: FrameKind, body: UnsafeRawBufferPointer
    ) throws(DatabaseError) {
        guard kind == .adminResponse else { return }
        var reader = ByteReader(body)
        _ = try reader.readUInt32()
        end(.success(Bytes(try reader.readRaw(reader.remaining))))
    }

    func connectionDidClose(_ connection: RPCConnection, reason: DatabaseError?) {
        end(
            .failure(
                DatabaseError(.unavailable, reason?.message ?? "the connection was closed")))
    }
}
