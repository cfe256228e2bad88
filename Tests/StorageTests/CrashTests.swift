// After a crash: whole batches, a prefix of them, and all that a checkpoint completed.

import Foundation
import KVBase
import StorageAPI
import TestKit
import Testing

@testable import BTreeEngine

/// Batch `n` sets the applied index to `n` and touches several records, so that a half batch or a
/// missing one shows.
enum NumberedBatches {
    static let records = 40
    static let appliedKey: Bytes = [0]

    static func batch(_ number: UInt64) -> EngineBatch {
        var batch = EngineBatch()
        batch.put(appliedKey, encode(number))
        var random = SeededRandom(seed: number)
        for _ in 0..<6 {
            let key = key(random.below(UInt64(records)))
            switch random.below(8) {
            case 0: batch.delete(key)
            case 1: batch.deleteRange(key, Self.key(random.below(UInt64(records))))
            default:
                batch.put(
                    key,
                    Bytes(repeating: UInt8(truncatingIfNeeded: number), count: Int(number % 3_000)))
            }
        }
        return batch
    }

    /// A third of the keys are long ones.
    static func key(_ number: UInt64) -> Bytes {
        let short = [1, UInt8(number)]
        return number % 3 == 0
            ? [1] + Bytes(repeating: 9, count: 512) + [UInt8(number)] : short.map { UInt8($0) }
    }

    static func encode(_ number: UInt64) -> Bytes {
        withUnsafeBytes(of: number.bigEndian) { Bytes($0) }
    }

    static func applied(_ engine: any EngineReader) throws -> UInt64 {
        guard let value = try engine.value(of: appliedKey) else { return 0 }
        return value.reduce(0) { $0 << 8 | UInt64($1) }
    }

    /// The engine holds exactly batches 1 to its applied index.
    static func check(_ engine: any EngineReader, _ context: String) throws -> UInt64 {
        let applied = try applied(engine)
        let model = MemoryEngine()
        if applied > 0 {
            for number in 1...applied { try model.apply(batch(number)) }
        }
        try #require(try engine.records() == model.records(), "\(context), applied \(applied)")
        return applied
    }
}

@Suite struct CrashTests {
    @Test(arguments: EngineKind.allCases)
    func crashGoesBackToAPrefix(kind: EngineKind) throws {
        let fixture = try EngineFixture(kind)
        var random = SeededRandom(seed: 5)
        var next: UInt64 = 1
        for round in 0..<8 {
            var checkpointed = next - 1
            for _ in 0..<random.below(200) {
                try fixture.engine.apply(NumberedBatches.batch(next))
                if random.chance(1, in: 50) {
                    try fixture.engine.checkpoint()
                    checkpointed = next
                }
                next += 1
            }
            try fixture.crash()
            let applied = try NumberedBatches.check(fixture.engine, "\(kind) round \(round)")
            #expect(applied >= checkpointed)
            #expect(applied < next)
            next = applied + 1
        }
    }

    @Test(arguments: EngineKind.allCases)
    func checkpointsBesideWrites(kind: EngineKind) throws {
        let fixture = try EngineFixture(kind)
        let engine = fixture.engine
        let stop = Flag()
        let done = DispatchSemaphore(value: 0)
        let thread = Thread {
            while !stop.isSet {
                do { try engine.checkpoint() } catch { stop.failure = "\(error)" }
            }
            done.signal()
        }
        thread.start()
        var model: [Bytes: Bytes] = [:]
        for number in 1...3_000 as ClosedRange<UInt64> {
            try engine.apply(NumberedBatches.batch(number))
            if number % 100 == 0 {
                _ = try NumberedBatches.check(engine, "\(kind), batch \(number)")
            }
            #expect(try NumberedBatches.applied(engine) == number)
        }
        model[[0]] = nil
        stop.set()
        done.wait()
        #expect(stop.failure == nil)
        try engine.checkpoint()
        try fixture.crash()
        #expect(try NumberedBatches.check(fixture.engine, "\(kind), after") == 3_000)
    }

    @Test(arguments: [EngineKind.lsm, .btree])
    func missingFilesAreNotAnEmptyEngine(kind: EngineKind) throws {
        let directory = TemporaryDirectory()
        let error = #expect(throws: DatabaseError.self) {
            try kind.open(directory.path + "/engine", expectExisting: true)
        }
        #expect(error?.code == .storageFailed)
        try kind.open(directory.path + "/engine").close()
        try kind.open(directory.path + "/engine", expectExisting: true).close()
    }

    static let childVariable = "RANGEKEEPER_TEST_ENGINE_CHILD"

    /// The child: applies batches while another thread makes checkpoints, and reports each
    /// checkpoint's batch, until it is killed.
    @Test(.enabled(if: ProcessInfo.processInfo.environment[childVariable] != nil))
    func childApplies() throws {
        let setting = ProcessInfo.processInfo.environment[Self.childVariable]!
        let kind = try #require(EngineKind(rawValue: String(setting.prefix { $0 != ":" })))
        let path = String(setting.drop { $0 != ":" }.dropFirst())
        let engine = try kind.open(path)
        var next = try NumberedBatches.applied(engine) + 1
        let reached = Reached()
        let thread = Thread {
            while true {
                let before = reached.value
                guard (try? engine.checkpoint()) != nil else { return }
                WritingChild.report(durable: before)
            }
        }
        thread.start()
        while true {
            try engine.apply(NumberedBatches.batch(next))
            reached.value = next
            next += 1
        }
    }

    @Test(
        .enabled(if: ProcessInfo.processInfo.environment[childVariable] == nil),
        arguments: [EngineKind.lsm, .btree])
    func killedEngineComesBackWithAPrefix(kind: EngineKind) throws {
        let directory = TemporaryDirectory()
        let path = directory.path + "/engine"
        var random = SeededRandom(seed: 17)
        var durable: UInt64 = 0
        let child = WritingChild(
            test: "CrashTests/childApplies",
            environment: [Self.childVariable: "\(kind.rawValue):\(path)"])
        for round in 1...6 {
            durable = try child.runAndKill(atDurable: durable + 1 + random.below(400))
            let engine = try kind.open(path, expectExisting: true)
            let applied = try NumberedBatches.check(engine, "\(kind), round \(round)")
            #expect(applied >= durable, "\(kind), round \(round)")
            durable = applied
            engine.close()
        }
    }
}

private final class Flag: @unchecked Sendable {
    private let lock = NSLock()
    private var value = false
    var failure: String?
    var isSet: Bool { lock.withLock { value } }
    func set() { lock.withLock { value = true } }
}

private final class Reached: @unchecked Sendable {
    private let lock = NSLock()
    private var stored: UInt64 = 0
    var value: UInt64 {
        get { lock.withLock { stored } }
        set { lock.withLock { stored = newValue } }
    }
}
