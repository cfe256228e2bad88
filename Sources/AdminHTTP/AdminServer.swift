// The admin HTTP server: metrics, health and what else an operator may look at, on libmicrohttpd with
// a thread of its own.

import CMicroHTTPD
import Glibc
import KVBase

/// A request as a handler sees it.
public struct AdminRequest: Sendable {
    /// Without the query, `%` escapes resolved.
    public let path: String
    /// The `Accept` field, nil when absent.
    public let accept: String?
    /// The `Accept-Encoding` field, nil when absent.
    public let acceptEncoding: String?
    private let query: [(name: String, value: String)]

    init(
        path: String, accept: String? = nil, acceptEncoding: String? = nil,
        query: [(name: String, value: String)]
    ) {
        self.path = path
        self.accept = accept
        self.acceptEncoding = acceptEncoding
        self.query = query
    }

    /// The first value of a query parameter; empty for one without a value, nil when absent.
    public func parameter(_ name: String) -> String? { query.first { $0.name == name }?.value }
}

/// What a handler answers.
public struct AdminResponse: Sendable {
    public var status: Int
    public var contentType: String
    /// The `Content-Encoding` of the body; nil for none.
    public var contentEncoding: String?
    public var body: Bytes

    public init(
        status: Int = 200, contentType: String, contentEncoding: String? = nil, body: Bytes
    ) {
        self.status = status
        self.contentType = contentType
        self.contentEncoding = contentEncoding
        self.body = body
    }

    public static func text(_ text: String, status: Int = 200) -> AdminResponse {
        AdminResponse(
            status: status, contentType: "text/plain; charset=utf-8", body: Bytes(text.utf8))
    }

    public static func json(_ text: String, status: Int = 200) -> AdminResponse {
        AdminResponse(status: status, contentType: "application/json", body: Bytes(text.utf8))
    }
}

/// Serves pages (GET and HEAD) and actions (POST, whose body is ignored) by exact path. Handlers run on
/// the server's thread, one at a time, and are quick: they read counters and snapshots, nothing that
/// waits.
public final class AdminServer: @unchecked Sendable {
    public typealias Handler = @Sendable (AdminRequest) -> AdminResponse

    /// Connections that send nothing must not keep a scraper or a prober waiting: many fit, and none
    /// stays for long. Whoever waits for a place waits less than a scraper's patience.
    private static let connectionsMax: UInt32 = 512
    private static let connectionTimeoutSeconds: UInt32 = 3
    private static let connectionMemoryBytes: Int = 32 << 10

    /// The port it listens on, as chosen by the kernel if 0 was asked for.
    public let port: UInt16
    /// `@unchecked`: immutable after `init` but for `stop`, which the owner calls once.
    private var daemon: OpaquePointer?
    private let router: Router

    private final class Router: Sendable {
        let pages: [String: Handler]
        let actions: [String: Handler]
        init(pages: [String: Handler], actions: [String: Handler]) {
            self.pages = pages
            self.actions = actions
        }
    }

    /// Listens on a numeric IPv4 or IPv6 address. Throws `unavailable` when that is not possible.
    public init(
        host: String, port: UInt16, handlers: [String: Handler], actions: [String: Handler] = [:]
    ) throws(DatabaseError) {
        let descriptor = try ListeningSocket.open(host: host, port: port)
        self.port = ListeningSocket.port(of: descriptor) ?? port
        router = Router(pages: handlers, actions: actions)
        daemon = rangekeeper_mhd_start(
            descriptor, Self.connectionsMax, Self.connectionTimeoutSeconds,
            Self.connectionMemoryBytes, Self.answer,
            Unmanaged.passUnretained(router).toOpaque())
        guard daemon != nil else {
            close(descriptor)
            throw DatabaseError(.unavailable, "admin HTTP on \(host):\(port) did not start")
        }
    }

    deinit { stop() }

    /// Ends the server and its thread; open connections are closed. Not from a handler.
    public func stop() {
        guard let running = daemon else { return }
        daemon = nil
        MHD_stop_daemon(running)
    }

    // MARK: Requests

    private static let answer: MHD_AccessHandlerCallback = {
        argument, connection, path, method, _, _, uploadSize, state in
        let router = Unmanaged<Router>.fromOpaque(argument!).takeUnretainedValue()
        let method = String(cString: method!)
        if uploadSize!.pointee > 0 {
            // A body that nobody asked for: taken in and dropped, the answer follows.
            uploadSize!.pointee = 0
            return .YES
        }
        let path = String(cString: path!)
        let (page, action) = (router.pages[path], router.actions[path])
        guard page != nil || action != nil else {
            return send(.text("not found\n", status: 404), on: connection)
        }
        let isReading = method == "GET" || method == "HEAD"
        guard let handler = isReading ? page : method == "POST" ? action : nil else {
            let allowed = (page == nil ? [] : ["GET", "HEAD"]) + (action == nil ? [] : ["POST"])
            let list = allowed.joined(separator: ", ")
            return send(
                .text("only \(list)\n", status: 405), on: connection, allow: list)
        }
        if !isReading, state!.pointee == nil {
            // The first of two calls: the body comes between them.
            state!.pointee = UnsafeMutableRawPointer(bitPattern: 1)
            return .YES
        }
        return send(
            handler(
                AdminRequest(
                    path: path, accept: field("Accept", of: connection),
                    acceptEncoding: field("Accept-Encoding", of: connection),
                    query: query(of: connection))), on: connection)
    }

    private static func field(_ name: String, of connection: OpaquePointer?) -> String? {
        MHD_lookup_connection_value(connection, .HEADER_KIND, name).map { String(cString: $0) }
    }

    private final class QueryList {
        var values: [(name: String, value: String)] = []
    }

    private static func query(of connection: OpaquePointer?) -> [(name: String, value: String)] {
        let list = QueryList()
        MHD_get_connection_values(
            connection, .GET_ARGUMENT_KIND,
            { argument, _, name, value in
                let list = Unmanaged<QueryList>.fromOpaque(argument!).takeUnretainedValue()
                list.values.append(
                    (
                        name.map { String(cString: $0) } ?? "",
                        value.map { String(cString: $0) } ?? ""
                    ))
                return .YES
            }, Unmanaged.passUnretained(list).toOpaque())
        return list.values
    }

    private static func send(
        _ answer: AdminResponse, on connection: OpaquePointer?, allow: String? = nil
    ) -> MHD_Result {
        var body = answer.body
        let response = body.withUnsafeMutableBytes { raw in
            MHD_create_response_from_buffer(
                raw.count, raw.baseAddress, .RESPMEM_MUST_COPY)
        }
        guard let response else { return .NO }
        defer { MHD_destroy_response(response) }
        MHD_add_response_header(response, "Content-Type", answer.contentType)
        MHD_add_response_header(response, "Cache-Control", "no-store")
        if let encoding = answer.contentEncoding {
            MHD_add_response_header(response, "Content-Encoding", encoding)
            MHD_add_response_header(response, "Vary", "Accept, Accept-Encoding")
        }
        if let allow { MHD_add_response_header(response, "Allow", allow) }
        return MHD_queue_response(connection, UInt32(answer.status), response)
    }
}
