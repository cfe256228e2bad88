import Foundation
import KVBase
import ObjectStore
import TestKit
import Testing

@testable import MetadataBackup

/// A store of keys with its whole history, to compare restored states with.
private struct Model {
    var states: [BackupState]
    var events: [BackupEvent] = []
    private var random: SeededRandom

    init(seed: UInt64) {
        random = SeededRandom(seed: seed)
        states = [BackupState(cluster: 7, revision: .none, at: 1_000, records: [])]
    }

    mutating func step() {
        var state = states[states.count - 1]
        state.revision = state.revision.next()
        state.at += UInt64(random.below(3_000))
        var changes: [MetadataChange] = []
        for _ in 0..<(1 + random.below(3)) {
            let key = Bytes("key/\(random.below(30))".utf8)
            guard !changes.contains(where: { $0.key == key }) else { continue }
            let old = state.records.first { $0.key == key }
            state.records.removeAll { $0.key == key }
            if random.below(4) == 0 {
                changes.append(.delete(key: key))
            } else {
                let value = Bytes("\(random.next())".utf8)
                changes.append(.put(key: key, value: value, lease: .none))
                state.records.append(
                    MetadataRecord(
                        key: key, value: value,
                        createRevision: old?.createRevision ?? state.revision,
                        modRevision: state.revision, lease: .none))
            }
        }
        state.records.sort { compareBytes($0.key, $1.key) < 0 }
        events.append(BackupEvent(revision: state.revision, at: state.at, changes: changes))
        states.append(state)
    }

    func snapshot(at index: Int) -> BackupObject {
        let state = states[index]
        return BackupObject(
            name: BackupName(snapshotAt: state.revision, at: state.at), cluster: 7,
            contents: .snapshot(state.records))
    }

    func log(_ range: ClosedRange<Int>) -> BackupObject {
        let events = Array(events[(range.lowerBound - 1)...(range.upperBound - 1)])
        return BackupObject(
            name: BackupName(
                logFrom: events[0].revision, to: events[events.count - 1].revision,
                at: events[events.count - 1].at),
            cluster: 7, contents: .log(events))
    }
}

@Suite struct BackupArchiveTests {
    private let directory = TemporaryDirectory()

    private func archive() throws -> BackupArchive {
        BackupArchive(DirectoryStore(path: directory.path))
    }

    /// Snapshots at 10 and 60, logs in pieces of up to 9 revisions to 100.
    private func fill(_ archive: BackupArchive, seed: UInt64) throws -> Model {
        var model = Model(seed: seed)
        for _ in 0..<100 { model.step() }
        try archive.store(model.snapshot(at: 10))
        try archive.store(model.snapshot(at: 60))
        var random = SeededRandom(seed: seed)
        var from = 11
        while from <= 100 {
            let to = min(100, from + Int(random.below(9)))
            try archive.store(model.log(from...to))
            from = to + 1
        }
        return model
    }

    @Test(arguments: [1, 2, 3] as [UInt64])
    func everyRevisionComesBack(seed: UInt64) throws {
        let archive = try archive()
        let model = try fill(archive, seed: seed)
        #expect(try archive.catalog().spans == [Revision(10)...Revision(100)])
        for index in 10...100 {
            #expect(try archive.state(at: Revision(UInt64(index))) == model.states[index])
        }
        let error = #expect(throws: DatabaseError.self) { try archive.state(at: Revision(9)) }
        #expect(error?.message.contains("it leads to 10 to 100") == true)
    }

