// What a controller remembers of its metadata in etcd over a restart, so that an etcd that was emptied or
// restored from an older backup meanwhile is not taken for the truth.

import EventLoop
import KVBase
import MetadataCore
import ReplicatedLog
import SystemdSupport

/// The file `seen` beside the session's: one line of the cluster id in hexadecimal, the revision that the
/// store had come to, and `etcd.prefix`. Written off the loop, by the loop's thread's order.
///
/// Revisions outlive every move of the metadata, so a lower one below the same prefix is an older state.
final class EtcdMemory {
    struct Note: Hashable, Sendable {
        var cluster: UInt64
        var revision: Revision
        var prefix: String
    }

    /// How old the note may be: what was lost since is not noticed after a restart.
    private static let interval = Nanoseconds.seconds(10)

    private let path: String
    private let prefix: String
    private let log: ComponentLog
    private let jobs: BackgroundJobs
    private var isWriting = false
    private var writtenAt: Instant?
    private(set) var note: Note?

    init(
        directory: String, prefix: String, loop: EventLoop, log: ComponentLog
    ) throws(DatabaseError) {
        path = directory + "/seen"
        self.prefix = prefix
        self.log = log
        jobs = BackgroundJobs(loop)
        if let bytes = try DurableFile.read(path) {
            guard let read = Note(String(decoding: bytes, as: UTF8.self)) else {
                throw DatabaseError(.storageFailed, "\(path) cannot be read")
            }
            note = read.prefix == prefix ? read : nil
        }
    }

    /// Notes what there is at the end; nil: what was noted stays.
    func close(_ last: (cluster: UInt64, revision: Revision)?) {
        jobs.close()
        guard let last, last.cluster != 0 else { return }
        let new = Note(cluster: last.cluster, revision: last.revision, prefix: prefix)
        if new != note { try? DurableFile.replace(path, with: new.encode()) }
    }

    /// Whether it is time for `see`.
    func isDue(_ now: Instant) -> Bool {
        guard !isWriting else { return false }
        return writtenAt.map { now - $0 >= Self.interval } ?? true
    }

    /// Why what etcd holds cannot follow what was seen; nil when it can.
    func objection(cluster: UInt64, revision: Revision) -> String? {
        guard let note, note.cluster != 0 else { return nil }
        let before = "cluster \(hex(note.cluster)) at revision \(note.revision.rawValue) was there"
        if revision == .none || cluster == 0 {
            return "the metadata in etcd below \(prefix) is gone: \(before)"
        }
        if cluster != note.cluster {
            return "etcd holds cluster \(hex(cluster)) below \(prefix): \(before)"
        }
        guard revision < note.revision else { return nil }
        return
            "the metadata in etcd below \(prefix) is at revision \(revision.rawValue): \(before); was an "
            + "older backup of etcd restored?"
    }

    /// Notes what is there now.
    func see(cluster: UInt64, revision: Revision, now: Instant) {
        let new = Note(cluster: cluster, revision: revision, prefix: prefix)
        guard cluster != 0, new != note else { return }
        writtenAt = now
        isWriting = true
        let (path, bytes) = (path, new.encode())
        jobs.run("etcd-seen") { () throws(DatabaseError) in
            try DurableFile.replace(path, with: bytes)
        } _: { [unowned self] result in
            isWriting = false
            switch result {
            case .success: note = new
            case .failure(let error):
                log.warning("cannot note what was seen", [LogField("reason", error.message)])
            }
        }
    }
}

extension EtcdMemory.Note {
    fileprivate init?(_ text: String) {
        let words = text.split(separator: " ", maxSplits: 2)
        guard words.count == 3, let cluster = UInt64(hex: String(words[0]), count: 16),
            let revision = UInt64(words[1])
        else { return nil }
        self.init(
            cluster: cluster, revision: Revision(revision),
            prefix: String(words[2].prefix { $0 != "\n" }))
    }

    fileprivate func encode() -> Bytes {
        Bytes("\(hex(cluster)) \(revision.rawValue) \(prefix)\n".utf8)
    }
}
