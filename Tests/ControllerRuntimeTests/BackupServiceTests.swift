// The backup's thread and the loop that feeds it: what is held while the destination does not take it,
// and what is dropped.

import EventLoop
import Glibc
import KVBase
import MetadataBackup
import Metrics
import ObjectStore
import Synchronization
import SystemdSupport
import Testing
import Threads

@testable import ControllerRuntime

/// Objects in memory. The first listing waits until it is let go.
private final class HeldStore: ObjectStore {
    let description = "memory"
    private let objects = Mutex<[String: Bytes]>([:])
    private let isHeld = Mutex(true)
    /// The first listing has begun; it may end.
    let asked = Semaphore()
    let letGo = Semaphore()

    func put(
        _ name: String, _ bytes: Bytes, progress: (Int) -> Void
    ) throws(DatabaseError) { objects.withLock { $0[name] = bytes } }

    func get(_ name: String, progress: (Int) -> Void) throws(DatabaseError) -> Bytes {
        guard let bytes = objects.withLock({ $0[name] }) else {
            throw DatabaseError(.storageFailed, "no \(name)")
        }
        return bytes
    }

    func list() throws(DatabaseError) -> [String] {
        let isFirst = isHeld.withLock { held in
            defer { held = false }
            return held
        }
        if isFirst {
            asked.signal()
            letGo.wait()
        }
        return objects.withLock { $0.keys.sorted() }
    }

    func delete(_ name: String) throws(DatabaseError) { objects.withLock { $0[name] = nil } }
}

@Suite struct BackupServiceTests {
    private static let cluster: UInt64 = 7
    /// What a snapshot is stored of when one is asked for.
    private static let newest = Revision(4)

    private static func event(_ revision: UInt64, changes: Int = 1) -> BackupEvent {
        BackupEvent(
            revision: Revision(revision), at: revision * 1_000,
            changes: Array(repeating: .delete(key: Bytes("k".utf8)), count: changes))
    }

    /// Begins behind a snapshot of revision 1; gives the service what comes while the destination hangs, then
    /// lets it go and runs until `last` is stored. Answers what is in the backup then.
    private func run(
        _ events: [BackupEvent], then later: BackupEvent? = nil, until last: Revision
    ) throws -> BackupVerification {
        let store = HeldStore()
        let archive = BackupArchive(store)
        try archive.store(
            BackupObject(
                name: BackupName(
                    snapshotAt: Revision(1), at: EventLoop.wallClockNanoseconds() / 1_000_000),
                cluster: Self.cluster, contents: .snapshot([])))
        let loop = try EventLoop()
        let log = Log(program: "test", descriptor: open("/dev/null", O_WRONLY))
        var service: BackupService?
        var asked: [Revision?] = []
        let made = try BackupService(
            to: store, settings: BackupSettings(), loop: loop,
            log: log.component("backup"),
            metrics: BackupMetrics(MetricsRegistry())
        ) { wish in
            switch wish {
            case .watch(_, let from):
                asked.append(from)
                if let later { service?.append(later) }
            case .snapshot:
                service?.take { MetadataSnapshot(revision: Self.newest, records: []) }
            case .forced: break
            }
        }
        service = made
        _ = made.begin(cluster: Self.cluster)
        store.asked.wait()
        for event in events { made.append(event) }
        store.letGo.signal()
        loop.schedule(after: .milliseconds(5), repeating: .milliseconds(5)) {
            if made.status.writer.revision == last { loop.stop() }
        }
        loop.stopInTime()
        loop.run()
        made.close()
        #expect(made.status.writer.revision == last)
        #expect(asked == [Revision(2)], "the events that follow the backup")
        return try archive.verify()
    }

    @Test func whatComesWhileTheDestinationHangsIsStored() throws {
        let found = try run(
            [Self.event(2, changes: 60_000), Self.event(3, changes: 40_000)], until: Revision(3))
        #expect(found.findings.isEmpty && found.gaps.isEmpty)
        #expect(found.spans == [Revision(1)...Revision(3)])
    }

    @Test func beyondTheBoundASnapshotTakesThePlaceOfWhatWasDropped() throws {
        let found = try run(
            [Self.event(2, changes: 60_000), Self.event(3, changes: 40_001), Self.event(4)],
            then: Self.event(5), until: Revision(5))
        #expect(found.findings.isEmpty)
        #expect(found.gaps == [Revision(2)...Revision(3)], "named, and no others")
        #expect(found.spans == [Revision(1)...Revision(1), Revision(4)...Revision(5)])
    }
}
