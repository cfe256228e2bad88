// Engines find in their files what nobody reads.

import Foundation
import KVBase
import StorageAPI
import Synchronization
import TestKit
import Testing

@testable import LSMEngine

/// Lets everything through, or so many reads.
private final class CountedPace: ScrubPace {
    private let state = Mutex((reads: 0, bytes: 0))
    private let readsMax: Int

    init(readsMax: Int = .max) { self.readsMax = readsMax }

    var reads: Int { state.withLock { $0.reads } }
    var bytes: Int { state.withLock { $0.bytes } }

    func willRead(_ bytes: Int) -> Bool {
        state.withLock { state in
            state.reads += 1
            return state.reads <= readsMax
        }
    }

    func didRead(_ bytes: Int) { state.withLock { $0.bytes += bytes } }
}

@Suite struct ScrubTests {
    private func filled(_ kind: EngineKind, _ path: String) throws -> any StorageEngine {
        let engine = try kind.open(path)
        for round in 0..<4 as Range<UInt8> {
            var batch = EngineBatch()
            var random = SeededRandom(seed: UInt64(round))
            for number in 0..<200 as Range<UInt8> {
                let value = (0..<500).map { _ in UInt8(truncatingIfNeeded: random.next()) }
                batch.put([round, number], value)
            }
            try engine.apply(batch)
            try engine.checkpoint()
        }
        return engine
    }

    @Test(arguments: [EngineKind.lsm, .btree]) func wholeFilesAreReadAndFoundWhole(
        _ kind: EngineKind
    ) throws {
        let directory = TemporaryDirectory()
        let engine = try filled(kind, directory.path + "/engine")
        defer { engine.close() }
        let pace = CountedPace()
        #expect(try engine.scrub(pace))
        #expect(pace.bytes >= 4 * 200 * 500, "\(pace.bytes) bytes")
        // An empty one has nothing that could be wrong.
        let empty = try kind.open(directory.path + "/empty")
        #expect(try empty.scrub(CountedPace()))
        empty.close()
    }

    @Test(arguments: [EngineKind.lsm, .btree]) func itEndsWhenItIsToldTo(_ kind: EngineKind) throws
    {
        let directory = TemporaryDirectory()
        let engine = try filled(kind, directory.path + "/engine")
        defer { engine.close() }
        let pace = CountedPace(readsMax: 1)
        #expect(try !engine.scrub(pace))
        #expect(pace.reads == 2)
    }

    @Test func flippedBytesOfTableFilesAreFoundAndNamed() throws {
        let directory = TemporaryDirectory()
        let path = directory.path + "/engine"
        let engine = try filled(.lsm, path)
        defer { engine.close() }
        // Everything is in the cache now, which must not hide what is on the disk.
        #expect(try engine.records().count == 800)
        let lsm = try #require(engine as? LSMEngine)
        let name = try #require(lsm.liveFiles().first)
        let table = path + name
        let content = try Data(contentsOf: URL(filePath: table))
        for place in stride(from: 0, to: content.count - 1, by: 997) {
            try overwrite(table, place, content[place] ^ 0x04)
            let error = #expect(throws: DatabaseError.self, "byte \(place)") {
                _ = try engine.scrub(CountedPace())
            }
            #expect(error?.isCorruption == true, "byte \(place): \(String(describing: error))")
            #expect(error?.message.contains(table) == true, "\(String(describing: error))")
            try overwrite(table, place, content[place])
        }
        #expect(try engine.scrub(CountedPace()))
    }

    /// Of a short record, of one in pages of its own, and of two long keys in one bucket: no changed byte is
    /// answered, whatever way it is read.
    @Test func flippedBytesOfRecordsInTheTreeAreFoundAndNamed() throws {
        let directory = TemporaryDirectory()
        let file = directory.path + "/engine/data.mdb"
        let engine = try EngineKind.btree.open(directory.path + "/engine")
        defer { engine.close() }
        let long = Bytes(repeating: 7, count: 600)
        let records: [(key: Bytes, value: Bytes)] = [
            (Bytes("short-key".utf8), Bytes("short-value".utf8)),
            (
                Bytes("large-key".utf8),
                Bytes("large-value".utf8) + Bytes(repeating: 1, count: 9_000)
            ),
            (long + Bytes("rest-a".utf8), Bytes("bucket-a".utf8)),
            (long + Bytes("rest-b".utf8), Bytes("bucket-b".utf8)),
        ]
        var batch = EngineBatch()
        for (key, value) in records { batch.put(key, value) }
        // Others, so that the tree has several pages.
        for number in 0..<200 as Range<UInt8> {
            batch.put([0, number], Bytes(repeating: 2, count: 99))
        }
        try engine.apply(batch)
        try engine.checkpoint()
        #expect(try engine.scrub(CountedPace()))

        let content = try Data(contentsOf: URL(filePath: file))
        let marks = ["short-key", "short-value", "large-key", "large-value", "rest-a", "bucket-b"]
        for mark in marks {
            let found = try #require(content.firstRange(of: Data(mark.utf8)), "\(mark)")
            // Stays ascending: only the checksum tells.
            let place = found.upperBound - 1
            try overwrite(file, place, content[place] ^ 0x40)
            func expectFound(_ how: String, _ body: () throws -> Void) {
                let error = #expect(throws: DatabaseError.self, "\(mark): \(how)") { try body() }
                #expect(error?.isCorruption == true, "\(mark): \(String(describing: error))")
                #expect(error?.message.contains(file) == true, "\(String(describing: error))")
            }
            expectFound("scrub") { _ = try engine.scrub(CountedPace()) }
            expectFound("scan") { _ = try engine.records() }
            // A changed key of LMDB is found by those that pass it; who asks for the old one misses it.
            if !mark.hasSuffix("-key") {
                let record = try #require(
                    records.first {
                        ($0.key + $0.value).firstRange(of: Bytes(mark.utf8)) != nil
                    })
                expectFound("get") { _ = try engine.value(of: record.key) }
            }
            try overwrite(file, place, content[place])
        }
        #expect(try engine.scrub(CountedPace()))
        #expect(try engine.records().count == 204)
    }

    @Test func aDamagedBucketIsNotWrittenOver() throws {
        let directory = TemporaryDirectory()
        let engine = try EngineKind.btree.open(directory.path + "/engine")
        defer { engine.close() }
        let long = Bytes(repeating: 7, count: 600)
        var batch = EngineBatch()
        batch.put(long + [1], Bytes("first".utf8))
        try engine.apply(batch)
        try engine.checkpoint()
        let file = directory.path + "/engine/data.mdb"
        let content = try Data(contentsOf: URL(filePath: file))
        let place = try #require(content.firstRange(of: Data("first".utf8))).lowerBound
        try overwrite(file, place, content[place] ^ 1)
        batch = EngineBatch()
        batch.put(long + [2], Bytes("second".utf8))
        try engine.apply(batch)
        let error = #expect(throws: DatabaseError.self) { try engine.checkpoint() }
        #expect(error?.isCorruption == true)
    }

    private func overwrite(_ path: String, _ place: Int, _ byte: UInt8) throws {
        let file = try FileHandle(forUpdating: URL(filePath: path))
        try file.seek(toOffset: UInt64(place))
        try file.write(contentsOf: Data([byte]))
        try file.close()
    }
}
