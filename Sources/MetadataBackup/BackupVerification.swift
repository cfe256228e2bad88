// Reads every object of a backup, and names what is damaged and what is missing.

import KVBase
import ObjectStore

/// The verdict on one object, or on revisions: the problem reads on from the name.
public struct BackupFinding: Hashable, Sendable {
    public var name: String
    public var problem: String

    public var text: String { "\(name) \(problem)" }

    init(name: String, problem: String) {
        self.name = name
        self.problem = problem
    }

    /// An object that could not be used because of `error`.
    init(_ name: BackupName, _ error: DatabaseError) {
        self.name = name.text
        let subject = name.subject + " "
        problem =
            error.message.hasPrefix(subject)
            ? String(error.message.dropFirst(subject.count)) : "cannot be read: \(error.message)"
    }
}

/// What a verification read.
public struct BackupVerification: Sendable {
    public var objects = 0
    public var bytes: UInt64 = 0
    public var findings: [BackupFinding] = []
    /// Revisions that can be restored from sound objects.
    public var spans: [ClosedRange<Revision>] = []
    /// Revisions between them that were lost before they came into the backup, as it says itself.
    public var gaps: [ClosedRange<Revision>] = []

    /// One line: `12 objects: all sound`, or what is wrong with it first of all.
    public var summary: Result<String, DatabaseError> {
        guard !spans.isEmpty else {
            return .failure(DatabaseError(.storageFailed, "nothing can be restored"))
        }
        guard let first = findings.first else {
            return .success("\(objects) objects: all sound")
        }
        let others = findings.count == 1 ? "" : ", and \(findings.count - 1) more"
        return .failure(DatabaseError(.storageFailed, first.text + others))
    }
}

extension BackupArchive {
    /// Reads every object and names what is damaged and what is missing. `progress` counts objects, and may end it.
    public func verify(
        progress: (_ done: Int, _ total: Int) throws(DatabaseError) -> Void = { _, _ in }
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
        _ catalog: BackupCatalog,
        _ progress: (_ done: Int, _ total: Int) throws(DatabaseError) -> Void
    ) throws(DatabaseError) -> BackupVerification {
        var result = BackupVerification()
        var unsound: Set<BackupName> = []
        var gapStarts: [Revision: Revision] = [:]
        var cluster: UInt64?
        for (index, name) in catalog.objects.enumerated() {
            try progress(index, catalog.objects.count)
            do throws(DatabaseError) {
                let bytes = try destination.get(name.text)
                result.objects += 1
                result.bytes += UInt64(bytes.count)
                let object = try BackupObject(bytes, named: name)
                if let cluster, cluster != object.cluster {
                    throw DatabaseError(.storageFailed, "\(name.subject) is of another cluster")
                }
                cluster = object.cluster
                gapStarts[name.to] = object.gapFrom ?? gapStarts[name.to]
            } catch {
                result.findings.append(BackupFinding(name, error))
                unsound.insert(name)
            }
        }
        try progress(catalog.objects.count, catalog.objects.count)
        for stranger in catalog.strangers {
            result.findings.append(
                BackupFinding(name: stranger, problem: "is not a backup object"))
        }
        result.spans = catalog.without(unsound).spans
        for hole in catalog.holes(between: result.spans) {
            // A gap reaches up to the snapshot that closed it.
            let gapFrom = max(
                gapStarts[hole.upperBound.next()] ?? hole.upperBound.next(), hole.lowerBound)
            if gapFrom <= hole.upperBound { result.gaps.append(gapFrom...hole.upperBound) }
            guard hole.lowerBound < gapFrom else { continue }
            let last = Revision(gapFrom.rawValue - 1)
            let isOne = hole.lowerBound == last
            result.findings.append(
                BackupFinding(
                    name: isOne ? "revision \(last)" : "revisions \(hole.lowerBound) to \(last)",
                    problem: "cannot be restored: objects are missing or damaged"))
        }
        return result
    }
}
