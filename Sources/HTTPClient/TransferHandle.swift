// One libcurl transfer at a time, with the connections that it leaves open.

import CCurl
import KVBase

/// Used by one thread at a time; libcurl's handles may move between threads.
final class TransferHandle: @unchecked Sendable {
    /// The only part that another thread may touch, and only by `curl_multi_wakeup`.
    private let multi: OpaquePointer
    private let easy: OpaquePointer

    /// Only to be woken: outlives no handle, as wakers are removed when a run ends.
    private struct Wakeable: @unchecked Sendable {
        let multi: OpaquePointer
    }

    init?() {
        guard let multi = curl_multi_init() else { return nil }
        guard let easy = curl_easy_init() else {
            curl_multi_cleanup(multi)
            return nil
        }
        self.multi = OpaquePointer(multi)
        self.easy = OpaquePointer(easy)
    }

    deinit {
        curl_easy_cleanup(UnsafeMutableRawPointer(easy))
        curl_multi_cleanup(UnsafeMutableRawPointer(multi))
    }

    /// What libcurl's callback writes to during one request.
    private final class Answer {
        let easy: UnsafeMutableRawPointer
        let bytesMax: Int
        let receive: ((UnsafeRawBufferPointer) -> Bool)?
        var body: Bytes = []
        var isEnough = false
        var isTooLong = false

        init(
            easy: UnsafeMutableRawPointer, bytesMax: Int,
            receive: ((UnsafeRawBufferPointer) -> Bool)?
        ) {
            self.easy = easy
            self.bytesMax = bytesMax
            self.receive = receive
        }

        /// False ends the transfer.
        func take(_ piece: UnsafeRawBufferPointer) -> Bool {
            if let receive, (200..<300).contains(rk_curl_status(easy)) {
                isEnough = !receive(piece)
                return !isEnough
            }
            isTooLong = body.count + piece.count > bytesMax
            if !isTooLong { body += piece }
            return !isTooLong
        }
    }

    func run(
        _ request: HTTPRequest, _ security: HTTPSecurity, abort: HTTPAbort?,
        receive: ((UnsafeRawBufferPointer) -> Bool)?, _ progress: (Int) -> Void
    ) throws(DatabaseError) -> HTTPResponse {
        let handle = UnsafeMutableRawPointer(easy)
        let answer = Answer(
            easy: handle, bytesMax: request.responseBytesMax, receive: receive)
        var list: UnsafeMutablePointer<curl_slist>?
        for header in request.headers {
            // Without a value: libcurl's own header of that name is left out.
            list = curl_slist_append(
                list, header.value.isEmpty ? "\(header.name):" : "\(header.name): \(header.value)")
        }
        defer { curl_slist_free_all(list) }
        curl_easy_reset(handle)
        var codes = options(request, security, headers: list)
        codes += [
            rk_curl_set_pointer(
                handle, CURLOPT_WRITEDATA, Unmanaged.passUnretained(answer).toOpaque()),
            rk_curl_set_sink(handle, CURLOPT_WRITEFUNCTION) { bytes, size, count, context in
                guard let bytes, let context else { return 0 }
                let answer = Unmanaged<Answer>.fromOpaque(context).takeUnretainedValue()
                let piece = UnsafeRawBufferPointer(start: bytes, count: size * count)
                return answer.take(piece) ? piece.count : 0
            },
        ]
        for code in codes where code != CURLE_OK { throw failure(code, request) }
        let ended: CURLcode?
        if let body = request.body {
            ended = body.withUnsafeBytes { bytes in
                _ = rk_curl_set_size(
                    handle, CURLOPT_POSTFIELDSIZE_LARGE, curl_off_t(bytes.count))
                // Nil would mean: ask a callback for the body.
                let start = bytes.baseAddress ?? UnsafeRawPointer(handle)
                _ = rk_curl_set_pointer(handle, CURLOPT_POSTFIELDS, start)
                return transfer(abort) { progress(Int(rk_curl_sent(handle))) }
            }
        } else {
            ended = transfer(abort) { progress(Int(rk_curl_received(handle))) }
        }
        return try withExtendedLifetime(answer) { () throws(DatabaseError) in
            guard let ended else {
                throw DatabaseError(.unavailable, "\(Self.origin(request.url)): aborted")
            }
            if answer.isTooLong {
                throw DatabaseError(
                    .unavailable,
                    "\(Self.origin(request.url)): its answer is longer than "
                        + "\(request.responseBytesMax) bytes")
            }
            guard ended == CURLE_OK || answer.isEnough else { throw failure(ended, request) }
            return HTTPResponse(status: rk_curl_status(handle), body: answer.body)
        }
    }