    @Test(arguments: [4, 5] as [UInt64])
    func everyTimeComesBack(seed: UInt64) throws {
        let archive = try archive()
        let model = try fill(archive, seed: seed)
        for index in 10...100 {
            let expected = model.states.last { $0.at <= model.states[index].at }
            #expect(try archive.state(asOf: model.states[index].at) == expected)
        }
        #expect(throws: DatabaseError.self) {
            try archive.state(asOf: model.states[10].at - 1)
        }
    }

    @Test func damageAndGapsAreNamed() throws {
        let archive = try archive()
        _ = try fill(archive, seed: 6)
        #expect(try archive.verify().findings.isEmpty)
        let logs = try archive.catalog().logs
        let damaged = logs[2].text
        var bytes = try archive.destination.get(damaged)
        bytes[bytes.count / 2] ^= 4
        try archive.destination.put(damaged, bytes)
        try archive.destination.put("notes.txt", [1])
        let result = try archive.verify()
        #expect(result.findings.contains { $0.name == damaged })
        #expect(result.findings.contains { $0.name == "notes.txt" })
        // What follows the damage up to the next snapshot leads nowhere; the snapshot does.
        #expect(result.spans.map(\.upperBound).last == Revision(100))
        #expect(result.spans.first == Revision(10)...Revision(logs[1].to.rawValue))
        try archive.destination.delete(logs[0].text)
        #expect(throws: DatabaseError.self) { try archive.state(at: logs[1].to) }
    }

    @Test func storingTellsHowFarItIs() throws {
        let records = (0..<10_000).map { number in
            var random = SeededRandom(seed: UInt64(number))
            return MetadataRecord(
                key: Bytes("k\(100_000 + number)".utf8),
                value: Bytes((0..<256).map { _ in UInt8(truncatingIfNeeded: random.next()) }),
                createRevision: Revision(1), modRevision: Revision(1), lease: .none)
        }
        var told: [BackupProgress] = []
        let size = try archive().store(
            BackupObject(
                name: BackupName(snapshotAt: Revision(1), at: 1_000), cluster: 7,
                contents: .snapshot(records))
        ) { told.append($0) }
        #expect(size > 2 << 20, "more than one piece")
        let encoded = told.prefix { if case .encoding = $0 { true } else { false } }
        #expect(encoded.first == .encoding(records: 0, of: 10_000) && encoded.count > 1)
        let pieces = [1 << 20, 2 << 20, size]
        #expect(
            Array(told[encoded.count...])
                == [.storing(bytes: 0, of: size)] + pieces.map { .storing(bytes: $0, of: size) }
                + [.readingBack(bytes: 0, of: size)]
                + pieces.map { .readingBack(bytes: $0, of: size) })
    }

    @Test func aVerificationThatNobodyWantsReadsNoMore() throws {
        let archive = try archive()
        _ = try fill(archive, seed: 3)
        var read = 0
        let error = #expect(throws: DatabaseError.self) {
            try archive.verify { (done, _) throws(DatabaseError) in
                read = done
                if done == 2 { throw DatabaseError(.notLeader, "nobody") }
            }
        }
        #expect(error?.code == .notLeader && read == 2)
    }

    @Test func aStateTellsHowManyObjectsLeadToIt() throws {
        let archive = try archive()
        _ = try fill(archive, seed: 4)
        var told: [Int] = []
        _ = try archive.state(at: Revision(100)) { done, total in
            told.append(done)
            #expect(done < total)
        }
        #expect(told == Array(0..<told.count) && told.count > 2)
    }

    /// What verify says can be restored is what can be restored, whatever is damaged.
    @Test(arguments: 20...27 as ClosedRange<UInt64>)
    func verifyAndRestoreAgree(seed: UInt64) throws {
        let archive = try archive()
        let model = try fill(archive, seed: seed)
        var random = SeededRandom(seed: seed)
        var spoilt = Set<String>()
        for snapshot in try archive.catalog().snapshots where random.below(2) == 0 {
            spoilt.insert(snapshot.text)
        }
        let logs = try archive.catalog().logs
        for _ in 0..<random.below(3) {
            spoilt.insert(logs[Int(random.below(UInt64(logs.count)))].text)
        }
        for name in spoilt {
            var bytes = try archive.destination.get(name)
            bytes[Int(random.below(UInt64(bytes.count)))] ^= 8
            try archive.destination.put(name, bytes)
        }
        let result = try archive.verify()
        #expect(spoilt.isSubset(of: result.findings.map(\.name)))
        for index in 10...100 {
            let revision = Revision(UInt64(index))
            guard result.spans.contains(where: { $0.contains(revision) }) else {
                #expect(throws: DatabaseError.self) { try archive.state(at: revision) }
                continue
            }
            var state = try archive.state(at: revision)
            #expect(state.findings.allSatisfy { spoilt.contains($0.name) })
            state.findings = []
            #expect(state == model.states[index])
            // Of a time: the same state, or none.
            let expected = model.states.last { $0.at <= model.states[index].at }
            if var atTime = try? archive.state(asOf: model.states[index].at) {
                atTime.findings = []
                #expect(atTime == expected)
            }
        }
    }

    @Test func damagedSnapshotIsPassedOver() throws {
        let archive = try archive()
        let model = try fill(archive, seed: 10)
        let damaged = try #require(try archive.catalog().snapshots.last).text
        var bytes = try archive.destination.get(damaged)
        bytes[70] ^= 1
        try archive.destination.put(damaged, bytes)
        let newest = try archive.state(at: .newest)
        #expect(newest.records == model.states[100].records)
        #expect(newest.findings.map(\.name) == [damaged])
        #expect(newest.findings.first?.problem.hasPrefix("is damaged: ") == true)
        #expect(try archive.state(asOf: model.states[100].at).records == model.states[100].records)
        // Not when no logs lead over its revision: then it says what is damaged, and what is left.
        let log = try #require(try archive.catalog().logs.first { $0.to > Revision(50) })
        try archive.destination.delete(log.text)
        let error = #expect(throws: DatabaseError.self) { try archive.state(at: .newest) }
        #expect(error?.message.contains("\(damaged) is damaged") == true)
        #expect(error?.message.contains("it leads to 10 to") == true)
        #expect(throws: DatabaseError.self) { try archive.state(asOf: model.states[100].at) }
    }

    @Test func missingObjectsAreNamed() throws {
        let archive = try archive()
        var model = Model(seed: 11)
        for _ in 0..<60 { model.step() }
        for index in [10, 30, 50] { try archive.store(model.snapshot(at: index)) }
        for range in [11...20, 21...30, 31...50, 51...60] { try archive.store(model.log(range)) }
        #expect(try archive.verify().findings.isEmpty)
        func findings(without range: ClosedRange<Int>) throws -> [BackupFinding] {
            try archive.destination.delete(model.log(range).name.text)
            defer { _ = try? archive.store(model.log(range)) }
            return try archive.verify().findings
        }
        // One between two snapshots, the last one before a snapshot, and the only one.
        #expect(try findings(without: 11...20).map(\.name) == ["revisions 11 to 29"])
        #expect(try findings(without: 21...30).map(\.name) == ["revisions 21 to 29"])
        #expect(try findings(without: 31...50).map(\.name) == ["revisions 31 to 49"])
        // A snapshot that logs lead over is not missed, the first one is.
        try archive.destination.delete(model.snapshot(at: 30).name.text)
        #expect(try archive.verify().findings.isEmpty)
        try archive.destination.delete(model.snapshot(at: 10).name.text)
        #expect(try archive.verify().findings.map(\.name) == ["revisions 11 to 49"])
        try archive.destination.delete(model.snapshot(at: 50).name.text)
        #expect(try archive.verify().findings.map(\.name) == ["revisions 11 to 60"])
        #expect(try archive.verify().spans.isEmpty)
    }

    @Test func surplusLeavesEveryKeptRevision() throws {
        let archive = try archive()
        let model = try fill(archive, seed: 8)
        for name in try archive.catalog().surplus(keepingSince: model.states[59].at) {
            try archive.destination.delete(name.text)
        }
        #expect(try archive.state(at: Revision(30)) == model.states[30])
        for name in try archive.catalog().surplus(keepingSince: model.states[75].at) {
            try archive.destination.delete(name.text)
        }
        #expect(throws: DatabaseError.self) { try archive.state(at: Revision(59)) }
        for index in 60...100 {
            #expect(try archive.state(at: Revision(UInt64(index))) == model.states[index])
        }
        #expect(try archive.verify().findings.isEmpty)
    }

    @Test func overlappingLogsAreRead() throws {
        let archive = try archive()
        var model = Model(seed: 9)
        for _ in 0..<30 { model.step() }
        try archive.store(model.snapshot(at: 1))
        try archive.store(model.log(2...12))
        try archive.store(model.log(8...20))
        try archive.store(model.log(21...30))
        for index in 1...30 {
            #expect(try archive.state(at: Revision(UInt64(index))) == model.states[index])
        }
    }
}
