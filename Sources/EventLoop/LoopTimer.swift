// Timers and signal watchers of an event loop.

import CUV
import KVBase

/// A timer that the loop keeps until it has run or was cancelled.
public final class LoopTimer: LoopHandle {
    private var body: (() -> Void)?
    private let deadline: UInt64
    private let isRepeating: Bool

    init(
        loop: EventLoop, after: Nanoseconds, repeating: Nanoseconds?, _ body: @escaping () -> Void
    ) {
        self.body = body
        deadline = (Instant(nanoseconds: uv_hrtime()) + after).nanoseconds
        isRepeating = repeating != nil
        super.init(loop: loop, byteCount: MemoryLayout<uv_timer_t>.size)
        uv_timer_init(loop.uv, timer)
        activate()
        // libuv counts from the start of the turn, which may be long ago.
        uv_update_time(loop.uv)
        start(
            milliseconds: after.millisecondsRoundedUp,
            repeating: repeating.map { max(1, $0.millisecondsRoundedUp) } ?? 0)
    }

    /// Ends the timer; its body is released and will not run again. Idempotent, and safe within
    /// the body.
    public func cancel() {
        body = nil
        closeHandle()
    }

    override func tearDown() { cancel() }

    private var timer: UnsafeMutablePointer<uv_timer_t> {
        raw.assumingMemoryBound(to: uv_timer_t.self)
    }

    private func start(milliseconds: UInt64, repeating: UInt64) {
        uv_timer_start(
            timer,
            { handle in
                let timer: LoopTimer = LoopHandle.owner(handle!.pointee.data)
                timer.fire()
            }, milliseconds, repeating)
    }

    private func fire() {
        guard let body, !loop.isClosing else { return }
        if !isRepeating {
            // libuv's milliseconds are rounded down: it may be a fraction of one too early.
            if uv_hrtime() < deadline {
                start(milliseconds: 1, repeating: 0)
                return
            }
            cancel()
        }
        body()
    }
}

/// Runs a closure at each delivery of one signal.
final class SignalWatcher: LoopHandle {
    private var body: (() -> Void)?

    static func start(loop: EventLoop, number: Int32, _ body: @escaping () -> Void) {
        let watcher = SignalWatcher(loop: loop, body)
        uv_signal_init(loop.uv, watcher.signal)
        watcher.activate()
        uv_signal_start(
            watcher.signal,
            { handle, _ in
                let watcher: SignalWatcher = LoopHandle.owner(handle!.pointee.data)
                watcher.body?()
            }, number)
    }

    private init(loop: EventLoop, _ body: @escaping () -> Void) {
        self.body = body
        super.init(loop: loop, byteCount: MemoryLayout<uv_signal_t>.size)
    }

    override func tearDown() {
        body = nil
        closeHandle()
    }

    private var signal: UnsafeMutablePointer<uv_signal_t> {
        raw.assumingMemoryBound(to: uv_signal_t.self)
    }
}
