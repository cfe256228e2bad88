// HTTP/1.1 requests by libcurl. Calls block: they belong on a thread of their own.

import CCurl
import KVBase
import Synchronization

/// May be used by several threads at once. Connections are kept for later requests.
public final class HTTPClient: Sendable {
    private let security: HTTPSecurity
    /// Handles that no request uses, each with its open connections.
    private let idle = Mutex<[TransferHandle]>([])
    private static let idleHandlesMax = 4

    /// libcurl asks for one call before any thread uses it.
    private static let isReady: Bool = curl_global_init(Int(CURL_GLOBAL_DEFAULT)) == CURLE_OK

    public init(_ security: HTTPSecurity = HTTPSecurity()) throws(DatabaseError) {
        guard Self.isReady else { throw DatabaseError(.unavailable, "libcurl does not start") }
        self.security = security
    }

    /// Answers of any status are answers. `.unavailable`: there was none, or it was too long; whether
    /// the server carried the request out is not known then. `progress` is told how much of the body was sent,
    /// or, of a request without one, how much of the answer came.
    public func perform(
        _ request: HTTPRequest, abort: HTTPAbort? = nil, progress: (Int) -> Void = { _ in }
    ) throws(DatabaseError) -> HTTPResponse {
        try run(request, abort: abort, receive: nil, progress)
    }

    /// Gives each piece of an answer of status 200...299 to `receive` as it comes, on this thread;
    /// `false` ends the transfer without error. Returns when the answer ends, `receive` wants no more
    /// or `abort` is used (`.unavailable`, "aborted"). The body of the response is empty then; of
    /// other statuses it is whole.
    public func stream(
        _ request: HTTPRequest, abort: HTTPAbort? = nil,
        receive: @escaping (UnsafeRawBufferPointer) -> Bool
    ) throws(DatabaseError) -> HTTPResponse {
        try run(request, abort: abort, receive: receive) { _ in }
    }

    /// Percent escapes of RFC 3986, as signatures want them. ASCII that is in `kept` stays as it is.
    public static func escape(_ text: String, keeping kept: String = "") -> String {
        var escaped = ""
        for byte in text.utf8 {
            let scalar = Unicode.Scalar(byte)
            let isPlain =
                ("A"..."Z").contains(scalar) || ("a"..."z").contains(scalar)
                || ("0"..."9").contains(scalar) || "-._~".unicodeScalars.contains(scalar)
                || kept.unicodeScalars.contains(scalar)
            if isPlain {
                escaped.unicodeScalars.append(scalar)
            } else {
                let digits = String(byte, radix: 16, uppercase: true)
                escaped += "%" + (digits.utf8.count == 1 ? "0" : "") + digits
            }
        }
        return escaped
    }

    // MARK: Helpers

    private func run(
        _ request: HTTPRequest, abort: HTTPAbort?,
        receive: ((UnsafeRawBufferPointer) -> Bool)?, _ progress: (Int) -> Void
    ) throws(DatabaseError) -> HTTPResponse {
        var kept = idle.withLock { $0.popLast() }
        if kept == nil { kept = TransferHandle() }
        guard let handle = kept else {
            throw DatabaseError(.unavailable, "libcurl gives no handle")
        }
        defer {
            idle.withLock { if $0.count < Self.idleHandlesMax { $0.append(handle) } }
        }
        return try handle.run(request, security, abort: abort, receive: receive, progress)
    }
}
