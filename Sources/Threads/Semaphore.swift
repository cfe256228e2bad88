// A counting semaphore.

import Glibc

/// Counts signals; each ends one wait.
///
/// `@unchecked`: POSIX allows it from any thread.
public final class Semaphore: @unchecked Sendable {
    private let storage: UnsafeMutablePointer<sem_t> = .allocate(capacity: 1)

    /// At zero.
    public init() { sem_init(storage, 0, 0) }

    deinit {
        sem_destroy(storage)
        storage.deallocate()
    }

    /// Ends one wait, of now or later.
    public func signal() { sem_post(storage) }

    /// Waits for a signal that no other wait has used.
    public func wait() {
        while sem_wait(storage) != 0, errno == EINTR {}
    }
}
