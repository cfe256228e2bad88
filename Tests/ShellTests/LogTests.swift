import Glibc
import KVBase
import SystemdSupport
import Testing

/// What `body` writes to the log, by a pipe.
private func written(
    _ format: Log.Format, level: LogLevel = .info, _ body: (Log) -> Void
) -> String {
    var ends: [Int32] = [0, 0]
    precondition(pipe(&ends) == 0)
    body(Log(program: "kvtest", format: format, level: level, descriptor: ends[1]))
    close(ends[1])
    var text: [UInt8] = []
    var buffer = [UInt8](repeating: 0, count: 4096)
    while case let count = read(ends[0], &buffer, buffer.count), count > 0 {
        text.append(contentsOf: buffer[..<count])
    }
    close(ends[0])
    return String(decoding: text, as: UTF8.self)
}

@Suite struct LogTests {
    @Test func jsonLinesEscape() {
        let text = written(.json) { log in
            log.component("raft").warning(
                "said \"no\"\n", [LogField("term", 7), LogField("path", "a\\b\u{1}")])
        }
        #expect(text.hasPrefix("{\"time\":\"20"))
        let expected =
            "Z\",\"level\":\"warning\",\"program\":\"kvtest\",\"component\":\"raft\""
            + ",\"message\":\"said \\\"no\\\"\\n\",\"term\":\"7\""
            + ",\"path\":\"a\\\\b\\u0001\"}\n"
        #expect(text.hasSuffix(expected))
    }

    @Test func textIsOneLine() {
        let text = written(.text) { log in
            log.component("disk").error(
                "two\nlines", [LogField("path", "/a b"), LogField("code", 5)])
        }
        #expect(text.hasSuffix("Z error disk: two lines path=\"/a b\" code=5\n"))
        #expect(text.filter { $0 == "\n" }.count == 1)
    }

    @Test func levelsFilterAndCount() {
        let text = written(.text, level: .warning) { log in
            let part = log.component("x")
            var built = 0
            func message() -> String {
                built += 1
                return "m"
            }
            part.info(message())
            part.debug(message())
            #expect(built == 0, "a dropped message is not built")
            part.error(message())
            log.level = .debug
            part.debug(message())
            #expect(built == 2)
            #expect(LogLevel.allCases.map(log.count) == [1, 0, 0, 0, 1])
        }
        #expect(text.split(separator: "\n").count == 2)
    }

    @Test func aPipeIsNoTerminal() {
        #expect(written(.automatic) { $0.component("x").info("m") }.hasPrefix("{"))
    }
}
