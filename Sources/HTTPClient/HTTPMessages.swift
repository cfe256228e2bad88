// What goes to an HTTP server and what comes back.

import KVBase
import Synchronization

/// How requests are made secure. Nothing of it is ever part of a message or a log.
public struct HTTPSecurity: Sendable {
    /// PEM file of the authorities that the server's certificate is checked against; nil: the system's.
    public var authorityFile: String?
    /// PEM files of the client's own certificate and key.
    public var certificateFile: String?
    public var keyFile: String?
    /// For HTTP basic authentication, or, with `signature`, the access key and the secret key.
    public var user: String?
    public var password: String?
    /// AWS Signature Version 4, as `aws:amz:REGION:SERVICE`; nil: requests are not signed.
    public var signature: String?

    public init() {}
}

public struct HTTPHeader: Hashable, Sendable {
    public var name: String
    /// Empty: a header that libcurl would send by itself is left out.
    public var value: String

    public init(_ name: String, _ value: String) {
        self.name = name
        self.value = value
    }
}

public struct HTTPRequest: Sendable {
    public var method: String
    /// `http://` or `https://`, already escaped.
    public var url: String
    public var headers: [HTTPHeader] = []
    public var body: Bytes?
    public var connectTimeout: Duration = .seconds(5)
    /// From the connection's start to the last byte; nil: none, as a stream needs it.
    public var timeout: Duration? = .seconds(60)
    /// A longer answer is an error. Of a stream only answers outside 200...299 count.
    public var responseBytesMax = 64 << 20

    public init(_ method: String, _ url: String, headers: [HTTPHeader] = [], body: Bytes? = nil) {
        self.method = method
        self.url = url
        self.headers = headers
        self.body = body
    }
}

public struct HTTPResponse: Sendable {
    public var status: Int
    public var body: Bytes

    public var isSuccess: Bool { (200..<300).contains(status) }
}

/// Ends requests from another thread: those that run with it, at once, and those that begin later.
public final class HTTPAbort: Sendable {
    private struct State {
        var isAborted = false
        var wakers: [Int: @Sendable () -> Void] = [:]
        var next = 0
    }

    private let state = Mutex(State())

    public init() {}

    public var isAborted: Bool { state.withLock { $0.isAborted } }

    public func abort() {
        state.withLock { state in
            state.isAborted = true
            for (_, wake) in state.wakers { wake() }
        }
    }

    /// `wake` is called at an abort, until `removeWaker`, from any thread.
    func addWaker(_ wake: @escaping @Sendable () -> Void) -> Int {
        state.withLock { state in
            state.next += 1
            state.wakers[state.next] = wake
            return state.next
        }
    }

    func removeWaker(_ token: Int) {
        state.withLock { $0.wakers[token] = nil }
    }
}
