import EventLoop
import Glibc
import KVBase
import Testing
import Threads

@Suite struct EventLoopTests {
    @Test func timersRunInOrderAndNeverEarly() throws {
        let loop = try EventLoop()
        var order: [Int] = []
        let start = loop.now
        var elapsed = Nanoseconds.zero
        loop.schedule(after: .milliseconds(20)) {
            order.append(2)
            elapsed = loop.now - start
            loop.stop()
        }
        loop.schedule(after: .milliseconds(5)) { order.append(1) }
        let cancelled = loop.schedule(after: .milliseconds(1)) { order.append(0) }
        cancelled.cancel()
        cancelled.cancel()
        loop.run()
        #expect(order == [1, 2])
        #expect(elapsed >= .milliseconds(20))
    }

    @Test func repeatingTimerRunsUntilCancelledInItsOwnBody() throws {
        let loop = try EventLoop()
        var count = 0
        var timer: LoopTimer?
        timer = loop.schedule(after: .zero, repeating: .milliseconds(1)) {
            count += 1
            if count == 3 {
                timer?.cancel()
                loop.schedule(after: .milliseconds(10)) { loop.stop() }
            }
        }
        loop.run()
        #expect(count == 3)
    }

    @Test func turnEndFollowsTheCallbacksOfTheTurn() throws {
        let loop = try EventLoop()
        var trace: [String] = []
        loop.onTurnEnd { trace.append("a") }
        loop.onTurnEnd { trace.append("b") }
        loop.schedule(after: .zero) { trace.append("x") }
        loop.schedule(after: .zero) { trace.append("y") }
        loop.schedule(after: .milliseconds(2)) { loop.stop() }
        loop.run()
        #expect(Array(trace.prefix(4)) == ["x", "y", "a", "b"])
        #expect(loop.turns > 0)
    }

    @Test func mailboxDeliversEverythingInOrderPerThread() throws {
        let loop = try EventLoop()
        loop.stopInTime()
        let threads = 4
        let each = 20_000
        var next = Array(repeating: 0, count: threads)
        var outOfOrder = 0
        var total = 0
        let mailbox = loop.makeMailbox(capacity: 1_000) { (batch: [(thread: Int, number: Int)]) in
            for message in batch {
                if message.number != next[message.thread] { outOfOrder += 1 }
                next[message.thread] += 1
                total += 1
            }
            if total == threads * each { loop.stop() }
        }
        let workers = try (0..<threads).map { thread in
            try NamedThread(name: "poster-\(thread)") {
                for number in 0..<each {
                    // Full is an expected answer: the loop needs the processor to catch up.
                    var attempts = 0
                    while !mailbox.post((thread, number)), attempts < 1_000_000 {
                        attempts += 1
                        sched_yield()
                    }
                }
            }
        }
        loop.run()
        for worker in workers { worker.join() }
        #expect(outOfOrder == 0)
        #expect(total == threads * each)
        #expect(!mailbox.post((0, 0)), "a mailbox of an ended loop takes nothing")
    }

    @Test func fullMailboxRefuses() throws {
        let loop = try EventLoop()
        var batches: [[Int]] = []
        let mailbox = loop.makeMailbox(capacity: 3) { batches.append($0) }
        #expect(mailbox.post(1))
        #expect(!mailbox.post(contentsOf: [2, 3, 4]))
        #expect(mailbox.post(contentsOf: [2, 3]))
        #expect(!mailbox.post(5))
        loop.schedule(after: .milliseconds(1)) { loop.stop() }
        loop.run()
        #expect(batches == [[1, 2, 3]])
    }

    @Test func loopThreadHandsBackSetupAndStops() throws {
        let (thread, mailbox) = try LoopThread.start(name: "test-loop") { loop in
            loop.makeMailbox(capacity: 8) { (latches: [Latch<Int>]) in
                for latch in latches { latch.open(7) }
            }
        }
        let answer = Latch<Int>()
        #expect(mailbox.post(answer))
        #expect(answer.wait() == 7)
        thread.stop()
        thread.join()
        #expect(!mailbox.post(answer))
    }

    @Test func loopThreadReportsFailedSetup() {
        #expect(throws: DatabaseError(.refused, "no")) {
            _ = try LoopThread.start(name: "test-loop") { _ throws(DatabaseError) -> Int in
                throw DatabaseError(.refused, "no")
            }
        }
    }
}
