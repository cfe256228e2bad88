// The vocabulary of the metadata store, shared by those who decide and those who store.

/// A lease: keys attached to it vanish when it expires. Zero stands for none.
public struct LeaseID: IntegerIdentity {
    public let rawValue: UInt64
    public init(rawValue: UInt64) { self.rawValue = rawValue }
}

/// All or nothing: when every comparison holds, every change is made under one new revision.
public struct MetadataTransaction: Hashable, Sendable {
    /// Holds when the key's last change was at `modRevision`; `.none`: when there is no such key.
    public struct Comparison: Hashable, Sendable {
        public var key: Bytes
        public var modRevision: Revision

        public init(key: Bytes, modRevision: Revision) {
            self.key = key
            self.modRevision = modRevision
        }
    }

    public var comparisons: [Comparison]
    /// At most one change per key.
    public var changes: [MetadataChange]

    public init(comparisons: [Comparison] = [], changes: [MetadataChange] = []) {
        self.comparisons = comparisons
        self.changes = changes
    }
}

/// One change of one key.
public enum MetadataChange: Hashable, Sendable {
    case put(key: Bytes, value: Bytes, lease: LeaseID)
    case delete(key: Bytes)

    public var key: Bytes {
        switch self {
        case .put(let key, _, _), .delete(let key): key
        }
    }
}

/// A key as it stands.
public struct MetadataRecord: Hashable, Sendable {
    public var key: Bytes
    public var value: Bytes
    public var createRevision: Revision
    public var modRevision: Revision
    public var lease: LeaseID

    public init(
        key: Bytes, value: Bytes, createRevision: Revision, modRevision: Revision, lease: LeaseID
    ) {
        self.key = key
        self.value = value
        self.createRevision = createRevision
        self.modRevision = modRevision
        self.lease = lease
    }
}

/// Every key below a prefix at one revision, in order of key.
public struct MetadataSnapshot: Hashable, Sendable {
    public var revision: Revision
    public var records: [MetadataRecord]

    public init(revision: Revision, records: [MetadataRecord]) {
        self.revision = revision
        self.records = records
    }
}
