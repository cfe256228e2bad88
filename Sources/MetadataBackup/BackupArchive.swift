// A backup at its destination: writing, reading back, and the states that it leads to.

import KVBase
import ObjectStore

/// A state of the metadata store as a backup holds it.
public struct BackupState: Hashable, Sendable {
    public var cluster: UInt64
    public var revision: Revision
    /// Wall clock of the revision in milliseconds since 1970.
    public var at: UInt64
    /// In order of key; without leases.
    public var records: [MetadataRecord]
    /// Objects on the shortest way to it that could not be used; it was put together from others.
    public var findings: [BackupFinding] = []
}

/// How far the storing of a snapshot has come.
public enum BackupProgress: Hashable, Sendable {
    case encoding(records: Int, of: Int)
    case storing(bytes: Int, of: Int)
    case readingBack(bytes: Int, of: Int)
}

public struct BackupArchive: Sendable {
    public let destination: any ObjectStore
    /// Objects may go while they are read: how often to begin anew.
    static let attemptsMax = 3

    public init(_ destination: any ObjectStore) { self.destination = destination }

    public func catalog() throws(DatabaseError) -> BackupCatalog {
        BackupCatalog(listing: try destination.list())
    }

    /// Stores an object, then reads it back: what does not come back as it was is an error. Answers
    /// its size in bytes.
    @discardableResult
    public func store(
        _ object: BackupObject, progress: (BackupProgress) -> Void = { _ in }
    ) throws(DatabaseError) -> Int {
        let records = if case .snapshot(let records) = object.contents { records.count } else { 0 }
        let bytes = try object.encoded { progress(.encoding(records: $0, of: records)) }
        let (name, size) = (object.name.text, bytes.count)
        progress(.storing(bytes: 0, of: size))
        try destination.put(name, bytes) { progress(.storing(bytes: $0, of: size)) }
        progress(.readingBack(bytes: 0, of: size))
        let back = try destination.get(name) { progress(.readingBack(bytes: $0, of: size)) }
        guard back == bytes else {
            throw DatabaseError(
                .storageFailed, "\(destination.description) gives back \(name) with other bytes")
        }
        return bytes.count
    }

    public func read(_ name: BackupName) throws(DatabaseError) -> BackupObject {
        try BackupObject(try destination.get(name.text), named: name)
    }

    /// The first of these objects that is not damaged.
    func firstSound(of names: [BackupName]) throws(DatabaseError) -> BackupObject? {
        for name in names {
            do throws(DatabaseError) {
                return try read(name)
            } catch {
                guard error.code == .storageFailed else { throw error }
            }
        }
        return nil
    }

    /// The state at `revision`. `progress` counts the objects on the way to it, here and below.
    public func state(
        at revision: Revision, progress: (_ done: Int, _ total: Int) -> Void = { _, _ in }
    ) throws(DatabaseError) -> BackupState {
        try state { (catalog) throws(DatabaseError) in
            guard let path = catalog.path(to: revision) else {
                throw DatabaseError(
                    .refused,
                    "\(destination.description) does not lead to revision \(revision); "
                        + Self.text(catalog.spans))
            }
            return path
        } through: {
            $0.revision <= revision
        } progress: {
            progress($0, $1)
        }
    }

    /// The newest state that was reached at the wall clock `time`, milliseconds since 1970, or before.
    public func state(
        asOf time: UInt64, progress: (_ done: Int, _ total: Int) -> Void = { _, _ in }
    ) throws(DatabaseError) -> BackupState {
        var reach: Revision?
        return try state { (catalog) throws(DatabaseError) in
            guard let path = catalog.path(asOf: time), let last = path.last else {
                throw DatabaseError(
                    .refused, "\(destination.description) holds no snapshot of that time or before")
            }
            // Without a damaged object it must lead as far as with it.
            if let reach, last.to < reach, last.at <= time {
                throw DatabaseError(
                    .refused,
                    "\(destination.description) leads to revision \(last.to) and not to \(reach), the "
                        + "newest of that time; \(Self.text(catalog.spans))")
            }
            reach = reach ?? last.to
            return path
        } through: {
            $0.at <= time
        } progress: {
            progress($0, $1)
        }
    }

