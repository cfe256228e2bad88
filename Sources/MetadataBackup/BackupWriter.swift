// Keeps a backup up to date: takes the events of the metadata store, stores them as logs, asks for
// snapshots, and removes what retention no longer wants. Blocks where its destination does, so it
// lives on a thread of its own; time comes in by arguments.

import KVBase
import ObjectStore

public struct BackupSettings: Hashable, Sendable {
    /// Milliseconds between two snapshots.
    public var snapshotEvery: UInt64 = 3_600_000
    /// A snapshot is taken earlier when so many logs follow the last one, to bound a restore.
    public var logsMax = 2_000
    /// Revisions of this many milliseconds can be restored.
    public var keep: UInt64 = 7 * 86_400_000
    /// Changes held while the destination does not take them; beyond it they are dropped, and a
    /// snapshot closes the gap.
    public var changesHeldMax = 200_000

    public init() {}
}

public struct BackupWriter: Sendable {
    /// What an operator wants to know.
    public struct Status: Hashable, Sendable {
        /// Everything up to here is in the backup, and when it was made (wall clock, milliseconds).
        public var revision: Revision = .none
        public var revisionAt: UInt64 = 0
        public var snapshot: Revision = .none
        public var snapshotAt: UInt64 = 0
        /// Written since the start.
        public var objects: UInt64 = 0
        public var bytes: UInt64 = 0
        public var failures: UInt64 = 0
        /// Why the last attempt failed; nil when it did not.
        public var problem: String?

        public init() {}
    }

    private let archive: BackupArchive
    public var settings: BackupSettings
    private let cluster: UInt64
    public private(set) var status = Status()
    /// Waiting to be stored, each revision from the first one to the one before `next`. Without a gap the
    /// first one follows `status.revision`; with one it waits for a snapshot that it follows.
    private var events: [BackupEvent] = []
    private var changeCount = 0
    /// The revision after the last one stored, waiting or lost.
    private var next: Revision = .none
    private var logsSinceSnapshot = 0
    private var hasGap = false
    private var isReady = false
    /// Wall clock of the last deletion of what retention does not want.
    private var prunedAt: UInt64 = 0
    private var merge: BackupMerge?
    /// Logs up to here are put together.
    private var mergedThrough = Revision.none

    public init(_ archive: BackupArchive, cluster: UInt64, settings: BackupSettings) {
        self.archive = archive
        self.cluster = cluster
        self.settings = settings
    }

    /// Looks at what the destination holds. Answers the revision from which it wants events; nil: it
    /// wants a snapshot first.
    public mutating func begin() throws(DatabaseError) -> Revision? {
        try attempt { (writer) throws(DatabaseError) in
            let catalog = try writer.archive.catalog()
            writer.isReady = true
            guard let newest = catalog.newest, let last = catalog.snapshots.last else {
                writer.hasGap = true
                return nil
            }
            // Of damaged ones the next tells whose backup it is.
            let sound = try writer.archive.firstSound(of: [last] + catalog.objects.reversed())
            guard sound?.cluster ?? writer.cluster == writer.cluster else {
                throw DatabaseError(
                    .refused,
                    "\(writer.archive.destination.description) holds the backup of another cluster "
                        + "(\(hex(sound?.cluster ?? 0)))")
            }
            // In the place of a damaged one a snapshot is due at once.
            if sound?.name == last {
                writer.status.snapshot = last.to
                writer.status.snapshotAt = last.at
            }
            writer.status.revision = newest
            writer.status.revisionAt = catalog.objects.last { $0.to == newest }?.at ?? last.at
            writer.logsSinceSnapshot = catalog.logs.count { $0.to > last.to }
            writer.next = newest.next()
            return newest.next()
        }
    }

    /// Takes an event; those that are stored already are ignored.
    public mutating func append(_ event: BackupEvent) {
        guard isReady, event.revision >= next else { return }
        // Every revision has its event: those in between were lost.
        if event.revision > next || changeCount + event.changes.count > settings.changesHeldMax {
            loseEvents(before: event.revision)
        }
        next = event.revision.next()
        events.append(event)
        changeCount += event.changes.count
    }

    /// Events before `revision` were lost: a snapshot must close the gap. Those that come from there on
    /// wait for it, as some may be newer than it will be.
    public mutating func loseEvents(before revision: Revision) {
        events.removeAll()
        changeCount = 0
        next = max(next, revision)
        hasGap = true
    }

    /// Whether something that happened is not in the backup yet.
    public var isBehind: Bool { !isReady || hasGap || hasEvents }

    /// Whether a snapshot is due at the wall clock `now`. When nothing has changed since the last one,
    /// that one is as good.
    public func wantsSnapshot(now: UInt64) -> Bool {
        isReady
            && (hasGap || logsSinceSnapshot >= settings.logsMax
                || now >= status.snapshotAt + settings.snapshotEvery
                    && (hasEvents || status.revision > status.snapshot))
    }

    /// Whether there is something to store.
    public var hasEvents: Bool { !events.isEmpty }

