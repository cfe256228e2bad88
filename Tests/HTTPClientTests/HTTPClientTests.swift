// The HTTP client against a server on loopback.

import Glibc
import HTTPClient
import KVBase
import Synchronization
import Testing

@Suite struct HTTPClientTests {
    @Test func aRequestArrivesWholeAndItsAnswerToo() throws {
        let body = Bytes((0..<300_000).map { UInt8(truncatingIfNeeded: $0 &* 7) })
        let server = LoopbackServer { request, responder in
            let isWhole = request.body == body && request.header("X-Colour") == "red"
            responder.answer(isWhole ? "200 OK" : "400 Bad", "\(request.line)")
        }
        defer { server.close() }
        let client = try HTTPClient()
        let answer = try client.perform(
            HTTPRequest(
                "PUT", "\(server.url)/a/b?c=d", headers: [HTTPHeader("X-Colour", "red")],
                body: body))
        #expect(answer.status == 200)
        #expect(String(decoding: answer.body, as: UTF8.self) == "PUT /a/b?c=d HTTP/1.1")
    }

    @Test func connectionsAreKept() throws {
        let server = LoopbackServer { _, responder in responder.answer("404 Not Found", "no") }
        defer { server.close() }
        let client = try HTTPClient()
        for _ in 0..<5 {
            let answer = try client.perform(HTTPRequest("POST", server.url, body: []))
            #expect(answer.status == 404 && !answer.isSuccess)
        }
        #expect(server.connections.withLock { $0 } == 1)
    }

    @Test func aSignatureAndBasicAuthenticationAreSent() throws {
        let server = LoopbackServer { request, responder in
            responder.answer("200 OK", request.header("Authorization") ?? "none")
        }
        defer { server.close() }
        var security = HTTPSecurity()
        security.user = "user"
        security.password = "secret"
        let basic = try HTTPClient(security).perform(HTTPRequest("GET", server.url))
        #expect(String(decoding: basic.body, as: UTF8.self) == "Basic dXNlcjpzZWNyZXQ=")
        security.signature = "aws:amz:here:s3"
        let signed = try HTTPClient(security).perform(HTTPRequest("GET", server.url))
        let text = String(decoding: signed.body, as: UTF8.self)
        #expect(text.hasPrefix("AWS4-HMAC-SHA256 Credential=user/"))
        #expect(text.contains("/here/s3/aws4_request"))
        #expect(!text.contains("secret"))
    }

    @Test func anAnswerThatIsTooLongIsAnError() throws {
        let server = LoopbackServer { _, responder in
            responder.answer("200 OK", String(repeating: "x", count: 5_000))
        }
        defer { server.close() }
        var request = HTTPRequest("GET", "\(server.url)/secret")
        request.responseBytesMax = 4_999
        let error = #expect(throws: DatabaseError.self) {
            try HTTPClient().perform(request)
        }
        #expect(error?.code == .unavailable)
        #expect(error?.message.contains("longer than 4999 bytes") == true)
        #expect(error?.message.contains("secret") == false)
    }

    @Test func nobodyThereIsUnavailable() throws {
        let server = LoopbackServer { _, _ in }
        server.close()
        let error = #expect(throws: DatabaseError.self) {
            try HTTPClient().perform(HTTPRequest("GET", server.url))
        }
        #expect(error?.code == .unavailable)
    }

    @Test func aSilentServerEndsWithTheTimeout() throws {
        let server = LoopbackServer { _, responder in responder.waitForEnd() }
        defer { server.close() }
        var request = HTTPRequest("GET", server.url)
        request.timeout = .milliseconds(50)
        #expect(throws: DatabaseError.self) { try HTTPClient().perform(request) }
    }

    @Test func aStreamGivesPiecesAsTheyComeAndEndsAtWill() throws {
        let server = LoopbackServer { _, responder in
            responder.send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
            // The second piece never comes: the client must have the first without it.
            responder.send("3\r\none\r\n")
            responder.waitForEnd()
        }
        defer { server.close() }
        let seen = Mutex<String>("")
        var request = HTTPRequest("POST", server.url, body: Bytes("{}".utf8))
        request.timeout = nil
        let answer = try HTTPClient().stream(request) { piece in
            seen.withLock { $0 += String(decoding: piece, as: UTF8.self) }
            return false
        }
        #expect(answer.status == 200 && answer.body.isEmpty)
        #expect(seen.withLock { $0 } == "one")
    }

    @Test func anotherThreadAbortsASilentStream() throws {
        let server = LoopbackServer { _, responder in
            responder.send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\none\r\n")
            responder.waitForEnd()
        }
        defer { server.close() }
        let abort = HTTPAbort()
        var request = HTTPRequest("POST", server.url, body: [])
        request.timeout = nil
        let error = #expect(throws: DatabaseError.self) {
            try HTTPClient().stream(request, abort: abort) { _ in
                startThread { abort.abort() }
                return true
            }
        }
        #expect(error?.message.contains("aborted") == true)
        #expect(throws: DatabaseError.self) { try HTTPClient().perform(request, abort: abort) }
    }

    @Test func aRefusedStreamHasItsBody() throws {
        let server = LoopbackServer { _, responder in responder.answer("401 No", "who are you") }
        defer { server.close() }
        let answer = try HTTPClient().stream(HTTPRequest("POST", server.url, body: [])) { _ in
            Issue.record("a piece of a refusal")
            return true
        }
        #expect(answer.status == 401)
        #expect(String(decoding: answer.body, as: UTF8.self) == "who are you")
    }

    @Test func textIsEscapedForSignatures() {
        #expect(HTTPClient.escape("a b/ü~*", keeping: "/") == "a%20b/%C3%BC~%2A")
        #expect(HTTPClient.escape("a/b") == "a%2Fb")
    }
}
