import KVBase
import ObjectStore
import Synchronization
import Testing

@testable import MetadataBackup

/// Objects in memory; refuses when it is told to.
private final class MemoryStore: ObjectStore {
    let objects = Mutex<[String: Bytes]>([:])
    let isDown = Mutex(false)
    /// Every so many calls fail on their way back, after they were carried out.
    let losesAnswers = Mutex((every: 0, count: 0))
    let description = "memory"

    private func call() throws(DatabaseError) {
        if isDown.withLock({ $0 }) { throw DatabaseError(.unavailable, "memory is down") }
    }

    private func answer() throws(DatabaseError) {
        let lost = losesAnswers.withLock { state in
            state.count += 1
            return state.every > 0 && state.count % state.every == 0
        }
        if lost { throw DatabaseError(.unavailable, "the answer was lost") }
    }

    func put(
        _ name: String, _ bytes: Bytes, progress: (Int) -> Void
    ) throws(DatabaseError) {
        try call()
        objects.withLock { $0[name] = bytes }
        try answer()
    }

    func get(_ name: String, progress: (Int) -> Void) throws(DatabaseError) -> Bytes {
        try call()
        guard let bytes = objects.withLock({ $0[name] }) else {
            throw DatabaseError(.storageFailed, "no \(name)")
        }
        return bytes
    }

    func list() throws(DatabaseError) -> [String] {
        try call()
        return objects.withLock { $0.keys.sorted() }
    }

    func delete(_ name: String) throws(DatabaseError) {
        try call()
        objects.withLock { $0[name] = nil }
        try answer()
    }
}

/// A metadata store with its history, and a controller that backs it up and may be replaced.
private struct Bench {
    let store = MemoryStore()
    var settings = BackupSettings()
    var states: [MetadataSnapshot] = [MetadataSnapshot(revision: .none, records: [])]
    var times: [UInt64] = [1_000]
    var events: [BackupEvent] = []
    var writer: BackupWriter
    var now: UInt64 = 1_000

    init(_ settings: BackupSettings = BackupSettings()) {
        self.settings = settings
        writer = BackupWriter(BackupArchive(store), cluster: 7, settings: settings)
    }

    /// A new controller: it begins where the backup ends, and gets the store's events from there.
    mutating func replaceController(historyFrom: Int = 1) throws {
        writer = BackupWriter(BackupArchive(store), cluster: 7, settings: settings)
        let wanted = try writer.begin()
        guard let wanted, wanted.rawValue >= UInt64(historyFrom) else {
            writer.loseEvents(before: states[states.count - 1].revision.next())
            return try snapshot()
        }
        for event in events where event.revision >= wanted { writer.append(event) }
    }

    mutating func change() {
        now += 100
        var state = states[states.count - 1]
        state.revision = state.revision.next()
        let key = Bytes("key/\(state.revision.rawValue % 13)".utf8)
        let value = Bytes("\(state.revision)".utf8)
        let created =
            state.records.first { $0.key == key }?.createRevision ?? state.revision
        state.records.removeAll { $0.key == key }
        state.records.append(
            MetadataRecord(
                key: key, value: value, createRevision: created, modRevision: state.revision,
                lease: .none))
        state.records.sort { compareBytes($0.key, $1.key) < 0 }
        states.append(state)
        times.append(now)
        let event = BackupEvent(
            revision: state.revision, at: now,
            changes: [.put(key: key, value: value, lease: .none)])
        events.append(event)
        writer.append(event)
    }

    mutating func snapshot() throws {
        try writer.store(states[states.count - 1], at: now)
    }

    func restored(_ revision: Int) throws -> [MetadataRecord] {
        try BackupArchive(store).state(at: Revision(UInt64(revision))).records
    }
}

@Suite struct BackupWriterTests {
    @Test func everyRevisionIsThereAfterEachFlush() throws {
        var bench = Bench()
        #expect(try bench.writer.begin() == nil)
        #expect(bench.writer.wantsSnapshot(now: bench.now))
        try bench.snapshot()
        for round in 1...40 {
            bench.change()
            if round % 3 == 0 {
                try bench.writer.flush()
                #expect(try bench.restored(round) == bench.states[round].records)
                #expect(bench.writer.status.revision == Revision(UInt64(round)))
            }
        }
        try bench.writer.flush()
        for revision in 0...40 {
            #expect(try bench.restored(revision) == bench.states[revision].records)
        }
    }

    @Test func newControllerGoesOnWithoutAGap() throws {
        var bench = Bench()
        _ = try bench.writer.begin()
        try bench.snapshot()
        for round in 1...60 {
            bench.change()
            if round % 4 == 0 { try bench.writer.flush() }
            // What was not flushed dies with the old controller.
            if round % 7 == 0 { try bench.replaceController() }
        }
        try bench.writer.flush()
        for revision in 0...60 {
            #expect(try bench.restored(revision) == bench.states[revision].records)
        }
        #expect(try BackupArchive(bench.store).catalog().snapshots.count == 1)
    }

