// A backup at its destination: writing, reading back, verifying.

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
}

/// The verdict on one object.
public struct BackupFinding: Hashable, Sendable {
    public var name: String
    public var problem: String
}

/// What a verification read.
public struct BackupVerification: Sendable {
    public var objects = 0
    public var bytes: UInt64 = 0
    public var findings: [BackupFinding] = []
    /// Revisions that can be restored from sound objects.
    public var spans: [ClosedRange<Revision>] = []
}

public struct BackupArchive: Sendable {
    public let destination: any ObjectStore

    public init(_ destination: any ObjectStore) { self.destination = destination }

    public func catalog() throws(DatabaseError) -> BackupCatalog {
        BackupCatalog(listing: try destination.list())
    }

    /// Stores an object, then reads it back: what does not come back as it was is an error. Answers
    /// its size in bytes.
    @discardableResult
    public func store(_ object: BackupObject) throws(DatabaseError) -> Int {
        let bytes = try object.encoded()
        let name = object.name.text
        try destination.put(name, bytes)
        guard try destination.get(name) == bytes else {
            throw DatabaseError(
                .storageFailed, "\(destination.description) gives back \(name) with other bytes")
        }
        return bytes.count
    }

    public func read(_ name: BackupName) throws(DatabaseError) -> BackupObject {
        try BackupObject(try destination.get(name.text), named: name)
    }

    /// The state at `revision`.
    public func state(at revision: Revision) throws(DatabaseError) -> BackupState {
        try unlessChanged { (catalog) throws(DatabaseError) in
            try state(at: revision, catalog)
        }
    }

    private func state(
        at revision: Revision, _ catalog: BackupCatalog
    ) throws(DatabaseError) -> BackupState {
        guard let path = catalog.path(to: revision) else {
            let spans = catalog.spans.map { "\($0.lowerBound) to \($0.upperBound)" }
            throw DatabaseError(
                .refused,
                "\(destination.description) does not lead to revision \(revision); "
                    + (spans.isEmpty
                        ? "it holds no snapshot"
                        : "it leads to " + spans.joined(separator: ", ")))
        }
        return try state(along: path, through: { $0.revision <= revision })
    }

    /// The newest state that was reached at the wall clock `time`, milliseconds since 1970, or before.
    public func state(asOf time: UInt64) throws(DatabaseError) -> BackupState {
        try unlessChanged { (catalog) throws(DatabaseError) in
            guard let path = catalog.path(asOf: time) else {
                throw DatabaseError(
                    .refused, "\(destination.description) holds no snapshot of that time or before")
            }
            return try state(along: path, through: { $0.at <= time })
        }
    }

    private static let attemptsMax = 3

    /// What `body` makes of the catalog. Objects may be put together or go while they are read; then it
    /// begins anew with what is there now.
    private func unlessChanged<Value>(
        _ body: (BackupCatalog) throws(DatabaseError) -> Value
    ) throws(DatabaseError) -> Value {
        var catalog = try catalog()
        for _ in 1..<Self.attemptsMax {
            do throws(DatabaseError) {
                return try body(catalog)
            } catch {
                let now = try self.catalog()
                guard !catalog.objects.allSatisfy(Set(now.objects).contains) else { throw error }
                catalog = now
            }
        }
        return try body(catalog)
    }

    /// Reads every object and names what is damaged and what is missing.
    public func verify(
        progress: (_ done: Int, _ total: Int) -> Void = { _, _ in }
    ) throws(DatabaseError) -> BackupVerification {
        var catalog = try catalog()
        for _ in 1..<Self.attemptsMax {
            let result = try verify(catalog, progress)
            let now = try self.catalog()
            // What went meanwhile was not damaged, and what took its place was not seen.
            if result.findings.isEmpty || catalog.objects.allSatisfy(Set(now.objects).contains) {
                return result
            }
            catalog = now
        }
        return try verify(catalog, progress)
    }

    private func verify(
        _ catalog: BackupCatalog, _ progress: (_ done: Int, _ total: Int) -> Void
    ) throws(DatabaseError) -> BackupVerification {
        var result = BackupVerification()
        var sound: [String] = []
        var cluster: UInt64?
        for (index, name) in catalog.objects.enumerated() {
            progress(index, catalog.objects.count)
            do throws(DatabaseError) {
                let bytes = try destination.get(name.text)
                result.objects += 1
                result.bytes += UInt64(bytes.count)
                let object = try BackupObject(bytes, named: name)
                if let cluster, cluster != object.cluster {
                    result.findings.append(
                        BackupFinding(name: name.text, problem: "is of another cluster"))
                    continue
                }
                cluster = object.cluster
                sound.append(name.text)
            } catch {
                result.findings.append(BackupFinding(name: name.text, problem: error.message))
            }
        }
        progress(catalog.objects.count, catalog.objects.count)
        for stranger in catalog.strangers {
            result.findings.append(
                BackupFinding(name: stranger, problem: "is not a backup object"))
        }
        let usable = BackupCatalog(listing: sound)
        result.spans = usable.spans
        for log in usable.logs where !usable.spans.contains(where: { $0.contains(log.to) }) {
            result.findings.append(
                BackupFinding(
                    name: log.text, problem: "cannot be used: an object before it is missing"))
        }
        return result
    }

    // MARK: Helpers

    private func state(
        along path: [BackupName], through includes: (BackupEvent) -> Bool
    ) throws(DatabaseError) -> BackupState {
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
        reading: for name in path.dropFirst() {
            let object = try read(name)
            guard object.cluster == state.cluster, case .log(let events) = object.contents else {
                throw DatabaseError(
                    .storageFailed, "backup object \(name.text) is of another cluster")
            }
            for event in events where event.revision > state.revision {
                guard includes(event) else { break reading }
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
