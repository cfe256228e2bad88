// The state behind a local metadata store: records, history and leases. No I/O.

import KVBase

/// Records by key, the events of the latest revisions, and leases.
///
/// Invariants: `history` holds every event with a revision in `historyStart...revision`, revisions
/// rising; every record with a lease is listed by that lease.
public struct RevisionedState: Sendable {
    public struct Lease: Sendable {
        public var id: LeaseID
        public var ttl: Nanoseconds
        public var deadline: Instant
        /// Keys attached, sorted.
        public var keys: [Bytes]
    }

    /// In front of each value: create revision, mod revision, lease.
    private static let headerByteCount = 24
    /// Changes kept before the older half of the events is dropped.
    public static let historyChangesMax = 50_000

    public private(set) var revision: Revision = .none
    public private(set) var records = SortedMap()
    /// Sorted by id.
    public private(set) var leases: [Lease] = []
    public private(set) var leaseHighest: LeaseID = .none
    private(set) var history: [MetadataEvent] = []
    /// In all events of `history`.
    private var historyChanges = 0
    /// The first revision a watch may start from.
    public private(set) var historyStart = Revision(1)

    public init() {}

    /// The state of a snapshot: no history, leases running anew from `now`. The state that a move of the
    /// metadata brings begins with the event of its mark, so that whoever follows the old store's events to their
    /// end can go on here.
    public init(
        revision: Revision, records: [MetadataRecord], leases: [(LeaseID, Nanoseconds)],
        leaseHighest: LeaseID, now: Instant
    ) {
        self.revision = revision
        self.leaseHighest = leaseHighest
        historyStart = revision.next()
        for (id, ttl) in leases {
            self.leases.append(Lease(id: id, ttl: ttl, deadline: now + ttl, keys: []))
        }
        for record in records {
            store(record)
            if record.lease != .none { attach(record.key, to: record.lease) }
        }
        // A mark puts records and deletes none: what was changed last is all of it.
        if let move = try? move(), move.revision == revision {
            history = [
                MetadataEvent(
                    revision: revision,
                    changes: records.filter { $0.modRevision == revision }.map {
                        .put(key: $0.key, value: $0.value, lease: $0.lease)
                    })
            ]
            historyChanges = history[0].changes.count
            historyStart = revision
        }
    }

    // MARK: Reading

    public func get(_ key: Bytes) -> MetadataRecord? {
        key.withUnsafeBytes { raw in
            records.get(raw) { stored in stored.map { Self.record(key: key, stored: $0) } }
        }
    }

    public func range(prefix: Bytes) -> [MetadataRecord] {
        var found: [MetadataRecord] = []
        scan(prefix: prefix) { record in
            found.append(record)
            return true
        }
        return found
    }

    /// Every record below `prefix` in order of key, while `body` returns true.
    public func scan(prefix: Bytes, _ body: (MetadataRecord) -> Bool) {
        prefix.withUnsafeBytes { from in
            records.scan(from: from, to: nil) { key, stored in
                guard key.starts(with: from) else { return false }
                return body(Self.record(key: Bytes(key), stored: stored))
            }
        }
    }

    /// Every record that is not below `prefix`, in order of key. Precondition: `prefix` ends with a byte
    /// below 255.
    public func range(without prefix: Bytes) -> [MetadataRecord] {
        var behind = prefix
        behind[behind.count - 1] += 1
        var found: [MetadataRecord] = []
        func take(_ key: UnsafeRawBufferPointer, _ stored: UnsafeRawBufferPointer) -> Bool {
            found.append(Self.record(key: Bytes(key), stored: stored))
            return true
        }
        let first = UnsafeRawBufferPointer(start: nil, count: 0)
        prefix.withUnsafeBytes { records.scan(from: first, to: $0, take) }
        behind.withUnsafeBytes { records.scan(from: $0, to: nil, take) }
        return found
    }

    public func holds(_ comparison: MetadataTransaction.Comparison) -> Bool {
        (get(comparison.key)?.modRevision ?? .none) == comparison.modRevision
    }

    /// Why the transaction may not be applied, or nil.
    public func objection(to transaction: MetadataTransaction) -> MetadataError? {
        for comparison in transaction.comparisons where !holds(comparison) {
            return .conditionFailed(at: revision)
        }
        for change in transaction.changes {
            if case .put(_, _, let lease) = change, lease != .none, leaseIndex(lease) == nil {
                return .leaseNotFound(lease)
            }
        }
        return nil
    }

