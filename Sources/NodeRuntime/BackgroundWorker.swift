// A thread for what may block: checkpoints, snapshots, file system calls.

import EventLoop
import KVBase
import Synchronization

/// Runs jobs one after the other on a thread of its own. A job posts its result to its loop itself.
final class BackgroundWorker: Sendable {
    typealias Job = @Sendable () -> Void

    private struct State {
        var jobs: [Job] = []
        var isStopped = false
    }

    private let state = Mutex(State())
    private let wakeUp = Semaphore()
    private let thread: Mutex<NamedThread?>

    init(name: String) throws(DatabaseError) {
        thread = Mutex(nil)
        let started = try NamedThread(name: name) { [self] in run() }
        thread.withLock { $0 = started }
    }

    /// Queues a job. The owners queue at most one job of a kind at a time, which bounds the queue.
    func submit(_ job: @escaping Job) {
        state.withLock { $0.jobs.append(job) }
        wakeUp.signal()
    }

    /// Finishes what is queued and ends the thread.
    func stop() {
        state.withLock { $0.isStopped = true }
        wakeUp.signal()
        let ending = thread.withLock { thread in
            defer { thread = nil }
            return thread
        }
        ending?.join()
    }

    private func run() {
        while true {
            wakeUp.wait()
            let (job, isDone) = state.withLock { state -> (Job?, Bool) in
                guard !state.jobs.isEmpty else { return (nil, state.isStopped) }
                return (state.jobs.removeFirst(), false)
            }
            if let job { job() }
            if isDone { return }
            // A stop signal is consumed once; whatever is still queued had a signal of its own.
            let isDrained = state.withLock { $0.isStopped && $0.jobs.isEmpty }
            if isDrained { return }
        }
    }
}
