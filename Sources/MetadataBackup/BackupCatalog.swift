// What a backup holds, as its listing tells: which revisions can be restored, from which objects, and
// which objects are not needed any more. Pure.

import KVBase

public struct BackupCatalog: Hashable, Sendable {
    /// In order.
    public let objects: [BackupName]
    /// Names that are not those of objects.
    public let strangers: [String]

    public init(listing: [String]) {
        var objects: [BackupName] = []
        var strangers: [String] = []
        for text in listing {
            if let name = BackupName(text) { objects.append(name) } else { strangers.append(text) }
        }
        self.init(objects: objects.sorted(), strangers: strangers)
    }

    private init(objects: [BackupName], strangers: [String]) {
        self.objects = objects
        self.strangers = strangers
    }

    /// As if these objects were not there.
    func without(_ names: Set<BackupName>) -> BackupCatalog {
        guard !names.isEmpty else { return self }
        return BackupCatalog(
            objects: objects.filter { !names.contains($0) }, strangers: strangers)
    }

    public var snapshots: [BackupName] { objects.filter { $0.kind == .snapshot } }
    public var logs: [BackupName] { objects.filter { $0.kind == .log } }

    /// The newest revision that can be restored.
    public var newest: Revision? { spans.last?.upperBound }

    /// The revisions that can be restored: from each snapshot as far as unbroken logs lead.
    public var spans: [ClosedRange<Revision>] {
        // What logs cover without a gap.
        var covered: [ClosedRange<Revision>] = []
        for log in logsByStart {
            if let last = covered.last, log.from <= last.upperBound.next() {
                covered[covered.count - 1] = last.lowerBound...max(last.upperBound, log.to)
            } else {
                covered.append(log.from...log.to)
            }
        }
        var spans: [ClosedRange<Revision>] = []
        var place = 0
        for snapshot in snapshots {
            while place < covered.count, covered[place].upperBound <= snapshot.to { place += 1 }
            var end = snapshot.to
            if place < covered.count, covered[place].lowerBound <= snapshot.to.next() {
                end = covered[place].upperBound
            }
            if let last = spans.last, last.upperBound >= snapshot.to {
                spans[spans.count - 1] = last.lowerBound...max(end, last.upperBound)
            } else {
                spans.append(snapshot.to...end)
            }
        }
        return spans
    }

    /// The revisions that cannot be restored although objects are there, or were, when `spans` can.
    func holes(between spans: [ClosedRange<Revision>]) -> [ClosedRange<Revision>] {
        var holes: [ClosedRange<Revision>] = []
        guard let last = objects.last else { return holes }
        // A log that leads over the first snapshot is not missed in front of it.
        let start = spans.first?.lowerBound ?? last.to.next()
        if let from = objects.filter({ $0.to < start }).map(\.from).min() {
            holes.append(from...Revision(start.rawValue - 1))
        }
        for (span, next) in zip(spans, spans.dropFirst()) {
            holes.append(span.upperBound.next()...Revision(next.lowerBound.rawValue - 1))
        }
        if let end = spans.last?.upperBound, end < last.to { holes.append(end.next()...last.to) }
        return holes
    }

    /// The objects that lead to `revision`: a snapshot at or below it, the nearest, then logs without
    /// a gap. Nil when there are none.
    public func path(to revision: Revision) -> [BackupName]? {
        // What the nearest one does not lead to no older one does.
        guard let snapshot = snapshots.last(where: { $0.to <= revision }) else { return nil }
        var path = [snapshot]
        if snapshot.to == revision { return path }
        for log in chain(after: snapshot.to) {
            path.append(log)
            if log.to >= revision { return path }
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

    /// The fewest logs from the revision after `revision` on, as far as each follows the one before. Logs
    /// overlap when a controller stored one and died before it knew, and while several become one.
    private func chain(after revision: Revision) -> [BackupName] {
        var chain: [BackupName] = []
        var reached = revision
        var furthest: BackupName?
        for log in logsByStart where log.to > revision {
            if log.from > reached.next() {
                guard let next = furthest, log.from <= next.to.next() else { break }
                chain.append(next)
                reached = next.to
            }
            if log.to > max(reached, furthest?.to ?? reached) { furthest = log }
        }
        if let furthest, furthest.to > reached { chain.append(furthest) }
        return chain
    }

    private var logsByStart: [BackupName] { logs.sorted { $0.from < $1.from } }
}
