// What every engine does alike.

import Foundation
import KVBase
import StorageAPI
import Testing

@Suite struct ConformanceTests {
    @Test(arguments: EngineKind.allCases)
    func putGetOverwriteDelete(kind: EngineKind) throws {
        let fixture = try EngineFixture(kind)
        let engine = fixture.engine
        #expect(try engine.value(of: [1]) == nil)
        try fixture.put(([1], [10]), ([2], []))
        #expect(try engine.value(of: [1]) == [10])
        #expect(try engine.value(of: [2]) == [])
        try fixture.put(([1], [11, 12]))
        #expect(try engine.value(of: [1]) == [11, 12])
        try fixture.apply {
            $0.delete([1])
            $0.delete([9])
        }
        #expect(try engine.value(of: [1]) == nil)
        try engine.checkpoint()
        try fixture.apply { $0.delete([2]) }
        #expect(try engine.value(of: [2]) == nil)
        #expect(try engine.records() == [])
        try fixture.apply { $0.put(key: [3], header: [1, 2], value: [3]) }
        #expect(try engine.value(of: [3]) == [1, 2, 3])
    }

    @Test(arguments: EngineKind.allCases)
    func laterOperationsOfABatchWin(kind: EngineKind) throws {
        let fixture = try EngineFixture(kind)
        try fixture.put(([5], [1]), ([6], [1]))
        try fixture.engine.checkpoint()
        try fixture.apply {
            $0.put([5], [2])
            $0.delete([5])
            $0.delete([6])
            $0.put([6], [2])
            $0.put([7], [1])
            $0.deleteRange([7], [9])
            $0.put([8], [1])
        }
        let expected = [Record(key: [6], value: [2]), Record(key: [8], value: [1])]
        #expect(try fixture.engine.records() == expected)
        try fixture.engine.checkpoint()
        #expect(try fixture.engine.records() == expected)
    }

    @Test(arguments: EngineKind.allCases)
    func reclaimingChangesNothingThatIsThere(kind: EngineKind) throws {
        let fixture = try EngineFixture(kind)
        let engine = fixture.engine
        let value = Bytes(repeating: 7, count: 4_000)
        for number in 0..<200 as Range<UInt8> {
            try fixture.apply { batch in
                batch.put([1, number], value)
                batch.put([2, number], value)
            }
        }
        try engine.checkpoint()
        let before = engine.statistics.diskBytes
        try fixture.apply { $0.deleteRange([1], [2]) }
        let bounds: (Bytes, Bytes) = ([1], [2])
        try bounds.0.withRawBytes { (from) throws(DatabaseError) in
            try bounds.1.withRawBytes { (to) throws(DatabaseError) in
                try engine.reclaim(from: from, to: to)
            }
        }
        #expect(try engine.records().count == 200)
        #expect(try engine.records().allSatisfy { $0.key[0] == 2 })
        if kind == .lsm { #expect(engine.statistics.diskBytes < before * 3 / 4) }
    }

    @Test(arguments: EngineKind.allCases, [false, true])
    func rangesKeepTheirBounds(kind: EngineKind, checkpointed: Bool) throws {
        let fixture = try EngineFixture(kind)
        let engine = fixture.engine
        try fixture.apply { batch in
            for number in 0..<100 as Range<UInt8> { batch.put([7, number], [number]) }
        }
        if checkpointed { try engine.checkpoint() }
        #expect(
            try engine.records(from: [7, 10], to: [7, 20]).map { $0.value[0] } == Array(10..<20))
        #expect(try engine.records(from: [7, 98]).map { $0.value[0] } == [98, 99])
        #expect(try engine.records(from: [7, 10], limit: 3).count == 3)
        #expect(try engine.records(from: [7, 10], to: [7, 10]).isEmpty)
        #expect(try engine.records(from: [7, 20], to: [7, 10]).isEmpty)
        #expect(try engine.records(from: [8]).isEmpty)
        #expect(try engine.records(to: [7]).isEmpty)
        #expect(try engine.records(to: []).isEmpty)
        try fixture.apply { $0.deleteRange([7, 10], [7, 90]) }
        try fixture.apply { $0.put([7, 50], [50]) }
        let left = Array(0..<10) + [50] + Array(90..<100) as [UInt8]
        #expect(try engine.records().map { $0.value[0] } == left)
        #expect(try engine.value(of: [7, 10]) == nil)
        #expect(try engine.value(of: [7, 9]) == [9])
        #expect(try engine.value(of: [7, 90]) == [90])
        try engine.checkpoint()
        #expect(try engine.records().map { $0.value[0] } == left)
        try fixture.apply { $0.deleteRange([7, 60], [7, 50]) }
        #expect(try engine.records().map { $0.value[0] } == left)
    }

