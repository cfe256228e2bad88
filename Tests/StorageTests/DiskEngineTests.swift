// What is particular to one engine.

import Foundation
import KVBase
import StorageAPI
import TestKit
import Testing

@testable import BTreeEngine
@testable import LSMEngine

@Suite struct DiskEngineTests {
    @Test func damagedTableFileIsReported() throws {
        let directory = TemporaryDirectory()
        let path = directory.path + "/engine"
        let engine = try EngineKind.lsm.open(path)
        var batch = EngineBatch()
        for number in 0..<200 as Range<UInt8> {
            batch.put([number], Bytes(repeating: number, count: 1_000))
        }
        try engine.apply(batch)
        try engine.checkpoint()
        engine.close()
        let names = try FileManager.default.contentsOfDirectory(atPath: path)
        let table = path + "/" + (try #require(names.first { $0.hasSuffix(".sst") }))
        var content = try Data(contentsOf: URL(filePath: table))
        for place in stride(from: 10, to: content.count / 2, by: 64) { content[place] ^= 0xFF }
        try content.write(to: URL(filePath: table))
        let error = #expect(throws: DatabaseError.self) {
            let engine = try EngineKind.lsm.open(path, expectExisting: true)
            defer { engine.close() }
            _ = try engine.records()
        }
        #expect(error?.code == .storageFailed)
        #expect(error?.isCorruption == true, "\(String(describing: error))")
    }

    @Test func readsTellWhereTheirBlocksWere() throws {
        let directory = TemporaryDirectory()
        let engine = try EngineKind.lsm.open(directory.path + "/engine")
        defer { engine.close() }
        var batch = EngineBatch()
        batch.put([1], [2])
        try engine.apply(batch)
        try engine.checkpoint()
        LSMReadCounts.countOnThisThread()
        let before = LSMReadCounts.ofThisThread()
        #expect(try engine.value(of: [1]) == [2])
        let cold = LSMReadCounts.ofThisThread()
        #expect(cold.misses > before.misses)
        #expect(try engine.value(of: [1]) == [2])
        let warm = LSMReadCounts.ofThisThread()
        #expect(warm.misses == cold.misses)
        #expect(warm.hits > cold.hits)
    }

