// A lock on which threads can wait for each other: the base of the latch, the signal and of queues
// that are waited for.

import Glibc
import KVBase

/// A mutex and its condition variable. The state that it guards belongs to whoever owns the monitor.
///
/// `@unchecked`: POSIX allows both from any thread.
public final class Monitor: @unchecked Sendable {
    private let mutex: UnsafeMutablePointer<pthread_mutex_t> = .allocate(capacity: 1)
    private let condition: UnsafeMutablePointer<pthread_cond_t> = .allocate(capacity: 1)

    public init() {
        pthread_mutex_init(mutex, nil)
        var attributes = pthread_condattr_t()
        pthread_condattr_init(&attributes)
        pthread_condattr_setclock(&attributes, CLOCK_MONOTONIC)
        pthread_cond_init(condition, &attributes)
        pthread_condattr_destroy(&attributes)
    }

    deinit {
        pthread_cond_destroy(condition)
        pthread_mutex_destroy(mutex)
        condition.deallocate()
        mutex.deallocate()
    }

    /// Does `body` under the lock, which a thread that has it must not ask for again.
    @inlinable
    public func locked<Value, Failure: Error>(
        _ body: () throws(Failure) -> Value
    ) throws(Failure) -> Value {
        lock()
        defer { unlock() }
        return try body()
    }

    /// Gives the lock up until another thread wakes this one, perhaps without reason: look at the state
    /// again. Under the lock.
    public func wait() { pthread_cond_wait(condition, mutex) }

    /// As `wait`, until an instant of the monotonic clock; false when it has come. Under the lock.
    public func wait(until end: Instant) -> Bool {
        var time = timespec()
        time.tv_sec = Int(end.nanoseconds / 1_000_000_000)
        time.tv_nsec = Int(end.nanoseconds % 1_000_000_000)
        return pthread_cond_timedwait(condition, mutex, &time) != ETIMEDOUT
    }

    /// Wakes one thread that waits.
    public func wakeOne() { pthread_cond_signal(condition) }

    /// Wakes all that wait.
    public func wakeAll() { pthread_cond_broadcast(condition) }

    @usableFromInline func lock() { pthread_mutex_lock(mutex) }
    @usableFromInline func unlock() { pthread_mutex_unlock(mutex) }
}
