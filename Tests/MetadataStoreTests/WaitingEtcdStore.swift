// A store in etcd whose `flush` waits for the answers, as those of the other forms need not.

import EtcdMetadata
import Glibc
import KVBase
import MetadataStore

final class WaitingEtcdStore: MetadataStore {
    private static let secondsMax: UInt64 = 30

    /// Told from any thread that something came.
    private final class Bell: @unchecked Sendable {
        private let semaphore = UnsafeMutablePointer<sem_t>.allocate(capacity: 1)
        init() { sem_init(semaphore, 0, 0) }
        deinit {
            sem_destroy(semaphore)
            semaphore.deallocate()
        }
        func ring() { sem_post(semaphore) }
        /// A moment at the longest.
        func wait() {
            var end = timespec()
            clock_gettime(CLOCK_REALTIME, &end)
            end.tv_nsec += 50_000_000
            if end.tv_nsec >= 1_000_000_000 {
                end.tv_sec += 1
                end.tv_nsec -= 1_000_000_000
            }
            sem_timedwait(semaphore, &end)
        }
    }

    let inner: EtcdMetadataStore
    private let bell: Bell

    init(_ settings: EtcdSettings, fence: EtcdMetadataStore.Fence = .open) throws {
        let bell = Bell()
        self.bell = bell
        inner = try EtcdMetadataStore(
            settings: settings, fence: fence, clock: { monotonicNow() }, wake: { bell.ring() })
        // The server may just be starting.
        guard wait(until: { inner.isLoaded }) else {
            throw DatabaseError(.unavailable, inner.outage ?? "nothing was read")
        }
    }

    /// Carries on until `condition` holds; false when it does not within half a minute.
    func wait(until condition: () -> Bool) -> Bool {
        let end = monotonicNow() + .seconds(Self.secondsMax)
        while true {
            inner.tick(now: monotonicNow())
            if condition() { return true }
            guard monotonicNow() < end else { return false }
            bell.wait()
        }
    }

    func close() { inner.close() }

    func flush() {
        inner.flush()
        _ = wait(until: { inner.isIdle })
    }

    func tick(now: Instant) { inner.tick(now: now) }

    func commit(_ transaction: MetadataTransaction, _ completion: @escaping Completion<Revision>) {
        inner.commit(transaction, completion)
    }
    func get(_ key: Bytes, _ completion: @escaping Completion<MetadataRecord?>) {
        inner.get(key, completion)
    }
    func range(prefix: Bytes, _ completion: @escaping Completion<MetadataSnapshot>) {
        inner.range(prefix: prefix, completion)
    }
    func watch(
        prefix: Bytes, from: Revision, _ handler: @escaping Completion<MetadataEvent>
    ) throws(MetadataError) -> WatchID {
        try inner.watch(prefix: prefix, from: from, handler)
    }
    func cancel(_ watch: WatchID) { inner.cancel(watch) }
    func compact(below revision: Revision) { inner.compact(below: revision) }
    func grantLease(
        ttl: Nanoseconds, now: Instant, _ completion: @escaping Completion<LeaseID>
    ) { inner.grantLease(ttl: ttl, now: now, completion) }
    func keepAlive(
        _ lease: LeaseID, now: Instant, _ completion: @escaping Completion<Void>
    ) { inner.keepAlive(lease, now: now, completion) }
    func revoke(_ lease: LeaseID, _ completion: @escaping Completion<Void>) {
        inner.revoke(lease, completion)
    }
}
