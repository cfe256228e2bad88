// Named bytes in one place: a directory, or a bucket.

import KVBase

/// A flat set of immutable objects. Calls block: they belong on a thread of their own.
public protocol ObjectStore: AnyObject, Sendable {
    /// For messages: a path or a URL, without secrets.
    var description: String { get }
    /// Durable when it returns. An object of that name is replaced. `progress` is told how many bytes went, as far
    /// as that is known.
    func put(_ name: String, _ bytes: Bytes, progress: (Int) -> Void) throws(DatabaseError)
    /// `progress`: how many bytes came.
    func get(_ name: String, progress: (Int) -> Void) throws(DatabaseError) -> Bytes
    /// Every name, in order.
    func list() throws(DatabaseError) -> [String]
    /// No error when there is none of that name.
    func delete(_ name: String) throws(DatabaseError)
    /// Removes what puts that were interrupted left behind; never that of one under way.
    func sweep() throws(DatabaseError)
    /// From another thread: ends the call under way, as far as it can, and refuses later ones.
    func abort()
}

extension ObjectStore {
    public func put(_ name: String, _ bytes: Bytes) throws(DatabaseError) {
        try put(name, bytes) { _ in }
    }
    public func get(_ name: String) throws(DatabaseError) -> Bytes { try get(name) { _ in } }
    public func sweep() {}
    public func abort() {}
}
