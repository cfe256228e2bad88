// What a backup holds, as its listing tells: which revisions can be restored, from which objects, and
// which objects are not needed any more. Pure.

import KVBase

public struct BackupCatalog: Hashable, Sendable {
    /// In order.
    public let objects: [BackupName]
    /// Names that are not those of objects: half-written files, or not ours.
    public let strangers: [String]

    public init(listing: [String]) {
        var objects: [BackupName] = []
        var strangers: [String] = []
        for text in listing {
            if let name = BackupName(text) { objects.append(name) } else { strangers.append(text) }
        }
        self.objects = objects.sorted()
        self.strangers = strangers
    }

    public var snapshots: [BackupName] { objects.filter { $0.kind == .snapshot } }
    public var logs: [BackupName] { objects.filter { $0.kind == .log } }

    /// The newest revision that can be restored.
    public var newest: Revision? { spans.last?.upperBound }

    /// The revisions that can be restored: from each snapshot as far as unbroken logs lead.
    public var spans: [ClosedRange<Revision>] {
        var spans: [ClosedRange<Revision>] = []
        for snapshot in snapshots {
            let end = chain(after: snapshot.to).last?.to ?? snapshot.to
            if let last = spans.last, last.upperBound >= snapshot.to {
                spans[spans.count - 1] = last.lowerBound...max(end, last.upperBound)
            } else {
                spans.append(snapshot.to...end)
            }
        }
        return spans
    }

    /// The objects that lead to `revision`: a snapshot at or below it, the nearest, then logs without
    /// a gap. Nil when there are none.
    public func path(to revision: Revision) -> [BackupName]? {
        for snapshot in snapshots.reversed() where snapshot.to <= revision {
            if snapshot.to == revision { return [snapshot] }
            var path = [snapshot]
            for log in chain(after: snapshot.to) {
                path.append(log)
                if log.to >= revision { return path }
            }
        }
        return nil
    }

    /// The objects that lead to the wall clock `time`, milliseconds since 1970: the nearest snapshot
    /// that is not younger, and logs as long as they may hold older events. Nil when there is none.
    public func path(asOf time: UInt64) -> [BackupName]? {
        guard let snapshot = snapshots.last(where: { $0.at <= time }) else { return nil }
        var path = [snapshot]
        for log in chain(after: snapshot.to) {
            path.append(log)
            if log.at > time { break }
        }
        return path
    }

    /// What may be deleted so that every state since the wall clock `time` can still be restored. The
    /// newest snapshot that is not younger, and what follows it, always stay.
    public func surplus(keepingSince time: UInt64) -> [BackupName] {
        guard let base = snapshots.last(where: { $0.at <= time }) else { return [] }
        return objects.filter { $0.to <= base.to && $0 != base }
    }

    /// The logs from the revision after `revision` on, as far as each follows the one before. Logs may
    /// overlap when a controller stored one and died before it knew.
    private func chain(after revision: Revision) -> [BackupName] {
        var chain: [BackupName] = []
        var reached = revision
        for log in logs where log.to > reached {
            guard log.from <= reached.next() else { break }
            chain.append(log)
            reached = log.to
        }
        return chain
    }
}