    @Test func stallTimeIsReadFromTheReport() throws {
        let report = """
            ** DB Stats **
            Uptime(secs): 5.0 total, 5.0 interval
            Cumulative stall: 01:02:3.250 H:M:S, 0.4 percent
            Interval stall: 00:00:0.000 H:M:S, 0.0 percent

            """
        #expect(LSMEngine.stallTime(in: report) == .milliseconds(3_723_250))
        #expect(LSMEngine.stallTime(in: "") == .zero)
        #expect(LSMEngine.stallTime(in: "Cumulative stall: soon") == .zero)
        let directory = TemporaryDirectory()
        let engine = try LSMEngine(path: directory.path + "/engine")
        defer { engine.close() }
        #expect(
            engine.report.contains("\nCumulative stall: "), "RocksDB's report has another form")
    }

    @Test func stallsAreToldByReason() {
        let report = """
            Stalls(count): 3 level0_slowdown, 3 level0_slowdown_with_compaction, 1 level0_numfiles, \
            1 level0_numfiles_with_compaction, 0 stop for pending_compaction_bytes, 2 slowdown for \
            pending_compaction_bytes, 5 memtable_compaction, 0 memtable_slowdown, interval 9 total count
            """
        let counts: [WriteStallReason: UInt64] = [
            .level0: 4, .memtables: 5, .pendingCompaction: 2,
        ]
        #expect(StallAccount.counts(in: "** Stats **\n\(report)\n") == counts)
        #expect(StallAccount.counts(in: "Stalls(count): many level0_slowdown").isEmpty)

        var account = StallAccount()
        account.note(total: .milliseconds(10)) { [:] }
        #expect(account.times[.other] == .milliseconds(10))
        account.note(total: .milliseconds(110)) { [.memtables: 1, .level0: 0] }
        #expect(account.times[.memtables] == .milliseconds(100))
        // One more of each: half of the time each.
        account.note(total: .milliseconds(210)) { [.memtables: 2, .level0: 1] }
        #expect(account.times[.memtables] == .milliseconds(150))
        #expect(account.times[.level0] == .milliseconds(50))
        // No new reason: those of before.
        account.note(total: .milliseconds(310)) { [.memtables: 2, .level0: 1] }
        account.note(total: .milliseconds(310)) {
            Issue.record("read although nothing was added")
            return [:]
        }
        #expect(account.times[.memtables] == .milliseconds(200))
        #expect(account.times[.level0] == .milliseconds(100))
        #expect(account.times[.other] == .milliseconds(10))
    }

    @Test func aStallHasTheReasonThatRocksDBGives() throws {
        let directory = TemporaryDirectory()
        var options = LSMOptions()
        options.writeBufferBytes = 64 << 10
        options.writeBuffers = 2
        options.writeBuffersFlushedTogether = 1
        let engine = try LSMEngine(path: directory.path + "/engine", options: options)
        defer { engine.close() }
        // Buffers fill faster than files are synced.
        let value = Bytes(repeating: 1, count: 32 << 10)
        for round in 0..<2_000 where engine.statistics.stallTimes == WriteStallTimes() {
            var batch = EngineBatch()
            batch.put(Bytes("\(round)".utf8), value)
            try engine.apply(batch)
        }
        #expect(engine.statistics.stallTimes[.memtables] > .zero)
        #expect(engine.statistics.stallTimes[.other] == .zero)
    }

    @Test func fullOverlayMakesACheckpoint() throws {
        let directory = TemporaryDirectory()
        var options = BTreeOptions()
        options.overlayBytesMax = 100_000
        let engine = try BTreeEngine(path: directory.path + "/engine", options: options)
        for number in 0..<200 as Range<UInt8> {
            var batch = EngineBatch()
            batch.put([number], Bytes(repeating: number, count: 2_000))
            try engine.apply(batch)
            #expect(engine.statistics.unflushedBytes < 110_000)
        }
        #expect(engine.statistics.liveBytes > 400_000)
        #expect(try engine.records().count == 200)
        engine.close()
    }

    @Test func fullMapIsATypedErrorAndReadsGoOn() throws {
        let directory = TemporaryDirectory()
        var options = BTreeOptions()
        options.mapBytes = 1 << 20
        let engine = try BTreeEngine(path: directory.path + "/engine", options: options)
        var batch = EngineBatch()
        for number in 0..<200 as Range<UInt8> {
            batch.put([number], Bytes(repeating: number, count: 10_000))
        }
        try engine.apply(batch)
        let first = #expect(throws: DatabaseError.self) { try engine.checkpoint() }
        #expect(first?.code == .storageFailed)
        #expect(first?.message.contains("MDB_MAP_FULL") == true)
        let second = #expect(throws: DatabaseError.self) { try engine.apply(batch) }
        #expect(first == second)
        #expect(try engine.value(of: [199]) == Bytes(repeating: 199, count: 10_000))
        engine.close()
    }

    @Test func pagesAreReusedWithoutSnapshots() throws {
        let directory = TemporaryDirectory()
        let engine = try BTreeEngine(path: directory.path + "/engine")
        var sizes: [UInt64] = []
        for round in 0..<30 as Range<UInt8> {
            var batch = EngineBatch()
            for number in 0..<100 as Range<UInt8> {
                batch.put([number], Bytes(repeating: round, count: 3_000))
            }
            try engine.apply(batch)
            try engine.checkpoint()
            #expect(try engine.value(of: [5])?.first == round)
            sizes.append(engine.statistics.diskBytes)
        }
        #expect(sizes[29] <= sizes[9], "\(sizes)")
        engine.close()
    }

    @Test func tooManySnapshotsAreOverload() throws {
        let directory = TemporaryDirectory()
        var options = BTreeOptions()
        options.snapshotsMax = 3
        let engine = try BTreeEngine(path: directory.path + "/engine", options: options)
        var snapshots: [any EngineSnapshot] = []
        let error = #expect(throws: DatabaseError.self) {
            for _ in 0..<10 { snapshots.append(try engine.snapshot()) }
        }
        #expect(error?.code == .overloaded)
        #expect(snapshots.count >= 3)
        snapshots[0].release()
        try engine.snapshot().release()
        for snapshot in snapshots { snapshot.release() }
        engine.close()
    }

    @Test func damagedBucketIsReported() {
        var bucket: Bytes = []
        let record: Bytes = [1, 2, 3]
        record.withUnsafeBytes { Bucket.append($0, $0, to: &bucket) }
        for length in 1..<bucket.count {
            bucket.prefix(length).withUnsafeBytes { bytes in
                var reader = Bucket.Reader(bytes)
                #expect(reader.next() == nil)
                #expect(reader.isDamaged, "length \(length)")
            }
        }
    }

    @Test func deletedRangesJoin() {
        var overlay = Overlay()
        var random = SeededRandom(seed: 3)
        var model = Set<UInt8>()
        for step in 0..<500 {
            let from = UInt8(random.below(200))
            let to = from + UInt8(random.below(6))
            var batch = EngineBatch()
            batch.deleteRange([from], [to])
            overlay.apply(batch)
            model.formUnion(from..<to)
            if step % 20 == 0 {
                for number in 0...255 as ClosedRange<UInt8> {
                    let key: Bytes = [number]
                    let isDeleted = key.withUnsafeBytes { overlay.deletedRange(around: $0) } != nil
                    #expect(isDeleted == model.contains(number), "step \(step), key \(number)")
                }
            }
        }
        for (left, right) in zip(overlay.deleted, overlay.deleted.dropFirst()) {
            #expect(compareBytes(left.end!, right.start) < 0)
        }
    }
}
