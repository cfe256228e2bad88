// Engines find in their files what nobody reads.

import Foundation
import KVBase
import StorageAPI
import Synchronization
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

    private func overwrite(_ path: String, _ place: Int, _ byte: UInt8) throws {
        let file = try FileHandle(forUpdating: URL(filePath: path))
        try file.seek(toOffset: UInt64(place))
        try file.write(contentsOf: Data([byte]))
        try file.close()
    }
}
