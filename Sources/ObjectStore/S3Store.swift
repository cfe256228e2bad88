// Objects in a bucket of an S3-compatible store, by libcurl, which also signs the requests
// (AWS Signature Version 4).

import CCurl
import Glibc
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

    /// Of one request, from connect to the last byte.
    private static let timeoutSeconds = 60
    private static let connectSeconds = 5
    /// Of an answer: more than any object this product stores.
    static let answerBytesMax = 4 << 30

    private let settings: Settings
    public var description: String { "\(settings.endpoint)/\(settings.bucket)/\(settings.prefix)" }

    /// libcurl asks for one call before any thread uses it.
    private static let isReady: Bool = curl_global_init(Int(CURL_GLOBAL_DEFAULT)) == CURLE_OK

    public init(_ settings: Settings) throws(DatabaseError) {
        guard Self.isReady else { throw DatabaseError(.storageFailed, "libcurl does not start") }
        self.settings = settings
    }

    public func put(_ name: String, _ bytes: Bytes) throws(DatabaseError) {
        let answer = try request("PUT", key: settings.prefix + name, query: "", body: bytes)
        try expect(answer, "store \(name)")
    }

    public func get(_ name: String) throws(DatabaseError) -> Bytes {
        let answer = try request("GET", key: settings.prefix + name, query: "", body: nil)
        try expect(answer, "fetch \(name)")
        return answer.body
    }

    public func list() throws(DatabaseError) -> [String] {
        var names: [String] = []
        var continuation: String?
        repeat {
            var query = "list-type=2&prefix=\(Self.escape(settings.prefix))"
            if let continuation {
                query = "continuation-token=\(Self.escape(continuation))&" + query
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

    // MARK: Requests

    private struct Answer {
        var status: Int
        var body: Bytes
    }

    /// What libcurl's callbacks read from and write to during one request.
    private final class Transfer {
        let upload: Bytes
        var sent = 0
        var received: Bytes = []
        init(upload: Bytes) { self.upload = upload }
    }

    private func request(
        _ method: String, key: String, query: String, body: Bytes?
    ) throws(DatabaseError) -> Answer {
        guard let handle = curl_easy_init() else {
            throw DatabaseError(.storageFailed, "libcurl gives no handle")
        }
        defer { curl_easy_cleanup(handle) }
        let path = key.isEmpty ? "" : "/" + Self.escape(key, keeping: "/")
        let url =
            "\(settings.endpoint)/\(settings.bucket)\(path)" + (query.isEmpty ? "" : "?\(query)")
        let transfer = Transfer(upload: body ?? [])
        let context = Unmanaged.passUnretained(transfer).toOpaque()
        var codes: [CURLcode] = [
            rk_curl_set_text(handle, CURLOPT_URL, url),
            rk_curl_set_text(handle, CURLOPT_CUSTOMREQUEST, method),
            rk_curl_set_text(
                handle, CURLOPT_USERPWD, "\(settings.accessKey):\(settings.secretKey)"),
            rk_curl_set_text(
                handle, CURLOPT_AWS_SIGV4, "aws:amz:\(settings.region):s3"),
            rk_curl_set_number(handle, CURLOPT_NOSIGNAL, 1),
            rk_curl_set_number(handle, CURLOPT_TIMEOUT, Self.timeoutSeconds),
            rk_curl_set_number(handle, CURLOPT_CONNECTTIMEOUT, Self.connectSeconds),
            rk_curl_set_text(handle, CURLOPT_PROTOCOLS_STR, "http,https"),
            rk_curl_set_pointer(handle, CURLOPT_WRITEDATA, context),
            rk_curl_set_body(handle, CURLOPT_WRITEFUNCTION) { bytes, size, count, context in
                guard let bytes, let context else { return 0 }
                let transfer = Unmanaged<Transfer>.fromOpaque(context).takeUnretainedValue()
                let length = size * count
                guard transfer.received.count + length <= S3Store.answerBytesMax else {
                    return 0
                }
                transfer.received += UnsafeRawBufferPointer(start: bytes, count: length)
                return length
            },
        ]
        // The signature covers the body's digest, which the store must be told.
        var headers = curl_slist_append(nil, "x-amz-content-sha256: UNSIGNED-PAYLOAD")
        defer { curl_slist_free_all(headers) }
        if body != nil {
            headers = curl_slist_append(headers, "Content-Type: application/octet-stream")
            headers = curl_slist_append(headers, "Expect:")
            codes.append(rk_curl_set_number(handle, CURLOPT_UPLOAD, 1))
            codes.append(
                rk_curl_set_size(
                    handle, CURLOPT_INFILESIZE_LARGE, curl_off_t(transfer.upload.count)))
            codes.append(rk_curl_set_pointer(handle, CURLOPT_READDATA, context))
            codes.append(
                rk_curl_set_body(handle, CURLOPT_READFUNCTION) { bytes, size, count, context in
                    guard let bytes, let context else { return 0 }
                    let transfer = Unmanaged<Transfer>.fromOpaque(context).takeUnretainedValue()
                    let length = min(size * count, transfer.upload.count - transfer.sent)
                    transfer.upload.withUnsafeBytes {
                        UnsafeMutableRawPointer(bytes).copyMemory(
                            from: $0.baseAddress! + transfer.sent, byteCount: length)
                    }
                    transfer.sent += length
                    return length
                })
        }
        codes.append(
            rk_curl_set_pointer(handle, CURLOPT_HTTPHEADER, UnsafeMutableRawPointer(headers)))
        for code in codes where code != CURLE_OK { throw failure(code) }
        let code = withExtendedLifetime(transfer) { curl_easy_perform(handle) }
        guard code == CURLE_OK else { throw failure(code) }
        return Answer(status: rk_curl_status(handle), body: transfer.received)
    }

    private func failure(_ code: CURLcode) -> DatabaseError {
        DatabaseError(
            .unavailable, "\(description): \(String(cString: curl_easy_strerror(code)))")
    }

    private func expect(_ answer: Answer, _ what: String) throws(DatabaseError) {
        guard !(200..<300).contains(answer.status) else { return }
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

    /// Percent escapes of RFC 3986, as the signature wants them.
    static func escape(_ text: String, keeping kept: String = "") -> String {
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
}
