// The metadata store as the controllers see it: revisioned keys, transactions, watch, lease.
//
// Every answer comes by a completion on the thread that owns the store, in the order of the
// submissions, during `flush` or later: a form that asks a quorum or another process fits.

import KVBase

/// Names a watch until it is cancelled. Never reused by one store.
public struct WatchID: Hashable, Comparable, Sendable {
    public var number: UInt64
    public init(_ number: UInt64) { self.number = number }
    public static func < (left: WatchID, right: WatchID) -> Bool { left.number < right.number }
}

/// A small, strongly consistent store. Owned by one thread; not `Sendable`.
///
/// Guarantees: transactions are atomic and totally ordered by revision; a completion with success
/// comes after the change is durable; reads see every transaction submitted before them; a watch
/// delivers every change once, in order, and only durable ones.
public protocol MetadataStore: AnyObject {
    typealias Completion<Value> = (Result<Value, MetadataError>) -> Void

    /// Carries the transaction out and answers its revision. A transaction without changes answers
    /// the present revision.
    func commit(_ transaction: MetadataTransaction, _ completion: @escaping Completion<Revision>)

    /// The record of `key`, nil when there is none.
    func get(_ key: Bytes, _ completion: @escaping Completion<MetadataRecord?>)

    /// All records whose key starts with `prefix`, at the present revision.
    func range(prefix: Bytes, _ completion: @escaping Completion<MetadataSnapshot>)

    /// Calls `handler` with every event whose revision is at least `from` and that touches `prefix`;
    /// past ones first. Throws `.compacted` when some of them are forgotten. After a failure is
    /// delivered the watch is over.
    func watch(prefix: Bytes, from: Revision, _ handler: @escaping Completion<MetadataEvent>)
        throws(MetadataError) -> WatchID
    func cancel(_ watch: WatchID)

    /// Forgets the history below `revision`, so that watches start there at the earliest.
    func compact(below revision: Revision)

    /// Creates a lease that expires `ttl` after `now`, or after its last keep-alive.
    func grantLease(
        ttl: Nanoseconds, now: Instant, _ completion: @escaping Completion<LeaseID>)
    func keepAlive(_ lease: LeaseID, now: Instant, _ completion: @escaping Completion<Void>)
    /// Ends a lease at once and deletes its keys.
    func revoke(_ lease: LeaseID, _ completion: @escaping Completion<Void>)
    /// Expires leases whose time has passed. Call a few times per shortest ttl.
    func tick(now: Instant)

    /// Sends on everything submitted so far. A local form makes it durable in one sync and answers.
    func flush()
}
