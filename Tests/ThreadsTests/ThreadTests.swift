// What threads promise each other. A broken promise shows as a test that hangs or as a wrong value.

import Glibc
import KVBase
import Synchronization
import Testing
import Threads

@Suite struct ThreadTests {
    @Test func aThreadHasItsNameAndIsJoined() throws {
        let seen = Latch<String>()
        let hasEnded = Atomic(false)
        let thread = try NamedThread(name: "a-name-too-long-to-show") {
            var bytes = [UInt8](repeating: 0, count: 64)
            let file = open("/proc/thread-self/comm", O_RDONLY | O_CLOEXEC)
            let count = read(file, &bytes, bytes.count)
            close(file)
            seen.open(String(decoding: bytes.prefix(max(0, count - 1)), as: UTF8.self))
            hasEnded.store(true, ordering: .releasing)
        }
        thread.join()
        let ended = hasEnded.load(ordering: .acquiring)
        #expect(ended)
        #expect(seen.wait() == "a-name-too-long")
    }

    @Test func aLatchKeepsItsFirstValueForAllWhoWait() throws {
        let latch = Latch<Int>()
        let sum = Mutex(0)
        let wait: @Sendable () -> Void = {
            let value = latch.wait()
            sum.withLock { $0 += value }
        }
        let waiters = try (0..<4).map { try NamedThread(name: "waiter-\($0)") { wait() } }
        latch.open(7)
        latch.open(8)
        for waiter in waiters { waiter.join() }
        let total = sum.withLock { $0 }
        #expect(total == 28)
    }

    @Test func eachSignalOfASemaphoreEndsOneWait() throws {
        let semaphore = Semaphore()
        let answers = Semaphore()
        let count = Atomic(0)
        let thread = try NamedThread(name: "counter") {
            for _ in 0..<100 {
                semaphore.wait()
                count.add(1, ordering: .relaxed)
                answers.signal()
            }
        }
        for _ in 0..<100 { semaphore.signal() }
        for _ in 0..<100 { answers.wait() }
        thread.join()
        let counted = count.load(ordering: .relaxed)
        #expect(counted == 100)
    }

    @Test func signalsBeforeAWaitCountAsOne() {
        let signal = TimedSignal()
        signal.signal()
        signal.signal()
        #expect(signal.wait(.seconds(60)))
        #expect(!signal.wait(.milliseconds(1)), "the second one is used up with the first")
    }

    @Test func aSignalEndsAWaitOfAnotherThread() throws {
        let signal = TimedSignal()
        let wasSignalled = Latch<Bool>()
        let thread = try NamedThread(name: "waiter") {
            wasSignalled.open(signal.wait(.seconds(60)))
        }
        signal.signal()
        #expect(wasSignalled.wait())
        thread.join()
    }

    @Test func aMonitorHandsOverInBothDirections() throws {
        final class Cell: @unchecked Sendable {
            let monitor = Monitor()
            /// Under the monitor: even numbers are the test's, odd ones the thread's.
            var number = 0
        }
        let cell = Cell()
        @Sendable func advance(from parity: Int) {
            cell.monitor.locked {
                while cell.number % 2 != parity { cell.monitor.wait() }
                cell.number += 1
                cell.monitor.wakeAll()
            }
        }
        let thread = try NamedThread(name: "odd") { for _ in 0..<1_000 { advance(from: 1) } }
        for _ in 0..<1_000 { advance(from: 0) }
        thread.join()
        #expect(cell.number == 2_000)
    }

    @Test func aWorkerFinishesWhatItWasGiven() throws {
        let worker = try WorkerThread(name: "worker")
        let done = Mutex<[Int]>([])
        for number in 0..<50 { worker.submit { done.withLock { $0.append(number) } } }
        worker.finish()
        worker.finish()
        worker.submit { done.withLock { $0.append(-1) } }
        let jobs = done.withLock { $0 }
        #expect(jobs == Array(0..<50))
    }

    @Test func aWorkerThatIsClosedFinishesTheJobUnderWayAlone() throws {
        let worker = try WorkerThread(name: "worker")
        let began = Latch<Void>()
        let mayEnd = Latch<Void>()
        let done = Mutex<[Int]>([])
        worker.submit {
            began.open(())
            mayEnd.wait()
            done.withLock { $0.append(1) }
        }
        let dropped = Latch<Void>()
        submit(to: worker, whenDropped: dropped) { done.withLock { $0.append(2) } }
        began.wait()
        let closer = try NamedThread(name: "closer") { worker.close() }
        dropped.wait()
        mayEnd.open(())
        closer.join()
        let jobs = done.withLock { $0 }
        #expect(jobs == [1])
    }

    /// Opens `latch` when the worker has let go of the job.
    private func submit(
        to worker: WorkerThread, whenDropped latch: Latch<Void>,
        _ job: @escaping @Sendable () -> Void
    ) {
        let guardian = Guardian(latch)
        worker.submit { withExtendedLifetime(guardian) { job() } }
    }
}

private final class Guardian: Sendable {
    private let latch: Latch<Void>
    init(_ latch: Latch<Void>) { self.latch = latch }
    deinit { latch.open(()) }
}
