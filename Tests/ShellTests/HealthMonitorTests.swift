import AdminHTTP
import KVBase
import Metrics
import Synchronization
import SystemdSupport
import Testing

@testable import Daemon

@Suite struct HealthMonitorTests {
    private final class Stage: Sendable {
        let value = Mutex<UInt64?>(0)
        func set(_ new: UInt64?) { value.withLock { $0 = new } }
    }

    private let log = Log(program: "kvtest", format: .json, level: .error, descriptor: -1)

    private func body(_ response: AdminResponse) -> String {
        String(decoding: response.body, as: UTF8.self)
    }

    @Test func aStageThatStandsStillIsReportedUntilItMovesOrIdles() {
        let health = HealthMonitor(log: log.component("test"))
        let stage = Stage()
        health.watch("loop") { stage.value.withLock { $0 } }
        var now = Instant(nanoseconds: 1 << 50)
        func look(after seconds: UInt64) -> Int {
            now = now + .seconds(seconds)
            _ = health.look(at: now)
            return health.livePage().status
        }
        #expect(look(after: 1) == 200)
        stage.set(1)
        #expect(look(after: 60) == 200, "it moved")
        #expect(look(after: 4) == 200, "not for long enough")
        #expect(look(after: 4) == 503)
        #expect(body(health.livePage()) == "{\"live\":false,\"reasons\":[\"loop: no progress\"]}\n")
        #expect(log.count(.error) == 1)
        stage.set(nil)
        #expect(look(after: 60) == 200, "idle")
        stage.set(1)
        #expect(look(after: 60) == 200, "busy again")
        #expect(look(after: 60) == 503)
        stage.set(2)
        #expect(look(after: 1) == 200)
    }

    @Test func readinessNeedsTheStartAndEveryCheck() {
        let health = HealthMonitor(log: log.component("test"))
        let box = Stage()
        box.set(1)
        health.addReadinessCheck("groups") {
            box.value.withLock { $0 == 1 ? "no \"leader\"" : nil }
        }
        #expect(health.readyPage().status == 503)
        #expect(
            body(health.readyPage())
                == "{\"ready\":false,\"reasons\":[\"starting\",\"groups: no \\\"leader\\\"\"]}\n")
        health.begin()
        #expect(
            body(health.readyPage())
                == "{\"ready\":false,\"reasons\":[\"groups: no \\\"leader\\\"\"]}\n")
        box.set(0)
        #expect(health.readyPage().status == 200)
        #expect(body(health.readyPage()) == "{\"ready\":true,\"reasons\":[]}\n")
        health.end()
        #expect(body(health.readyPage()) == "{\"ready\":false,\"reasons\":[\"stopping\"]}\n")
    }
}