    private func options(
        _ request: HTTPRequest, _ security: HTTPSecurity,
        headers: UnsafeMutablePointer<curl_slist>?
    ) -> [CURLcode] {
        let handle = UnsafeMutableRawPointer(easy)
        var codes: [CURLcode] = [
            rk_curl_set_text(handle, CURLOPT_URL, request.url),
            rk_curl_set_number(handle, CURLOPT_NOSIGNAL, 1),
            rk_curl_set_number(handle, CURLOPT_HTTP_VERSION, Int(CURL_HTTP_VERSION_1_1)),
            rk_curl_set_text(handle, CURLOPT_PROTOCOLS_STR, "http,https"),
            rk_curl_set_number(
                handle, CURLOPT_CONNECTTIMEOUT_MS, Self.milliseconds(request.connectTimeout)),
            // Waiting for leave to send a long body would only cost a second with servers that never give
            // it. To leave the header out would not do: libcurl signs it all the same.
            rk_curl_set_number(handle, CURLOPT_EXPECT_100_TIMEOUT_MS, 1),
            // A stream is silent for long; a dead peer must be noticed nevertheless.
            rk_curl_set_number(handle, CURLOPT_TCP_KEEPALIVE, 1),
            rk_curl_set_number(handle, CURLOPT_TCP_KEEPIDLE, 5),
            rk_curl_set_number(handle, CURLOPT_TCP_KEEPINTVL, 2),
            rk_curl_set_pointer(handle, CURLOPT_HTTPHEADER, headers),
        ]
        if request.method == "HEAD" {
            codes.append(rk_curl_set_number(handle, CURLOPT_NOBODY, 1))
        } else {
            codes.append(rk_curl_set_text(handle, CURLOPT_CUSTOMREQUEST, request.method))
        }
        if let timeout = request.timeout {
            codes.append(
                rk_curl_set_number(handle, CURLOPT_TIMEOUT_MS, Self.milliseconds(timeout)))
        }
        let texts: [(CURLoption, String?)] = [
            (CURLOPT_CAINFO, security.authorityFile),
            (CURLOPT_SSLCERT, security.certificateFile),
            (CURLOPT_SSLKEY, security.keyFile),
            (CURLOPT_USERNAME, security.user),
            (CURLOPT_PASSWORD, security.password),
            (CURLOPT_AWS_SIGV4, security.signature),
        ]
        for (option, text) in texts {
            if let text { codes.append(rk_curl_set_text(handle, option, text)) }
        }
        return codes
    }

    /// Nil when aborted. `step`: something may have been sent or received.
    private func transfer(_ abort: HTTPAbort?, _ step: () -> Void) -> CURLcode? {
        let multiHandle = UnsafeMutableRawPointer(multi)
        let easyHandle = UnsafeMutableRawPointer(easy)
        let wakeable = Wakeable(multi: multi)
        let token = abort?.addWaker {
            curl_multi_wakeup(UnsafeMutableRawPointer(wakeable.multi))
        }
        defer { if let token { abort?.removeWaker(token) } }
        guard curl_multi_add_handle(multiHandle, easyHandle) == CURLM_OK else {
            return CURLE_OUT_OF_MEMORY
        }
        defer { curl_multi_remove_handle(multiHandle, easyHandle) }
        while abort?.isAborted != true {
            var running: Int32 = 0
            guard curl_multi_perform(multiHandle, &running) == CURLM_OK else {
                return CURLE_OUT_OF_MEMORY
            }
            step()
            var result = CURLE_OK
            if rk_curl_is_done(multiHandle, &result) != 0 { return result }
            guard curl_multi_poll(multiHandle, nil, 0, 1_000, nil) == CURLM_OK else {
                return CURLE_OUT_OF_MEMORY
            }
        }
        return nil
    }

    private func failure(_ code: CURLcode, _ request: HTTPRequest) -> DatabaseError {
        DatabaseError(
            .unavailable,
            "\(Self.origin(request.url)): \(String(cString: curl_easy_strerror(code)))")
    }

    /// Scheme, host and port: a path or query is no matter of a message.
    private static func origin(_ url: String) -> Substring {
        guard let scheme = url.firstRange(of: "://") else { return url[...] }
        let end = url[scheme.upperBound...].firstIndex(of: "/") ?? url.endIndex
        return url[..<end]
    }

    private static func milliseconds(_ duration: Duration) -> Int {
        max(1, Int(duration / .milliseconds(1)))
    }
}