    @Test func forgottenHistoryIsReplacedByASnapshot() throws {
        var bench = Bench()
        _ = try bench.writer.begin()
        try bench.snapshot()
        for _ in 1...10 { bench.change() }
        try bench.writer.flush()
        for _ in 11...20 { bench.change() }
        try bench.replaceController(historyFrom: 15)
        bench.change()
        try bench.writer.flush()
        #expect(try bench.restored(10) == bench.states[10].records)
        #expect(throws: DatabaseError.self) { try bench.restored(15) }
        for revision in 20...21 {
            #expect(try bench.restored(revision) == bench.states[revision].records)
        }
    }

    @Test func destinationThatIsDownLosesNothingUntilTheBound() throws {
        var settings = BackupSettings()
        settings.changesHeldMax = 10
        var bench = Bench(settings)
        _ = try bench.writer.begin()
        try bench.snapshot()
        bench.store.isDown.withLock { $0 = true }
        for _ in 1...10 {
            bench.change()
            #expect(throws: DatabaseError.self) { try bench.writer.flush() }
        }
        #expect(bench.writer.status.problem == "memory is down")
        bench.store.isDown.withLock { $0 = false }
        try bench.writer.flush()
        #expect(bench.writer.status.problem == nil)
        for revision in 0...10 {
            #expect(try bench.restored(revision) == bench.states[revision].records)
        }
        // Beyond the bound only a snapshot helps, and it is asked for.
        bench.store.isDown.withLock { $0 = true }
        for _ in 11...30 { bench.change() }
        bench.store.isDown.withLock { $0 = false }
        try bench.writer.flush()
        #expect(bench.writer.wantsSnapshot(now: bench.now))
        try bench.snapshot()
        bench.change()
        try bench.writer.flush()
        for revision in [10, 30, 31] {
            #expect(try bench.restored(revision) == bench.states[revision].records)
        }
    }

    @Test func lostAnswersDoNoHarm() throws {
        var bench = Bench()
        _ = try bench.writer.begin()
        try bench.snapshot()
        bench.store.losesAnswers.withLock { $0 = (every: 3, count: 0) }
        for _ in 1...50 {
            bench.change()
            try? bench.writer.flush()
        }
        bench.store.losesAnswers.withLock { $0 = (every: 0, count: 0) }
        try bench.writer.flush()
        for revision in 0...50 {
            #expect(try bench.restored(revision) == bench.states[revision].records)
        }
        #expect(try BackupArchive(bench.store).verify().findings.isEmpty)
    }

    @Test func snapshotsComeByTimeAndByLogsAndOldOnesGo() throws {
        var settings = BackupSettings()
        settings.snapshotEvery = 2_000
        settings.keep = 5_000
        settings.logsMax = 30
        var bench = Bench(settings)
        _ = try bench.writer.begin()
        for _ in 1...300 {
            bench.change()
            try bench.writer.flush()
            if bench.writer.wantsSnapshot(now: bench.now) { try bench.snapshot() }
            try bench.writer.prune(now: bench.now)
        }
        let objects = try BackupArchive(bench.store).catalog().objects
        #expect(objects.count < 100)
        for revision in 250...300 {
            #expect(try bench.restored(revision) == bench.states[revision].records)
        }
        #expect(try BackupArchive(bench.store).verify().findings.isEmpty)
    }

