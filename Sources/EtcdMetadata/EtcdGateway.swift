// Requests to etcd with several endpoints: the one that answered last is asked first.

import Glibc
import HTTPClient
import KVBase
import Synchronization

/// Calls block; used by several threads. Every request may be sent more than once, so each must be one
/// that does not mind: comparisons see to that.
final class EtcdGateway: Sendable {
    private struct State {
        var endpoint = 0
        var token = ""
    }

    /// gRPC codes after which another endpoint, or the same one later, may answer: unknown, deadline
    /// exceeded, aborted, internal, unavailable.
    private static let passingCodes: Set<UInt64> = [2, 4, 10, 13, 14]
    private static let unauthenticated: UInt64 = 16
    /// "revision of auth store is old" comes as an invalid argument.
    private static let authOld = "etcdserver: revision of auth store is old"
    private static let answerBytesMax = 256 << 20
    /// Of one page of a range, which may be work for an etcd that has much to do.
    private static let pageTimeout = Duration.seconds(10)

    private let settings: EtcdSettings
    private let client: HTTPClient
    private let state = Mutex(State())
    private let ending = HTTPAbort()

    init(_ settings: EtcdSettings) throws(DatabaseError) {
        precondition(!settings.endpoints.isEmpty)
        self.settings = settings
        var security = HTTPSecurity()
        security.authorityFile = settings.authorityFile
        security.certificateFile = settings.certificateFile
        security.keyFile = settings.keyFile
        client = try HTTPClient(security)
    }

    /// Ends what runs; everything later fails.
    func close() { ending.abort() }

    /// Asks until there is an answer or `patience` is over; by default the settings' own.
    func call(
        _ path: String, _ body: Bytes, patience: Duration? = nil
    ) throws(EtcdFailure) -> JSONTree {
        let end = monotonicNow() + nanoseconds(patience ?? settings.patience)
        var round = 0
        while true {
            let endpoint = state.withLock { $0.endpoint }
            let left = end - monotonicNow()
            let failure: EtcdFailure
            do throws(EtcdFailure) {
                return try attempt(endpoint, path, body, left: left)
            } catch {
                failure = error
            }
            guard case .unavailable = failure else { throw failure }
            moveOn(from: endpoint)
            round += 1
            // A pause once all have been asked.
            let pause: UInt64 =
                round % settings.endpoints.count == 0 ? 100_000_000 : 0
            guard !ending.isAborted, monotonicNow() + Nanoseconds(pause) < end else {
                throw failure
            }
            if pause > 0 { usleep(useconds_t(pause / 1_000)) }
        }
    }

    /// Gives each line of a stream to `receive` until that says no, the stream ends or `abort` is used.
    /// One attempt at the endpoint in use; says why it ended.
    func stream(
        _ path: String, _ body: Bytes, abort: HTTPAbort,
        receive: @escaping (JSONTree) -> Bool
    ) -> EtcdFailure {
        let endpoint = state.withLock { $0.endpoint }
        let lines = LineSplitter()
        do throws(EtcdFailure) {
            try haveToken(endpoint, nanoseconds(settings.attemptTimeout))
        } catch {
            if case .unavailable = error { moveOn(from: endpoint) }
            return error
        }
        var request = request(endpoint, path, body)
        request.timeout = nil
        do throws(DatabaseError) {
            let answer = try client.stream(request, abort: abort) { piece in
                lines.take(piece, receive)
            }
            if let broken = lines.broken { return .unavailable(broken) }
            if answer.isSuccess {
                // etcd refuses a token within a stream that began well.
                state.withLock { $0.token = "" }
                return .unavailable("the stream ended")
            }
            let failure = failure(answer, settings.endpoints[endpoint])
            if isAboutToken(failure) { renewToken(endpoint) }
            return failure
        } catch {
            if !abort.isAborted { moveOn(from: endpoint) }
            return .unavailable(error.message)
        }
    }

    /// The endpoint in use is not good: the next one is asked from now on.
    func moveOn() { moveOn(from: state.withLock { $0.endpoint }) }

    // MARK: Helpers

    private func moveOn(from endpoint: Int) {
        state.withLock { state in
            if state.endpoint == endpoint {
                state.endpoint = (endpoint + 1) % settings.endpoints.count
            }
        }
    }

    private func request(_ endpoint: Int, _ path: String, _ body: Bytes) -> HTTPRequest {
        var request = HTTPRequest("POST", settings.endpoints[endpoint] + path, body: body)
        request.headers = [HTTPHeader("Content-Type", "application/json")]
        let token = state.withLock { $0.token }
        if !token.isEmpty { request.headers.append(HTTPHeader("Authorization", token)) }
        request.connectTimeout = settings.attemptTimeout
        request.responseBytesMax = Self.answerBytesMax
        return request
    }

