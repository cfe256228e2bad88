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

    /// What a service manager would have heard.
    private final class Manager: Sendable {
        private let heard = Mutex((pings: 0, triggers: 0))
        var pings: Int { heard.withLock(\.pings) }
        var triggers: Int { heard.withLock(\.triggers) }
        func watchdog(_ interval: Nanoseconds) -> HealthMonitor.Watchdog {
            HealthMonitor.Watchdog(
                interval: interval, ping: { [self] in heard.withLock { $0.pings += 1 } },
                trigger: { [self] in heard.withLock { $0.triggers += 1 } })
        }
    }

    @Test func theWatchdogIsFedByProgressAndTriggeredByALongStandstill() {
        let manager = Manager()
        let health = HealthMonitor(
            log: log.component("test"), watchdog: manager.watchdog(.seconds(60)))
        let (busy, stuck) = (Stage(), Stage())
        stuck.set(nil)
        health.watch("busy") { busy.value.withLock { $0 } }
        health.watch("stuck") { stuck.value.withLock { $0 } }
        var now = Instant(nanoseconds: 1 << 50)
        func look() {
            now = now + .seconds(1)
            busy.value.withLock { $0! += 1 }
            _ = health.look(at: now)
        }
        for _ in 0..<100 { look() }
        #expect(manager.pings == 100, "an idle stage and a busy one")
        stuck.set(7)
        for _ in 0..<16 { look() }
        #expect(manager.pings == 116, "patience lasts for a quarter of the interval")
        for _ in 0..<44 { look() }
        #expect(manager.pings == 116)
        #expect(manager.triggers == 0)
        #expect(log.count(.error) == 1)
        look()
        #expect(manager.triggers == 1)
        #expect(log.count(.error) > 3, "a dump of stages and threads")
        for _ in 0..<10 { look() }
        #expect(manager.pings == 116)
        #expect(manager.triggers == 1, "once is enough")
    }

    @Test func aStageThatMovesAgainIsPingedForAgain() {
        let manager = Manager()
        let health = HealthMonitor(
            log: log.component("test"), watchdog: manager.watchdog(.seconds(60)))
        let stage = Stage()
        health.watch("loop") { stage.value.withLock { $0 } }
        var now = Instant(nanoseconds: 1 << 50)
        func look(times: Int) {
            for _ in 0..<times {
                now = now + .seconds(1)
                _ = health.look(at: now)
            }
        }
        look(times: 50)
        let before = manager.pings
        stage.set(1)
        look(times: 5)
        #expect(manager.pings == before + 5)
        #expect(manager.triggers == 0)
    }

    @Test func aStopIsNotHeldToProgress() {
        let manager = Manager()
        let health = HealthMonitor(
            log: log.component("test"), watchdog: manager.watchdog(.seconds(60)))
        let stage = Stage()
        health.watch("loop") { stage.value.withLock { $0 } }
        health.end()
        let start = Instant(nanoseconds: 1 << 50)
        _ = health.look(at: start)
        #expect(!health.look(at: start + .seconds(1_000)))
        #expect(manager.triggers == 0)
        #expect(manager.pings == 2)
    }

    @Test func threadsOfThisProcessAreReadable() throws {
        let own = try #require(ThreadState.currentID())
        let state = try #require(ThreadState.read(own))
        #expect(state.state == "R")
        #expect(ThreadState.all().contains { $0.id == own })
        #expect(ThreadState.read(Int(Int32.max)) == nil)
        #expect(ProcessFiles.bytesMoved().readOrDisk > 0)
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
