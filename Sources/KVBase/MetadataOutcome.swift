// What a metadata store answers and what its watches deliver.

/// Why the store did not do what was asked.
public enum MetadataError: Error, Hashable, Sendable, CustomStringConvertible {
    /// A comparison did not hold; nothing was changed. The revision the comparison was made at.
    case conditionFailed(at: Revision)
    /// The history asked for is gone; `oldest` is the first revision that can still be watched from.
    case compacted(oldest: Revision)
    case leaseNotFound(LeaseID)
    /// The store failed for good (a disk error, damage) or cannot be reached.
    case failed(DatabaseError)

    public var description: String {
        switch self {
        case .conditionFailed(let revision): "condition failed at revision \(revision)"
        case .compacted(let oldest): "compacted: history starts at revision \(oldest)"
        case .leaseNotFound(let lease): "no lease \(lease)"
        case .failed(let error): error.description
        }
    }
}

/// All changes of one revision that a watch asked for, in the order of the transaction.
public struct MetadataEvent: Hashable, Sendable {
    public var revision: Revision
    public var changes: [MetadataChange]

    public init(revision: Revision, changes: [MetadataChange]) {
        self.revision = revision
        self.changes = changes
    }
}

extension MetadataEvent {
    /// The part of the event below `prefix`; nil when there is none.
    public func cut(to prefix: Bytes) -> MetadataEvent? {
        let own = changes.filter { $0.key.starts(with: prefix) }
        return own.isEmpty ? nil : MetadataEvent(revision: revision, changes: own)
    }
}