    /// At every moment, whatever stops the merging there, all revisions can be restored.
    @Test(arguments: [0, 2, 3, 7])
    func logsArePutTogetherAndNothingIsLost(_ stopsAfter: Int) throws {
        var bench = Bench()
        _ = try bench.writer.begin()
        try bench.snapshot()
        for round in 1...40 {
            bench.change()
            if round % 2 == 0 { try bench.writer.flush() }
            // Overlapping logs, as two controllers write them.
            if round == 12 || round == 30 {
                try BackupArchive(bench.store).store(
                    BackupObject(
                        name: BackupName(
                            logFrom: Revision(UInt64(round) - 5), to: Revision(UInt64(round) - 1),
                            at: bench.times[round - 1]), cluster: 7,
                        contents: .log(Array(bench.events[(round - 6)..<(round - 1)]))))
            }
            if round == 20 { try bench.snapshot() }
        }
        try bench.snapshot()
        for _ in 41...44 { bench.change() }
        try bench.writer.flush()
        func check(_ bench: Bench, _ when: String) throws {
            for revision in stride(from: 0, through: 44, by: 3) {
                #expect(
                    try bench.restored(revision) == bench.states[revision].records,
                    "revision \(revision), \(when)")
            }
            #expect(try BackupArchive(bench.store).verify().findings.isEmpty, "\(when)")
        }
        if stopsAfter > 0 {
            bench.store.losesAnswers.withLock { $0 = (every: stopsAfter, count: 0) }
        }
        for attempt in 0..<100 {
            _ = try? bench.writer.prune(now: bench.now)
            var steps = 0
            while bench.writer.isMerging {
                do {
                    try bench.writer.mergeStep()
                } catch {
                    break
                }
                steps += 1
                let lost = bench.store.losesAnswers.withLock { state in
                    defer { state.every = 0 }
                    return state
                }
                try check(bench, "step \(steps) of attempt \(attempt)")
                bench.store.losesAnswers.withLock { $0 = lost }
            }
            if stopsAfter == 0 { break }
        }
        // Three snapshots, one log between each two, and the newest log.
        #expect(try BackupArchive(bench.store).catalog().objects.count == 6)
    }

    @Test func damagedLogStaysAndTheOthersArePutTogether() throws {
        var bench = Bench()
        _ = try bench.writer.begin()
        try bench.snapshot()
        for _ in 1...20 {
            bench.change()
            try bench.writer.flush()
        }
        try bench.snapshot()
        let damaged = try BackupArchive(bench.store).catalog().logs[9]
        bench.store.objects.withLock { $0[damaged.text]?[70] ^= 1 }
        try bench.writer.prune(now: bench.now)
        while bench.writer.isMerging { try bench.writer.mergeStep() }
        let catalog = try BackupArchive(bench.store).catalog()
        #expect(catalog.logs.map(\.from.rawValue) == [1, 10, 11])
        #expect(catalog.logs.map(\.to.rawValue) == [9, 10, 20])
        let found = try BackupArchive(bench.store).verify()
        #expect(found.findings.contains { $0.name == damaged.text })
    }

    @Test func whatComesBehindASnapshotThatClosesAGapIsKept() throws {
        var bench = Bench()
        #expect(try bench.writer.begin() == nil)
        for _ in 1...3 { bench.change() }
        // Taken by the loop; more happens before it is stored.
        let (taken, at) = (bench.states[3], bench.now)
        for _ in 4...5 { bench.change() }
        try bench.writer.store(taken, at: at)
        #expect(bench.writer.status.revision == Revision(3))
        bench.change()
        try bench.writer.flush()
        #expect(bench.writer.status.revision == Revision(6))
        #expect(!bench.writer.isBehind)
        for revision in 3...6 {
            #expect(try bench.restored(revision) == bench.states[revision].records)
        }
        #expect(try BackupArchive(bench.store).verify().findings.isEmpty)
    }

    /// Events are lost while a snapshot is on its way: what it does not hold is not claimed.
    @Test func gapBehindASnapshotNeedsAnotherOne() throws {
        var bench = Bench()
        _ = try bench.writer.begin()
        try bench.snapshot()
        for _ in 1...3 { bench.change() }
        bench.writer.loseEvents(before: Revision(4))
        let (taken, at) = (bench.states[3], bench.now)
        for _ in 4...6 { bench.change() }
        bench.writer.loseEvents(before: Revision(7))
        bench.change()
        try bench.writer.store(taken, at: at)
        try bench.writer.flush()
        #expect(bench.writer.status.revision == Revision(3))
        #expect(bench.writer.isBehind && bench.writer.wantsSnapshot(now: bench.now))
        try bench.snapshot()
        bench.change()
        try bench.writer.flush()
        let archive = BackupArchive(bench.store)
        #expect(bench.writer.status.revision == Revision(8) && !bench.writer.isBehind)
        #expect(try bench.restored(8) == bench.states[8].records)
        let found = try archive.verify()
        #expect(found.findings.isEmpty)
        #expect(found.gaps == [Revision(1)...Revision(2), Revision(4)...Revision(6)])
        #expect(try archive.catalog().logs.map(\.from) == [Revision(8)])
    }

    @Test func eventThatIsMissingMakesAGap() throws {
        var bench = Bench()
        _ = try bench.writer.begin()
        try bench.snapshot()
        for _ in 1...5 { bench.change() }
        var other = BackupWriter(
            BackupArchive(bench.store), cluster: 7, settings: bench.settings)
        #expect(try other.begin() == Revision(1))
        for event in bench.events where event.revision != Revision(3) { other.append(event) }
        try other.flush()
        #expect(other.wantsSnapshot(now: bench.now))
        #expect(other.status.revision == .none)
        try other.store(bench.states[4], at: bench.now)
        try other.flush()
        #expect(try bench.restored(5) == bench.states[5].records)
        #expect(throws: DatabaseError.self) { try bench.restored(3) }
    }

    @Test func destinationThatLostItsObjectsGetsASnapshot() throws {
        var bench = Bench()
        _ = try bench.writer.begin()
        try bench.snapshot()
        for _ in 1...6 {
            bench.change()
            try bench.writer.flush()
        }
        #expect(try bench.writer.look())
        // A log in the midst, then everything.
        let third = try BackupArchive(bench.store).catalog().logs[2].text
        bench.store.objects.withLock { $0[third] = nil }
        bench.change()
        #expect(try !bench.writer.look())
        #expect(bench.writer.status.revision == Revision(2))
        #expect(bench.writer.isBehind && bench.writer.wantsSnapshot(now: bench.now))
        let (taken, at) = (bench.states[6], bench.now)
        try bench.writer.store(taken, at: at)
        try bench.writer.flush()
        #expect(try bench.writer.look())
        for revision in [0, 2, 6, 7] {
            #expect(try bench.restored(revision) == bench.states[revision].records)
        }
        bench.store.objects.withLock { $0.removeAll() }
        #expect(try !bench.writer.look())
        #expect(bench.writer.status.revision == .none && bench.writer.status.snapshotAt == 0)
        try bench.snapshot()
        #expect(try bench.writer.look())
        #expect(try bench.restored(7) == bench.states[7].records)
        #expect(try BackupArchive(bench.store).verify().findings.isEmpty)
    }

    @Test func nothingNewIsNotStoredAgainAndRetentionGoesOn() throws {
        var settings = BackupSettings()
        settings.snapshotEvery = 1_000
        settings.keep = 5_000
        var bench = Bench(settings)
        _ = try bench.writer.begin()
        for _ in 1...40 {
            bench.change()
            try bench.writer.flush()
            if bench.writer.wantsSnapshot(now: bench.now) { try bench.snapshot() }
        }
        try bench.snapshot()
        let before = try BackupArchive(bench.store).catalog().objects.count
        for _ in 1...100 {
            bench.now += 100
            #expect(!bench.writer.wantsSnapshot(now: bench.now))
            if bench.writer.wantsPruning(now: bench.now) { try bench.writer.prune(now: bench.now) }
            while bench.writer.isMerging { try bench.writer.mergeStep() }
        }
        let after = try BackupArchive(bench.store).catalog().objects
        #expect(before > 40 && after.map(\.kind) == [.snapshot])
        #expect(try bench.restored(40) == bench.states[40].records)
        bench.change()
        #expect(bench.writer.wantsSnapshot(now: bench.now))
    }

    @Test func damagedSnapshotIsReplacedByTheNextController() throws {
        var bench = Bench()
        bench.now = 1_700_000_000_000
        _ = try bench.writer.begin()
        try bench.snapshot()
        for _ in 1...5 { bench.change() }
        try bench.snapshot()
        let damaged = try BackupArchive(bench.store).catalog().snapshots[1]
        bench.store.objects.withLock { $0[damaged.text]?[70] ^= 1 }
        try bench.replaceController()
        bench.change()
        try bench.writer.flush()
        #expect(bench.writer.wantsSnapshot(now: bench.now))
        try bench.snapshot()
        for revision in 0...6 {
            #expect(try bench.restored(revision) == bench.states[revision].records)
        }
        bench.store.objects.withLock { $0[damaged.text]?[70] ^= 1 }
        bench.store.objects.withLock { $0 = $0.filter { $0.key == damaged.text } }
        var other = BackupWriter(BackupArchive(bench.store), cluster: 8, settings: bench.settings)
        #expect(throws: DatabaseError.self) { try other.begin() }
    }

    @Test func manyObjectsArePlannedInLinearTime() {
        // 100,000 logs and 1,000 snapshots: walked a few times each, not once per snapshot.
        var names: [String] = []
        for revision in 1...100_000 as ClosedRange<UInt64> {
            let to = Revision(revision)
            names.append(BackupName(logFrom: to, to: to, at: revision).text)
            if revision % 100 == 0 { names.append(BackupName(snapshotAt: to, at: revision).text) }
        }
        let catalog = BackupCatalog(listing: names)
        #expect(catalog.spans == [Revision(100)...Revision(100_000)])
        #expect(catalog.path(to: Revision(99_999))?.count == 100)
        #expect(catalog.mergeable(above: .none).count == 1_000)
    }

    @Test func anotherClustersBackupIsRefused() throws {
        var bench = Bench()
        _ = try bench.writer.begin()
        try bench.snapshot()
        var other = BackupWriter(BackupArchive(bench.store), cluster: 8, settings: bench.settings)
        let error = #expect(throws: DatabaseError.self) { try other.begin() }
        #expect(error?.message.contains("another cluster") == true)
    }
}
