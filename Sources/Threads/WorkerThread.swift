// A thread for what may block: checkpoints, snapshots, system calls, requests that wait for others.

import KVBase
import Synchronization

/// Runs jobs one after the other on a thread of its own. A job hands on its result itself.
public final class WorkerThread: Sendable {
    public typealias Job = @Sendable () -> Void

    private struct State {
        var jobs: [Job] = []
        var isEnding = false
    }

    private let state = Mutex(State())
    private let wakeUp = Semaphore()
    private let thread: Mutex<NamedThread?>

    /// Throws when there can be no thread.
    public init(name: String) throws(DatabaseError) {
        thread = Mutex(nil)
        let started = try NamedThread(name: name) { [self] in work() }
        thread.withLock { $0 = started }
    }

    /// Does `job` after those before it; not at all once the worker ends. The owners queue at most a few
    /// jobs of a kind at a time, which bounds the queue.
    public func submit(_ job: @escaping Job) {
        state.withLock { state in
            if !state.isEnding { state.jobs.append(job) }
        }
        wakeUp.signal()
    }

    /// Finishes what is queued and ends the thread. Does nothing when it has ended.
    public func finish() { end { _ in } }

    /// As `finish`, but only the job under way is finished.
    public func close() { end { $0.removeAll() } }

    private func end(_ change: (inout [Job]) -> Void) {
        state.withLock { state in
            state.isEnding = true
            change(&state.jobs)
        }
        wakeUp.signal()
        let ending = thread.withLock { thread in
            defer { thread = nil }
            return thread
        }
        ending?.join()
    }

    private func work() {
        while true {
            wakeUp.wait()
            let (job, isEnding) = state.withLock { state in
                (state.jobs.isEmpty ? nil : state.jobs.removeFirst(), state.isEnding)
            }
            if let job { job() } else if isEnding { return }
        }
    }
}
