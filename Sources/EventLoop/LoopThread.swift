// Threads: a named POSIX thread, and one that runs an event loop.

import CUV
import Glibc
import KVBase
import Synchronization

/// A named POSIX thread that must be joined or lives as long as the process.
public final class NamedThread: @unchecked Sendable {
    private final class Start {
        let name: String
        let body: () -> Void
        init(name: String, body: @escaping () -> Void) {
            self.name = name
            self.body = body
        }
    }

    private var thread = pthread_t()

    /// Starts a thread with a stack of 2 MiB. `name` shows in `ps -T`, cut to 15 bytes.
    public init(name: String, _ body: sending @escaping () -> Void) throws(DatabaseError) {
        let start = Unmanaged.passRetained(Start(name: name, body: body))
        var attributes = pthread_attr_t()
        pthread_attr_init(&attributes)
        pthread_attr_setstacksize(&attributes, 2 << 20)
        let status = pthread_create(
            &thread, &attributes,
            { argument in
                let start = Unmanaged<Start>.fromOpaque(argument!).takeRetainedValue()
                rangekeeper_name_thread(start.name)
                start.body()
                return nil
            }, start.toOpaque())
        pthread_attr_destroy(&attributes)
        guard status == 0 else {
            start.release()
            throw DatabaseError(
                .unavailable, "thread \(name): \(String(cString: strerror(status)))")
        }
    }

    /// Waits for the thread to end. At most once, and not from the thread itself.
    public func join() { pthread_join(thread, nil) }
}

/// A thread that runs one event loop.
public final class LoopThread: Sendable {
    /// The loop's counters.
    public let progress: LoopProgress
    private let stopMailbox: Mailbox<Void>
    private let thread: NamedThread

    private init(thread: NamedThread, stopMailbox: Mailbox<Void>, progress: LoopProgress) {
        self.thread = thread
        self.stopMailbox = stopMailbox
        self.progress = progress
    }

    /// Starts a thread, makes a loop on it, runs `setup` there and then the loop. Returns when
    /// `setup` has, with its result (the mailboxes by which to reach the loop, as a rule).
    public static func start<Result: Sendable>(
        name: String, _ setup: @escaping @Sendable (EventLoop) throws(DatabaseError) -> Result
    ) throws(DatabaseError) -> (thread: LoopThread, result: Result) {
        let outcome = Latch<Swift.Result<(Result, Mailbox<Void>, LoopProgress), DatabaseError>>()
        let thread = try NamedThread(name: name) {
            do throws(DatabaseError) {
                let loop = try EventLoop()
                let stop = loop.makeMailbox(capacity: 1) { [unowned loop] (_: [Void]) in
                    loop.stop()
                }
                do throws(DatabaseError) {
                    let result = try setup(loop)
                    outcome.open(.success((result, stop, loop.progress)))
                } catch {
                    loop.close()
                    throw error
                }
                loop.run()
            } catch {
                outcome.open(.failure(error))
            }
        }
        switch outcome.wait() {
        case .success(let (result, stop, progress)):
            return (LoopThread(thread: thread, stopMailbox: stop, progress: progress), result)
        case .failure(let error):
            thread.join()
            throw error
        }
    }

    /// Asks the loop to end; from any thread, idempotent.
    public func stop() { _ = stopMailbox.post(()) }

    /// Waits until the loop has ended. At most once.
    public func join() { thread.join() }
}

/// A value that one thread sets once and another waits for.
public final class Latch<Value: Sendable>: @unchecked Sendable {
    private let mutex: UnsafeMutablePointer<pthread_mutex_t> = .allocate(capacity: 1)
    private let condition: UnsafeMutablePointer<pthread_cond_t> = .allocate(capacity: 1)
    /// Guarded by `mutex`.
    private var value: Value?

    public init() {
        pthread_mutex_init(mutex, nil)
        pthread_cond_init(condition, nil)
    }

    deinit {
        pthread_cond_destroy(condition)
        pthread_mutex_destroy(mutex)
        condition.deallocate()
        mutex.deallocate()
    }

    /// Sets the value and lets the waiters go on. The first value stays.
    public func open(_ value: Value) {
        pthread_mutex_lock(mutex)
        if self.value == nil { self.value = value }
        pthread_cond_broadcast(condition)
        pthread_mutex_unlock(mutex)
    }

    /// Waits for the value.
    public func wait() -> Value {
        pthread_mutex_lock(mutex)
        defer { pthread_mutex_unlock(mutex) }
        while true {
            if let value { return value }
            pthread_cond_wait(condition, mutex)
        }
    }
}