    private func attempt(
        _ endpoint: Int, _ path: String, _ body: Bytes, left: Nanoseconds
    ) throws(EtcdFailure) -> JSONTree {
        try haveToken(endpoint, left)
        do throws(EtcdFailure) {
            return try send(endpoint, path, body, left)
        } catch {
            guard settings.user != nil, isAboutToken(error) else { throw error }
        }
        try authenticate(endpoint, left)
        return try send(endpoint, path, body, left)
    }

    private func send(
        _ endpoint: Int, _ path: String, _ body: Bytes, _ left: Nanoseconds
    ) throws(EtcdFailure) -> JSONTree {
        var request = request(endpoint, path, body)
        let timeout =
            path == EtcdPath.range
            ? max(settings.attemptTimeout, Self.pageTimeout) : settings.attemptTimeout
        request.timeout = min(
            timeout, .nanoseconds(Int64(clamping: max(left.count, 1_000_000))))
        let answer: HTTPResponse
        do throws(DatabaseError) {
            answer = try client.perform(request, abort: ending)
        } catch {
            throw .unavailable(error.message)
        }
        guard answer.isSuccess else { throw failure(answer, settings.endpoints[endpoint]) }
        do throws(DatabaseError) {
            return try JSONTree(parsing: answer.body)
        } catch {
            throw .unavailable("\(settings.endpoints[endpoint]): \(error.message)")
        }
    }

    private func haveToken(_ endpoint: Int, _ left: Nanoseconds) throws(EtcdFailure) {
        if settings.user != nil, state.withLock({ $0.token.isEmpty }) {
            try authenticate(endpoint, left)
        }
    }

    private func authenticate(
        _ endpoint: Int, _ left: Nanoseconds
    ) throws(EtcdFailure) {
        guard let user = settings.user else { return }
        state.withLock { $0.token = "" }
        let answer = try send(
            endpoint, EtcdPath.authenticate,
            EtcdRequest.authenticate(user: user, password: settings.password ?? ""), left)
        guard let token = answer["token"]?.string, !token.isEmpty else {
            throw .unavailable("\(settings.endpoints[endpoint]): no token for user \(user)")
        }
        state.withLock { $0.token = token }
    }

    private func renewToken(_ endpoint: Int) {
        try? authenticate(endpoint, nanoseconds(settings.attemptTimeout))
    }

    private func isAboutToken(_ failure: EtcdFailure) -> Bool {
        guard case .refused(let code, let message) = failure else { return false }
        return code == Self.unauthenticated || message == Self.authOld
    }

    private func failure(_ answer: HTTPResponse, _ endpoint: String) -> EtcdFailure {
        let json = try? JSONTree(parsing: answer.body)
        let text =
            json?["message"]?.string ?? json?["error"]?.string ?? "HTTP status \(answer.status)"
        let message = "\(endpoint): \(text)"
        guard let code = json?["code"]?.unsigned else {
            // No etcd's words: a proxy, or nothing that speaks v3.
            return .unavailable(message)
        }
        if text == Self.authOld { return .refused(code: code, text) }
        return Self.passingCodes.contains(code)
            ? .unavailable(message) : .refused(code: code, message)
    }

    private func nanoseconds(_ duration: Duration) -> Nanoseconds {
        Nanoseconds(UInt64(max(0, duration / .nanoseconds(1))))
    }
}

/// Puts the pieces of a stream together to lines of JSON. Used by one thread.
private final class LineSplitter {
    /// A line holds whole revisions; each is at most a request to etcd, in base64.
    private static let lineBytesMax = 64 << 20
    private var line: Bytes = []
    private(set) var broken: String?

    func take(_ piece: UnsafeRawBufferPointer, _ receive: (JSONTree) -> Bool) -> Bool {
        var rest = piece[...]
        while let end = rest.firstIndex(of: 0x0A) {
            line += rest[..<end]
            rest = rest[(end + 1)...]
            defer { line.removeAll(keepingCapacity: true) }
            do throws(DatabaseError) {
                guard receive(try JSONTree(parsing: line)) else { return false }
            } catch {
                broken = error.message
                return false
            }
        }
        line += rest
        if line.count > Self.lineBytesMax { broken = "a line without end" }
        return broken == nil
    }
}

/// The clock that requests are timed by.
func monotonicNow() -> Instant {
    var time = timespec()
    clock_gettime(CLOCK_MONOTONIC, &time)
    return Instant(nanoseconds: UInt64(time.tv_sec) * 1_000_000_000 + UInt64(time.tv_nsec))
}
