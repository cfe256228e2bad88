// The event loop: one libuv loop on one thread, with everything that it watches.

import CUV
import Glibc
import KVBase

/// One loop, driven by the thread that calls `run`, owner of its timers, listeners, connections and
/// mailboxes. Neither the loop nor anything made from it may be touched by another thread; other
/// threads talk to it through a `Mailbox` and look at `progress`.
///
/// A loop runs once: when `run` returns, every handle is closed.
public final class EventLoop {
    /// The longest time between two turns of a loop that is not stuck.
    public static let heartbeatInterval = Nanoseconds.milliseconds(500)

    /// Counters that other threads may read.
    public let progress = LoopProgress()

    let uv: UnsafeMutablePointer<uv_loop_t>
    /// Every read of every connection lands here; its content lives for one callback.
    let readBuffer: UnsafeMutableRawBufferPointer
    private let prepare: UnsafeMutablePointer<uv_prepare_t>
    private var turnEndBodies: [() -> Void] = []
    private var startTime: UInt64 = 0
    /// From the start of `close` on: nothing new lives long.
    private(set) var isClosing = false
    /// The libuv loop is gone.
    private(set) var isClosed = false

    /// Throws `unavailable` when the system has no file descriptors or memory left for a loop.
    public init() throws(DatabaseError) {
        // A peer that closes while we write is an error of that write, not of the process.
        signal(SIGPIPE, SIG_IGN)
        uv = .allocate(capacity: 1)
        let status = uv_loop_init(uv)
        guard status == 0 else {
            uv.deallocate()
            throw DatabaseError(uv: status, "event loop")
        }
        precondition(rangekeeper_uv_measure_idle_time(uv) == 0)
        readBuffer = .allocate(byteCount: 256 << 10, alignment: 4096)
        prepare = .allocate(capacity: 1)
        uv_prepare_init(uv, prepare)
        prepare.pointee.data = Unmanaged.passUnretained(self).toOpaque()
        uv_prepare_start(prepare) { handle in
            let loop = Unmanaged<EventLoop>.fromOpaque(handle!.pointee.data)
            loop.takeUnretainedValue().endTurn()
        }
    }

    deinit { close() }

    // MARK: Running

    /// Turns until `stop`, then closes every handle: each open connection's delegate hears of it.
    public func run() {
        precondition(!isClosing, "a loop runs once")
        startTime = uv_hrtime()
        startHeartbeat()
        uv_run(uv, UV_RUN_DEFAULT)
        // What the last turn's callbacks prepared still goes out.
        for body in turnEndBodies { body() }
        close()
    }

    /// Ends `run` after the current turn. On the loop's thread only.
    public func stop() { uv_stop(uv) }

    /// Closes every handle of a loop that has not run, or has ended; idempotent. Not from within
    /// a callback of the loop: there, call `stop`. What callbacks start meanwhile is closed too.
    public func close() {
        guard !isClosing else { return }
        isClosing = true
        turnEndBodies = []
        let closingPrepare = UnsafeMutableRawPointer(prepare)
            .assumingMemoryBound(to: uv_handle_t.self)
        uv_close(closingPrepare, nil)
        repeat { tearDownHandles() } while uv_run(uv, UV_RUN_ONCE) != 0
        let status = uv_loop_close(uv)
        precondition(status == 0, "a handle was left open")
        isClosed = true
        prepare.deallocate()
        readBuffer.deallocate()
        uv.deallocate()
    }

    private func tearDownHandles() {
        uv_walk(
            uv,
            { handle, _ in
                guard uv_is_closing(handle) == 0 else { return }
                let owner: LoopHandle = LoopHandle.owner(handle!.pointee.data)
                owner.tearDown()
            }, nil)
    }

    // MARK: Time

    /// The monotonic clock, read anew at each call (a few tens of nanoseconds).
    public var now: Instant { Instant(nanoseconds: uv_hrtime()) }

    /// The same clock, for threads that have no loop.
    public static func monotonicNow() -> Instant { Instant(nanoseconds: uv_hrtime()) }

    /// Nanoseconds since 1970. May jump; only sequencers and displays use it.
    public static func wallClockNanoseconds() -> UInt64 {
        var time = timespec()
        clock_gettime(CLOCK_REALTIME, &time)
        return UInt64(time.tv_sec) * 1_000_000_000 + UInt64(time.tv_nsec)
    }

    /// Runs `body` on the loop's thread once `after` has passed, then every `repeating` if given.
    /// The clock of timers ticks in milliseconds: a timer may come late, never early. The loop
    /// keeps the timer until it has run or was cancelled.
    @discardableResult
    public func schedule(
        after: Nanoseconds, repeating: Nanoseconds? = nil, _ body: @escaping () -> Void
    ) -> LoopTimer {
        LoopTimer(loop: self, after: after, repeating: repeating, body)
    }

    // MARK: Hooks

    /// Runs `body` in each turn after all its callbacks and before the loop waits again: the place
    /// where the work that a turn collected goes out as one batch. Bodies run in the order of
    /// registration, so whoever feeds another body registers first.
    public func onTurnEnd(_ body: @escaping () -> Void) { turnEndBodies.append(body) }

    /// A way into the loop for other threads, holding at most `capacity` undelivered messages.
    /// `receive` runs on the loop's thread with everything that was posted since it last ran.
    public func makeMailbox<Message: Sendable>(
        capacity: Int, _ receive: @escaping ([Message]) -> Void
    ) -> Mailbox<Message> {
        let mailbox = Mailbox<Message>(capacity: capacity)
        let waker = MailboxWaker(loop: self) { mailbox.deliver(to: receive) }
        mailbox.attach(waker)
        return mailbox
    }

    /// Runs `body` on the loop's thread whenever the process receives signal `number`. A program
    /// whose signals `Daemon` handles has no use for it.
    public func onSignal(_ number: Int32, _ body: @escaping () -> Void) {
        SignalWatcher.start(loop: self, number: number, body)
    }

    /// Turns so far; see `LoopProgress.turns`.
    public var turns: UInt64 { progress.turns }
    /// See `LoopProgress.busyNanoseconds`.
    public var busyNanoseconds: UInt64 { progress.busyNanoseconds }

    // MARK: Internals

    private func endTurn() {
        var index = 0
        // By index: a body may register another one.
        while index < turnEndBodies.count {
            turnEndBodies[index]()
            index += 1
        }
        let elapsed = uv_hrtime() - startTime
        let idle = uv_metrics_idle_time(uv)
        progress.recordTurn(busyNanoseconds: elapsed > idle ? elapsed - idle : 0)
    }

    private func startHeartbeat() {
        let interval = Self.heartbeatInterval
        var expected = now + interval
        let progress = progress
        schedule(after: interval, repeating: interval) {
            let now = Instant(nanoseconds: uv_hrtime())
            progress.recordDelay(now - expected)
            expected = now + interval
        }
    }
}