    @Test(arguments: EngineKind.allCases)
    func keysAreBytesInOrder(kind: EngineKind) throws {
        let fixture = try EngineFixture(kind)
        var keys: [Bytes] = [[0], [0, 0], [0, 255], [255], [255, 255], [127], [128]]
        // Around the longest key that LMDB takes: every length, and forks before, at and behind it.
        let stem = Bytes(repeating: 97, count: 510)
        for length in 505...510 { keys.append(Bytes(stem.prefix(length))) }
        for fork in [0, 97, 255] as [UInt8] {
            keys.append(stem + [fork])
            for tail in [[0], [97], [255], [97, 0], [0, 0, 0]] as [Bytes] {
                keys.append(stem + [fork] + tail)
            }
        }
        keys.append(Bytes(stem.prefix(509)) + [98])
        let shuffled = keys.enumerated().sorted {
            ($0.offset * 7919) % 31 < ($1.offset * 7919) % 31
        }
        for (place, key) in shuffled {
            try fixture.put((key, bytes("\(place)")))
            if place % 5 == 0 { try fixture.engine.checkpoint() }
        }
        let sorted = keys.enumerated()
            .sorted { compareBytes($0.element, $1.element) < 0 }
            .map { Record(key: $0.element, value: bytes("\($0.offset)")) }
        for round in 0..<2 {
            #expect(try fixture.engine.records() == sorted, "round \(round)")
            for (place, key) in keys.enumerated() {
                #expect(try fixture.engine.value(of: key) == bytes("\(place)"))
                #expect(try fixture.engine.value(of: key + [1, 2]) == nil)
            }
            for (place, record) in sorted.enumerated() {
                #expect(try fixture.engine.records(from: record.key) == Array(sorted[place...]))
                #expect(
                    try fixture.engine.records(to: record.key) == Array(sorted[..<place]))
            }
            try fixture.engine.checkpoint()
        }
    }

    @Test(arguments: EngineKind.allCases)
    func largestKeysAndValues(kind: EngineKind) throws {
        let fixture = try EngineFixture(kind)
        let size = Limits.keyBytesMax + 64
        let keys = (1...3 as ClosedRange<UInt8>).map { Bytes(repeating: 1, count: size - 1) + [$0] }
        for key in keys { try fixture.put((key, Bytes(repeating: key[size - 1], count: size))) }
        for _ in 0..<2 {
            for key in keys {
                let value = try #require(try fixture.engine.value(of: key))
                #expect(value == Bytes(repeating: key[size - 1], count: size))
            }
            #expect(try fixture.engine.records().map(\.key) == keys)
            #expect(try fixture.engine.records(from: keys[1], to: keys[2]).map(\.key) == [keys[1]])
            try fixture.engine.checkpoint()
        }
        try fixture.crash()
        #expect(try fixture.engine.records().map(\.key) == keys)
        try fixture.apply { $0.deleteRange(keys[1], keys[2]) }
        try fixture.engine.checkpoint()
        #expect(try fixture.engine.records().map(\.key) == [keys[0], keys[2]])
    }

    @Test(arguments: EngineKind.allCases)
    func largeRangesAreDeleted(kind: EngineKind) throws {
        let fixture = try EngineFixture(kind)
        // Long keys among short ones, over many pages.
        func key(_ number: UInt32) -> Bytes {
            let digits = withUnsafeBytes(of: number.bigEndian) { Bytes($0) }
            return number % 100 == 0 ? digits + Bytes(repeating: 1, count: 600) : digits
        }
        try fixture.apply { batch in
            for number in 0..<20_000 as Range<UInt32> {
                batch.put(key(number), Bytes(repeating: 1, count: Int(number % 50)))
            }
        }
        try fixture.engine.checkpoint()
        var left = Set(0..<20_000 as Range<UInt32>)
        var random = SeededRandom(seed: 9)
        for round in 0..<12 {
            let from = UInt32(random.below(20_000))
            let to = from + UInt32(random.below(4_000))
            try fixture.apply { $0.deleteRange(key(from), key(to)) }
            left.subtract(from..<to)
            if round % 2 == 0 { try fixture.engine.checkpoint() }
            #expect(
                try fixture.engine.records().map(\.key) == left.sorted().map(key),
                "\(kind) round \(round)")
        }
    }

    @Test(arguments: EngineKind.allCases)
    func snapshotsStandStill(kind: EngineKind) throws {
        let fixture = try EngineFixture(kind)
        try fixture.put(([1], [1]), ([2], [2]))
        try fixture.engine.checkpoint()
        try fixture.put(([3], [3]))
        let snapshot = try fixture.engine.snapshot()
        let before = try fixture.engine.records()
        try fixture.apply {
            $0.deleteRange([0], [3])
            $0.put([3], [33])
            $0.put([4], [4])
        }
        try fixture.engine.checkpoint()
        try fixture.put(([1], [111]))
        #expect(try snapshot.records() == before)
        #expect(try snapshot.value(of: [3]) == [3])
        #expect(try snapshot.value(of: [4]) == nil)
        #expect(try fixture.engine.value(of: [1]) == [111])
        // Readable by another thread.
        let done = DispatchSemaphore(value: 0)
        let seen = Collected()
        let other = Thread {
            seen.records = (try? snapshot.records()) ?? []
            done.signal()
        }
        other.start()
        done.wait()
        #expect(seen.records == before)
        snapshot.release()
        snapshot.release()
    }

    @Test(arguments: EngineKind.allCases)
    func readsInsideAScan(kind: EngineKind) throws {
        let fixture = try EngineFixture(kind)
        try fixture.apply { batch in
            for number in 0..<50 as Range<UInt8> { batch.put([number], [number]) }
        }
        try fixture.engine.checkpoint()
        var count = 0
        try fixture.engine.scan(from: [0], to: nil) { key, _ in
            let value = try? fixture.engine.get(key) { $0.map { Bytes($0) } }
            #expect(value == Bytes(key))
            count += 1
            return true
        }
        #expect(count == 50)
    }

    @Test(arguments: EngineKind.allCases)
    func sizesFollowTheData(kind: EngineKind) throws {
        let fixture = try EngineFixture(kind)
        let engine = fixture.engine
        var random = SeededRandom(seed: 1)
        for number in 0..<1_000 as Range<UInt16> {
            let value = (0..<1_000).map { _ in UInt8(truncatingIfNeeded: random.next()) }
            let key = withUnsafeBytes(of: number.bigEndian) { Bytes($0) }
            try fixture.put((key, value))
        }
        #expect(engine.statistics.unflushedBytes > 0)
        try engine.checkpoint()
        #expect(engine.statistics.liveBytes > 900_000)
        #expect(engine.statistics.unflushedBytes < 200_000)
        let half = engine.approximateBytes(from: [0], to: [2])
        let all = engine.approximateBytes(from: [0], to: nil)
        #expect((300_000...800_000).contains(half), "\(half)")
        #expect((900_000...2_000_000).contains(all), "\(all)")
        #expect(engine.approximateBytes(from: [9], to: nil) < 50_000)
    }
}

final class Collected: @unchecked Sendable {
    var records: [Record] = []
}

extension StorageEngine {
    func approximateBytes(from: Bytes, to: Bytes?) -> UInt64 {
        from.withUnsafeBytes { from in
            guard let to else { return approximateBytes(from: from, to: nil) }
            return to.withUnsafeBytes { approximateBytes(from: from, to: $0) }
        }
    }
}

extension EngineReader {
    func scan(
        from: Bytes, to: UnsafeRawBufferPointer?,
        _ body: (UnsafeRawBufferPointer, UnsafeRawBufferPointer) -> Bool
    ) throws(DatabaseError) {
        var failure: DatabaseError?
        from.withUnsafeBytes { from in
            do throws(DatabaseError) {
                try scan(from: from, to: to, body)
            } catch { failure = error }
        }
        if let failure { throw failure }
    }
}

extension EngineBatch {
    mutating func put(key: Bytes, header: Bytes, value: Bytes) {
        key.withUnsafeBytes { key in
            header.withUnsafeBytes { header in
                value.withUnsafeBytes { put(key: key, header: header, value: $0) }
            }
        }
    }
}
