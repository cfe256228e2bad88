// Threads that wait for etcd, so that the owner of a store never does.

import Glibc
import KVBase
import Synchronization

/// One thread that does one job after the other.
///
/// `@unchecked`: the semaphore and the thread's handle are safe on any thread; the queue is locked.
final class EtcdWorker: @unchecked Sendable {
    private struct State {
        var queue: [@Sendable () -> Void] = []
        var isClosed = false
    }

    private let state = Mutex(State())
    private let wake: UnsafeMutablePointer<sem_t>
    private var thread = pthread_t()

    init(name: String) throws(DatabaseError) {
        wake = .allocate(capacity: 1)
        sem_init(wake, 0, 0)
        let context = Unmanaged.passRetained(self)
        let status = pthread_create(
            &thread, nil,
            { argument in
                Unmanaged<EtcdWorker>.fromOpaque(argument!).takeRetainedValue().work()
                return nil
            }, context.toOpaque())
        guard status == 0 else {
            context.release()
            throw DatabaseError(
                .unavailable, "thread \(name): \(String(cString: strerror(status)))")
        }
    }

    deinit {
        sem_destroy(wake)
        wake.deallocate()
    }

    /// Does `job` after those before it; not at all when the worker is closed.
    func run(_ job: @escaping @Sendable () -> Void) {
        state.withLock { state in
            if !state.isClosed { state.queue.append(job) }
        }
        sem_post(wake)
    }

    /// Waits for the job under way; those that wait are dropped. Once.
    func close() {
        state.withLock { state in
            state.isClosed = true
            state.queue.removeAll()
        }
        sem_post(wake)
        pthread_join(thread, nil)
    }

    /// Waits for the jobs that were given. Once, in place of `close`.
    func finish() {
        state.withLock { $0.isClosed = true }
        sem_post(wake)
        pthread_join(thread, nil)
    }

    private func work() {
        while true {
            while sem_wait(wake) != 0 {}
            let (job, isClosed) = state.withLock { state in
                (state.queue.isEmpty ? nil : state.queue.removeFirst(), state.isClosed)
            }
            if let job { job() } else if isClosed { return }
        }
    }
}

/// What threads have to say to the owner, in order.
final class EtcdInbox<Event: Sendable>: Sendable {
    private let events = Mutex<[Event]>([])
    private let wake: @Sendable () -> Void

    /// `wake` is called on any thread when something came.
    init(wake: @escaping @Sendable () -> Void) { self.wake = wake }

    var count: Int { events.withLock { $0.count } }

    func post(_ event: Event) {
        events.withLock { $0.append(event) }
        wake()
    }

    func take() -> [Event] {
        events.withLock { events in
            defer { events.removeAll() }
            return events
        }
    }
}
