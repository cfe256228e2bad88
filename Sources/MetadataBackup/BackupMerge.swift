// Puts the logs between two snapshots together: changes come every second, and an object for each would
// make a backup of a week one of a million objects.
//
// One small step at a time, so that the logs of now need not wait. What a log holds is deleted only after
// the object that replaces it was stored and read back; newest first, so that at every moment what is left
// leads on without a gap.

import KVBase
import ObjectStore

struct BackupMerge: Sendable {
    /// Changes of one merged log, about: what is in memory while it is put together.
    static let bytesMax = 4 << 20

    /// Each in order, without a gap, all between the same two snapshots.
    private var runs: [[BackupName]]
    /// Logs of the first run whose events are here, and those that another one holds as well.
    private var taken: [BackupName] = []
    private var covered: [BackupName] = []
    private var events: [BackupEvent] = []
    private var bytes = 0
    private var deletions: [BackupName] = []

    /// `runs`: see `BackupCatalog.mergeable`.
    init(_ runs: [[BackupName]]) { self.runs = runs }

    /// Reads, stores or deletes one object; false when nothing is left to do.
    mutating func step(_ archive: BackupArchive, cluster: UInt64) throws(DatabaseError) -> Bool {
        if let name = deletions.popLast() {
            try archive.destination.delete(name.text)
            return true
        }
        guard let name = runs.first?.first else {
            guard !taken.isEmpty else { return false }
            try finish(archive, cluster)
            return true
        }
        if bytes >= Self.bytesMax {
            try finish(archive, cluster)
            return true
        }
        runs[0].removeFirst()
        if let last = taken.last, name.to <= last.to {
            covered.append(name)
        } else if let object = try archive.firstSound(of: [name]) {
            try take(object, cluster)
        } else {
            // A damaged one stays, and parts what is before it from what is behind it.
            try finish(archive, cluster)
        }
        if runs[0].isEmpty {
            runs.removeFirst()
            try finish(archive, cluster)
        }
        return true
    }

    private mutating func take(
        _ object: BackupObject, _ cluster: UInt64
    ) throws(DatabaseError) {
        guard object.cluster == cluster, case .log(let more) = object.contents else {
            throw DatabaseError(
                .storageFailed, "\(object.name.subject) is of another cluster")
        }
        let reached = events.last?.revision ?? .none
        for event in more where event.revision > reached {
            bytes += event.changes.reduce(32) { $0 + $1.byteCount }
            events.append(event)
        }
        taken.append(object.name)
    }

    private mutating func finish(
        _ archive: BackupArchive, _ cluster: UInt64
    ) throws(DatabaseError) {
        var merged: BackupName?
        if let first = taken.first, let last = taken.last, taken.count > 1 {
            let object = BackupObject(
                name: BackupName(logFrom: first.from, to: last.to, at: last.at), cluster: cluster,
                contents: .log(events))
            try archive.store(object)
            merged = object.name
        }
        if let merged { covered += taken.filter { $0 != merged } }
        // The last one goes first.
        deletions = covered.sorted { $0.to < $1.to }
        (taken, covered, events, bytes) = ([], [], [], 0)
    }
}

extension MetadataChange {
    fileprivate var byteCount: Int {
        switch self {
        case .put(let key, let value, _): key.count + value.count + 16
        case .delete(let key): key.count + 16
        }
    }
}

extension BackupCatalog {
    /// The logs above `revision` up to the newest snapshot that can be put together: runs without a gap,
    /// each between two snapshots, of two objects at least.
    func mergeable(above revision: Revision) -> [[BackupName]] {
        let marks = snapshots.map(\.to)
        guard let newest = marks.last else { return [] }
        var runs: [[BackupName]] = []
        var run: [BackupName] = []
        var reached = Revision.none
        var mark = 0
        func close() {
            if run.count > 1 { runs.append(run) }
            run = []
        }
        // Of two that begin alike the longer one first: it holds the other.
        let logs = self.logs.filter { $0.to > revision && $0.to <= newest }
            .sorted { ($0.from, $1.to) < ($1.from, $0.to) }
        for log in logs {
            var isBehindMark = false
            while marks[mark] < log.to {
                mark += 1
                isBehindMark = true
            }
            if isBehindMark || log.from > reached.next() { close() }
            run.append(log)
            reached = max(reached, log.to)
        }
        close()
        return runs
    }
}