    // MARK: Helpers

    private static func text(_ spans: [ClosedRange<Revision>]) -> String {
        spans.isEmpty
            ? "it holds no snapshot"
            : "it leads to "
                + spans.map { "\($0.lowerBound) to \($0.upperBound)" }.joined(separator: ", ")
    }

    /// The state to which `path` of the catalog leads. In the place of what is damaged others are
    /// taken, if they lead there too. Objects may be put together or go while they are read; then it begins
    /// anew with what is there now.
    private func state(
        along path: (BackupCatalog) throws(DatabaseError) -> [BackupName],
        through includes: (BackupEvent) -> Bool, progress: (_ done: Int, _ total: Int) -> Void
    ) throws(DatabaseError) -> BackupState {
        var catalog = try catalog()
        var damaged: [BackupName: DatabaseError] = [:]
        var attempts = 1
        while true {
            let rest = catalog.without(Set(damaged.keys))
            var reading: BackupName?
            do throws(DatabaseError) {
                var state = try state(
                    along: try path(rest), through: includes, progress, &reading)
                state.findings = damaged.keys.sorted().compactMap { name in
                    damaged[name].map { BackupFinding(name, $0) }
                }
                return state
            } catch {
                let now = try self.catalog()
                if attempts < Self.attemptsMax,
                    !catalog.objects.allSatisfy(Set(now.objects).contains)
                {
                    (catalog, damaged) = (now, [:])
                    attempts += 1
                } else if let reading, error.code == .storageFailed {
                    damaged[reading] = error
                } else if error.code == .refused, let worst = damaged.keys.max(),
                    let damage = damaged[worst]
                {
                    throw DatabaseError(
                        damage.code, "\(damage.message); without it \(error.message)")
                } else {
                    throw error
                }
            }
        }
    }

    /// `reading` is the object that it came to.
    private func state(
        along path: [BackupName], through includes: (BackupEvent) -> Bool,
        _ progress: (_ done: Int, _ total: Int) -> Void, _ reading: inout BackupName?
    ) throws(DatabaseError) -> BackupState {
        reading = path[0]
        progress(0, path.count)
        let first = try read(path[0])
        guard case .snapshot(let records) = first.contents else {
            preconditionFailure("a path begins with a snapshot")
        }
        var state = BackupState(
            cluster: first.cluster, revision: first.name.to, at: first.name.at, records: records)
        // Look-up and sorting at the end; never walked in its own order.
        var changed: [Bytes: MetadataRecord?] = [:]
        var known: [Bytes: Revision] = [:]
        for record in records { known[record.key] = record.createRevision }
        following: for (index, name) in path.enumerated().dropFirst() {
            reading = name
            progress(index, path.count)
            let object = try read(name)
            guard object.cluster == state.cluster, case .log(let events) = object.contents else {
                throw DatabaseError(.storageFailed, "\(name.subject) is of another cluster")
            }
            for event in events where event.revision > state.revision {
                guard includes(event) else { break following }
                for change in event.changes {
                    switch change {
                    case .put(let key, let value, _):
                        let created = known[key] ?? event.revision
                        known[key] = created
                        changed[key] = .some(
                            MetadataRecord(
                                key: key, value: value, createRevision: created,
                                modRevision: event.revision, lease: .none))
                    case .delete(let key):
                        known[key] = nil
                        changed[key] = .some(nil)
                    }
                }
                state.revision = event.revision
                state.at = event.at
            }
        }
        var merged = records.filter { changed[$0.key] == nil }
        merged += changed.values.compactMap { $0 }
        state.records = merged.sorted { compareBytes($0.key, $1.key) < 0 }
        return state
    }
}