    /// Events from `from` on that touch `prefix`, cut to it.
    public func events(prefix: Bytes, from: Revision) throws(MetadataError) -> [MetadataEvent] {
        guard from >= historyStart else { throw .compacted(oldest: historyStart) }
        var low = 0
        var high = history.count
        while low < high {
            let middle = (low + high) / 2
            if history[middle].revision < from { low = middle + 1 } else { high = middle }
        }
        return history[low...].compactMap { $0.cut(to: prefix) }
    }

    /// Leases whose time has passed.
    public func expiredLeases(now: Instant) -> [LeaseID] {
        leases.filter { $0.deadline <= now }.map(\.id)
    }

    // MARK: Changing

    /// Applies one mutation; returns the event when it made a revision.
    @discardableResult
    public mutating func apply(_ mutation: MetadataMutation, now: Instant) -> MetadataEvent? {
        switch mutation {
        case .changes(let changes): return apply(changes)
        case .leaseGranted(let id, let ttl):
            leaseHighest = max(leaseHighest, id)
            leases.append(Lease(id: id, ttl: ttl, deadline: now + ttl, keys: []))
            return nil
        case .leaseEnded(let id):
            guard let index = leaseIndex(id) else { return nil }
            let keys = leases.remove(at: index).keys
            return keys.isEmpty ? nil : apply(keys.map { .delete(key: $0) })
        }
    }

    public mutating func keepAlive(_ lease: LeaseID, now: Instant) -> Bool {
        guard let index = leaseIndex(lease) else { return false }
        leases[index].deadline = now + leases[index].ttl
        return true
    }

    /// Lets every lease run its whole time again, from `now`.
    public mutating func restartLeases(now: Instant) {
        for index in leases.indices { leases[index].deadline = now + leases[index].ttl }
    }

    /// Whether there is such a lease.
    public func hasLease(_ lease: LeaseID) -> Bool { leaseIndex(lease) != nil }

    public mutating func compact(below: Revision) {
        guard below > historyStart else { return }
        historyStart = min(below, revision.next())
        let start = historyStart
        history.removeAll { $0.revision < start }
        historyChanges = history.reduce(0) { $0 + $1.changes.count }
    }

    // MARK: Helpers

    private mutating func apply(_ changes: [MetadataChange]) -> MetadataEvent {
        revision = revision.next()
        for change in changes {
            let old = get(change.key)
            if let lease = old?.lease, lease != .none { detach(change.key, from: lease) }
            switch change {
            case .put(let key, let value, let lease):
                store(
                    MetadataRecord(
                        key: key, value: value, createRevision: old?.createRevision ?? revision,
                        modRevision: revision, lease: lease))
                if lease != .none { attach(key, to: lease) }
            case .delete(let key):
                key.withUnsafeBytes { _ = records.remove($0) }
            }
        }
        let event = MetadataEvent(revision: revision, changes: changes)
        history.append(event)
        historyChanges += changes.count
        if historyChanges > Self.historyChangesMax {
            compact(below: history[history.count / 2].revision)
        }
        return event
    }

    private mutating func store(_ record: MetadataRecord) {
        var header = ByteWriter(reserving: Self.headerByteCount)
        header.write(record.createRevision)
        header.write(record.modRevision)
        header.write(record.lease)
        record.key.withUnsafeBytes { key in
            header.bytes.withUnsafeBytes { header in
                record.value.withUnsafeBytes { records.put(key, header: header, $0) }
            }
        }
    }

    private static func record(key: Bytes, stored: UnsafeRawBufferPointer) -> MetadataRecord {
        func load(_ offset: Int) -> UInt64 {
            UInt64(littleEndian: stored.loadUnaligned(fromByteOffset: offset, as: UInt64.self))
        }
        return MetadataRecord(
            key: key, value: Bytes(stored[headerByteCount...]), createRevision: Revision(load(0)),
            modRevision: Revision(load(8)), lease: LeaseID(load(16)))
    }

    private func leaseIndex(_ id: LeaseID) -> Int? { leases.firstIndex { $0.id == id } }

    private mutating func attach(_ key: Bytes, to lease: LeaseID) {
        guard let index = leaseIndex(lease) else { return }
        leases[index].keys.append(key)
        leases[index].keys.sort { compareBytes($0, $1) < 0 }
    }

    private mutating func detach(_ key: Bytes, from lease: LeaseID) {
        guard let index = leaseIndex(lease) else { return }
        leases[index].keys.removeAll { $0 == key }
    }
}
