import Glibc
import KVBase
import Testing

@testable import SystemdSupport

/// What `body` writes to the log, by a pipe.
private func written(
    _ format: Log.Format, level: LogLevel = .info, burst: Int = 0, _ body: (Log) -> Void
) -> String {
    var ends: [Int32] = [0, 0]
    precondition(pipe(&ends) == 0)
    body(Log(program: "kvtest", format: format, level: level, burst: burst, descriptor: ends[1]))
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

    @Test func withoutJournalMessagesAreLinesOfJSON() throws {
        var ends: [Int32] = [0, 0]
        precondition(pipe(&ends) == 0)
        let log = Log(
            program: "kvtest", format: .journal, level: .info, burst: 0, descriptor: ends[1],
            journalSocket: "/nowhere/socket")
        log.component("x").info("still told")
        close(ends[1])
        var buffer = [UInt8](repeating: 0, count: 4096)
        let count = read(ends[0], &buffer, buffer.count)
        close(ends[0])
        let lines = String(decoding: buffer[..<count], as: UTF8.self).split(separator: "\n")
        try #require(lines.count == 2)
        #expect(lines[0].contains("\"level\":\"warning\""))
        #expect(lines[0].contains("there is no journal"))
        #expect(lines[1].contains("\"message\":\"still told\""))
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

    @Test func eventsAreNamed() {
        let text = written(.json) { log in
            log.component("daemon").notice("ready", event: .started)
        }
        #expect(text.contains(",\"component\":\"daemon\",\"event\":\"started\",\"message\":"))
    }

    @Test func eventIdsAreUniqueAndWellFormed() {
        let ids = LogEvent.all.map(\.id)
        #expect(Set(ids).count == ids.count)
        #expect(Set(LogEvent.all.map(\.name)).count == ids.count)
        for id in ids {
            #expect(id.utf8.count == 32)
            #expect(id.allSatisfy { "0123456789abcdef".contains($0) }, "\(id)")
        }
    }

    @Test func oneKindOfMessageDoesNotDrownTheOthers() {
        let text = written(.text, burst: 3) { log in
            for number in 1...50 { log.component("x").info("often \(number)") }
            log.component("x").info("another")
            #expect(log.count(.info) == 4)
            #expect(log.countLeftOut(.info) == 47)
            #expect(log.countLeftOut(.error) == 0)
        }
        let lines = text.split(separator: "\n")
        #expect(lines.count == 5)
        #expect(lines[2].hasSuffix(" info x: often 3"))
        #expect(
            lines[3].hasSuffix(
                " warning x: more messages of this kind are left out for up to 10 s"
                    + " example=\"often 4\""))
        #expect(lines[4].hasSuffix(" info x: another"))
    }

    @Test func whatWasLeftOutIsToldWithTheNextWindow() {
        let limiter = LogLimiter()
        let site = LogLimiter.Site(file: 1, line: 2)
        let start = Instant(nanoseconds: 1_000)
        #expect(limiter.judge(site, burst: 2, now: start) == .write)
        #expect(limiter.judge(site, burst: 2, now: start) == .write)
        #expect(limiter.judge(site, burst: 2, now: start) == .leaveOutFirst)
        #expect(limiter.judge(site, burst: 2, now: start) == .leaveOut)
        let other = LogLimiter.Site(file: 1, line: 3)
        #expect(limiter.judge(other, burst: 2, now: start) == .write)
        #expect(limiter.judge(site, burst: 0, now: start) == .write, "0 is no limit")
        let later = start + LogLimiter.windowLength
        #expect(limiter.judge(site, burst: 2, now: later) == .writeAfter(leftOut: 2))
        #expect(limiter.judge(site, burst: 2, now: later) == .write)
        #expect(limiter.judge(site, burst: 2, now: later) == .leaveOutFirst)
    }
}