    /// Stores what waits as one log.
    public mutating func flush() throws(DatabaseError) {
        guard !hasGap, let first = events.first, let last = events.last else { return }
        try store(
            BackupObject(
                name: BackupName(logFrom: first.revision, to: last.revision, at: last.at),
                cluster: cluster, contents: .log(events)))
        status.revision = last.revision
        status.revisionAt = last.at
        logsSinceSnapshot += 1
        events.removeAll()
        changeCount = 0
    }

    /// Stores everything as of one revision, taken at the wall clock `at`.
    public mutating func store(
        _ snapshot: MetadataSnapshot, at: UInt64, progress: (BackupProgress) -> Void = { _ in }
    ) throws(DatabaseError) {
        // Logs go on from whatever was stored before, so that no revision in between is lost.
        try flush()
        var records = snapshot.records
        for index in records.indices { records[index].lease = .none }
        var object = BackupObject(
            name: BackupName(snapshotAt: snapshot.revision, at: at), cluster: cluster,
            contents: .snapshot(records))
        if status.revision < snapshot.revision { object.gapFrom = status.revision.next() }
        try store(object, progress)
        status.snapshot = snapshot.revision
        status.snapshotAt = at
        logsSinceSnapshot = 0
        // Without a gap the logs go on as they did, over the snapshot's revision.
        guard hasGap else { return }
        status.revision = snapshot.revision
        status.revisionAt = at
        events.removeAll { $0.revision <= snapshot.revision }
        changeCount = events.reduce(0) { $0 + $1.changes.count }
        next = max(next, snapshot.revision.next())
        // Events behind the snapshot may have been lost as well: the next one is to close that gap.
        hasGap = (events.first?.revision ?? next) > snapshot.revision.next()
    }

    /// Looks whether the destination still leads to everything that was stored. When it does not (it was
    /// emptied, or something else is mounted there) a snapshot must close the gap; answers false.
    public mutating func look() throws(DatabaseError) -> Bool {
        try attempt { (writer) throws(DatabaseError) in
            guard writer.isReady, !writer.hasGap else { return true }
            let catalog = try writer.archive.catalog()
            guard catalog.path(to: writer.status.revision) == nil else { return true }
            let newest = catalog.spans.last { $0.lowerBound <= writer.status.revision }
            writer.status.revision = newest?.upperBound ?? .none
            writer.status.revisionAt =
                catalog.objects.last { $0.to == writer.status.revision }?.at ?? 0
            let snapshot = catalog.snapshots.last { $0.to <= writer.status.revision }
            writer.status.snapshot = snapshot?.to ?? .none
            writer.status.snapshotAt = snapshot?.at ?? 0
            writer.hasGap = true
            return false
        }
    }

    /// Whether retention is to be seen to at the wall clock `now`, although no snapshot was.
    public func wantsPruning(now: UInt64) -> Bool {
        isReady && !hasGap && !isMerging
            && now >= max(prunedAt, status.snapshotAt) + settings.snapshotEvery
    }

    /// Deletes what retention does not want any more, as of the wall clock `now`, and what interrupted
    /// writes left, and plans what can be put together. Answers how many objects went.
    @discardableResult
    public mutating func prune(now: UInt64) throws(DatabaseError) -> Int {
        try attempt { (writer) throws(DatabaseError) in
            let catalog = try writer.archive.catalog()
            let surplus = Set(
                catalog.surplus(keepingSince: now - min(now, writer.settings.keep)))
            for name in surplus.sorted().reversed() {
                try writer.archive.destination.delete(name.text)
            }
            try writer.archive.destination.sweep()
            let rest = catalog.without(surplus)
            writer.merge = BackupMerge(rest.mergeable(above: writer.mergedThrough))
            writer.mergedThrough = rest.snapshots.last?.to ?? .none
            writer.prunedAt = now
            return surplus.count
        }
    }

    /// Whether `mergeStep` has something to do.
    public var isMerging: Bool { merge != nil }

    /// Goes on putting logs below the newest snapshot together, by one object. When it fails they stay as
    /// they are.
    public mutating func mergeStep() throws(DatabaseError) {
        do throws(DatabaseError) {
            if try merge?.step(archive, cluster: cluster) == false { merge = nil }
        } catch {
            merge = nil
            mergedThrough = .none
            throw error
        }
    }

    // MARK: Helpers

    private mutating func store(
        _ object: BackupObject, _ progress: (BackupProgress) -> Void = { _ in }
    ) throws(DatabaseError) {
        try attempt { (writer) throws(DatabaseError) in
            writer.status.bytes += UInt64(try writer.archive.store(object, progress: progress))
            writer.status.objects += 1
        }
    }

    /// Notes how an access to the destination ended.
    private mutating func attempt<Value>(
        _ body: (inout BackupWriter) throws(DatabaseError) -> Value
    ) throws(DatabaseError) -> Value {
        do throws(DatabaseError) {
            let value = try body(&self)
            status.problem = nil
            return value
        } catch {
            status.failures += 1
            status.problem = error.message
            throw error
        }
    }
}
