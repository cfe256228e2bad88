// What operators are shown of a backup, by a controller or by a tool that reads it itself.

import KVBase
import ObjectStore

/// A snapshot and what follows it.
public struct BackupSnapshotView: Codable, Sendable {
    public var name: String
    public var revision: UInt64
    /// Milliseconds since 1970, here and below.
    public var at: UInt64
    /// Logs between it and the next snapshot.
    public var logs: Int
    /// The newest revision that these logs reach.
    public var through: UInt64
    public var throughAt: UInt64
}

public struct BackupSpanView: Codable, Sendable {
    public var from: UInt64
    public var to: UInt64

    init(_ span: ClosedRange<Revision>) {
        from = span.lowerBound.rawValue
        to = span.upperBound.rawValue
    }
}

public struct BackupListView: Codable, Sendable {
    public var destination: String
    public var objects: Int
    public var snapshots: [BackupSnapshotView]
    /// Revisions that can be restored.
    public var spans: [BackupSpanView]
    /// Names that are no objects of a backup.
    public var strangers: [String]

    public init(_ catalog: BackupCatalog, destination: String) {
        self.destination = destination
        objects = catalog.objects.count
        strangers = catalog.strangers
        spans = catalog.spans.map(BackupSpanView.init)
        let logs = catalog.logs
        let starts = catalog.snapshots
        var place = 0
        snapshots = starts.enumerated().map { index, snapshot in
            let next = index + 1 < starts.count ? starts[index + 1].to : nil
            while place < logs.count, logs[place].to <= snapshot.to { place += 1 }
            var view = BackupSnapshotView(
                name: snapshot.text, revision: snapshot.to.rawValue, at: snapshot.at, logs: 0,
                through: snapshot.to.rawValue, throughAt: snapshot.at)
            while place < logs.count, next.map({ logs[place].to <= $0 }) ?? true {
                view.logs += 1
                if logs[place].from.rawValue <= view.through + 1 {
                    view.through = max(view.through, logs[place].to.rawValue)
                    view.throughAt = max(view.throughAt, logs[place].at)
                }
                place += 1
            }
            return view
        }
    }
}

public struct BackupFindingView: Codable, Sendable {
    public var name: String
    public var problem: String
}

public struct BackupVerificationView: Codable, Sendable {
    public var destination: String
    public var objects: Int
    public var bytes: UInt64
    public var spans: [BackupSpanView]
    /// Revisions between these that were lost before they were stored.
    public var gaps: [BackupSpanView]
    /// Empty when all is well.
    public var findings: [BackupFindingView]

    public init(_ result: BackupVerification, destination: String) {
        self.destination = destination
        objects = result.objects
        bytes = result.bytes
        spans = result.spans.map(BackupSpanView.init)
        gaps = result.gaps.map(BackupSpanView.init)
        findings = result.findings.map { BackupFindingView(name: $0.name, problem: $0.problem) }
    }
}

/// Which state of a backup is meant.
public enum BackupMoment: Hashable, Sendable {
    case newest
    case revision(Revision)
    /// Milliseconds since 1970.
    case time(UInt64)

    /// `newest`, `revision:N` or `time:MILLISECONDS`, as tools send it.
    public init?(_ text: String) {
        let parts = text.split(separator: ":", maxSplits: 1)
        switch (parts.first, parts.count > 1 ? UInt64(parts[1]) : nil) {
        case ("newest", nil): self = .newest
        case ("revision", let number?): self = .revision(Revision(number))
        case ("time", let number?): self = .time(number)
        default: return nil
        }
    }

    public var text: String {
        switch self {
        case .newest: "newest"
        case .revision(let revision): "revision:\(revision.rawValue)"
        case .time(let time): "time:\(time)"
        }
    }
}

extension BackupArchive {
    public func state(
        at moment: BackupMoment, progress: (_ done: Int, _ total: Int) -> Void = { _, _ in }
    ) throws(DatabaseError) -> BackupState {
        switch moment {
        case .revision(let revision): return try state(at: revision, progress: progress)
        case .time(let time): return try state(asOf: time, progress: progress)
        case .newest:
            guard let newest = try catalog().newest else {
                throw DatabaseError(
                    .refused, "\(destination.description) holds no snapshot")
            }
            return try state(at: newest, progress: progress)
        }
    }
}
