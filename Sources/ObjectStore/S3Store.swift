// Objects in a bucket of an S3-compatible store. Requests carry AWS Signature Version 4.

import HTTPClient
import KVBase

public final class S3Store: ObjectStore {
    public struct Settings: Sendable {
        /// `http://host:port` or `https://host`.
        public var endpoint: String
        public var bucket: String
        /// In front of every name; empty, or ends with a slash.
        public var prefix: String
        public var region: String
        public var accessKey: String
        public var secretKey: String
        /// PEM file of the authorities that the endpoint's certificate is checked against; nil: the
        /// system's.
        public var authorityFile: String?

        public init(
            endpoint: String, bucket: String, prefix: String, region: String, accessKey: String,
            secretKey: String
        ) {
            self.endpoint = endpoint
            self.bucket = bucket
            self.prefix = prefix
            self.region = region
            self.accessKey = accessKey
            self.secretKey = secretKey
        }
    }

    /// More than any object this product stores.
    private static let objectBytesMax = 4 << 30

    private let settings: Settings
    public var description: String { "\(settings.endpoint)/\(settings.bucket)/\(settings.prefix)" }

    private let client: HTTPClient
    private let aborting = HTTPAbort()

    public init(_ settings: Settings) throws(DatabaseError) {
        self.settings = settings
        var security = HTTPSecurity()
        security.authorityFile = settings.authorityFile
        security.user = settings.accessKey
        security.password = settings.secretKey
        security.signature = "aws:amz:\(settings.region):s3"
        client = try HTTPClient(security)
    }

    public func put(
        _ name: String, _ bytes: Bytes, progress: (Int) -> Void
    ) throws(DatabaseError) {
        let answer = try request(
            "PUT", key: settings.prefix + name, query: "", body: bytes, progress)
        try expect(answer, "store \(name)")
    }

    public func get(
        _ name: String, progress: (Int) -> Void
    ) throws(DatabaseError) -> Bytes {
        let answer = try request(
            "GET", key: settings.prefix + name, query: "", body: nil, progress)
        try expect(answer, "fetch \(name)")
        return answer.body
    }

    public func list() throws(DatabaseError) -> [String] {
        var names: [String] = []
        var continuation: String?
        repeat {
            var query = "list-type=2&prefix=\(HTTPClient.escape(settings.prefix))"
            if let continuation {
                query = "continuation-token=\(HTTPClient.escape(continuation))&" + query
            }
            let answer = try request("GET", key: "", query: query, body: nil)
            try expect(answer, "list \(description)")
            let text = String(decoding: answer.body, as: UTF8.self)
            for key in Self.elements("Key", of: text) where key.hasPrefix(settings.prefix) {
                names.append(String(key.dropFirst(settings.prefix.count)))
            }
            continuation = Self.elements("NextContinuationToken", of: text).first
        } while continuation != nil
        return names.sorted()
    }

    public func delete(_ name: String) throws(DatabaseError) {
        let answer = try request("DELETE", key: settings.prefix + name, query: "", body: nil)
        guard answer.status != 404 else { return }
        try expect(answer, "delete \(name)")
    }

    public func abort() { aborting.abort() }

    // MARK: Requests

    private func request(
        _ method: String, key: String, query: String, body: Bytes?,
        _ progress: (Int) -> Void = { _ in }
    ) throws(DatabaseError) -> HTTPResponse {
        let path = key.isEmpty ? "" : "/" + HTTPClient.escape(key, keeping: "/")
        let url =
            "\(settings.endpoint)/\(settings.bucket)\(path)" + (query.isEmpty ? "" : "?\(query)")
        // The objects carry checksums of their own, so their digest is not part of the signature.
        var headers = [HTTPHeader("x-amz-content-sha256", "UNSIGNED-PAYLOAD")]
        if body != nil {
            headers.append(HTTPHeader("Content-Type", "application/octet-stream"))
        }
        var request = HTTPRequest(method, url, headers: headers, body: body)
        request.responseBytesMax = Self.objectBytesMax
        return try client.perform(request, abort: aborting, progress: progress)
    }

    private func expect(_ answer: HTTPResponse, _ what: String) throws(DatabaseError) {
        guard !answer.isSuccess else { return }
        let text = String(decoding: answer.body.prefix(4_096), as: UTF8.self)
        let reason = Self.elements("Code", of: text) + Self.elements("Message", of: text)
        throw DatabaseError(
            answer.status >= 500 ? .unavailable : .storageFailed,
            "\(what): \(settings.endpoint) answers \(answer.status)"
                + (reason.isEmpty ? "" : " (\(reason.joined(separator: ": ")))"))
    }

    /// The texts of all elements of that name: the answers are flat lists, so no XML parser is
    /// needed.
    static func elements(_ name: String, of text: String) -> [String] {
        var found: [String] = []
        var rest = Substring(text)
        while let open = rest.firstRange(of: "<\(name)>"),
            let close = rest[open.upperBound...].firstRange(of: "</\(name)>")
        {
            found.append(unescape(rest[open.upperBound..<close.lowerBound]))
            rest = rest[close.upperBound...]
        }
        return found
    }

    private static func unescape(_ text: Substring) -> String {
        guard text.contains("&") else { return String(text) }
        return String(text).replacing("&lt;", with: "<").replacing("&gt;", with: ">")
            .replacing("&quot;", with: "\"").replacing("&apos;", with: "'")
            .replacing("&amp;", with: "&")
    }
}
