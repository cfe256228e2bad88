// A torn tail is cut off; damage anywhere else is refused by name.

import Foundation
import KVBase
import ReplicationCore
import TestKit
import Testing

@testable import ReplicatedLog

@Suite struct LogDamageTests {
    /// Three batches in one segment and where each begins.
    private func threeBatches() throws -> (TemporaryDirectory, path: String, offsets: [Int]) {
        let directory = TemporaryDirectory()
        let harness = try LogHarness(directory)
        harness.create(1)
        var offsets: [Int] = []
        var offset = LogFormat.alignment
        for batch in 1...3 {
            offsets.append(offset)
            let first = UInt64(batch * 2 - 1)
            harness.append(1, first...first + 1, bytes: 250)
            try harness.sync()
            offset = LogFormat.align(Int(harness.log.statistics.bytes) + LogFormat.alignment)
        }
        offsets.append(offset)
        harness.log.close()
        return (directory, directory.path + "/" + directory.segments[0], offsets)
    }

    private func expectTwoBatchesAndGoOn(
        _ directory: TemporaryDirectory, _ context: String
    ) throws {
        let harness = try LogHarness(directory)
        let expected = (1...4).map { entry(1, $0, bytes: 250) }
        #expect(harness.group(1)?.entries == expected, "\(context)")
        harness.append(1, term: 2, 5...5)
        try harness.sync()
        harness.log.close()
        let again = try LogHarness(directory)
        #expect(again.group(1)?.entries == expected + [entry(2, 5)], "\(context)")
        #expect(again.log.recovery.tornTail == nil, "\(context)")
        again.log.close()
    }

    @Test func everyPrefixOfTheLastBatchIsATornTail() throws {
        let (directory, _, offsets) = try threeBatches()
        let end = offsets[2] + LogFormat.batchHeaderBytes + 2 * (32 + 250)
        for cut in offsets[2]..<end {
            for fill in 0..<3 {
                // Every byte for plain truncation; the fills at a stride that meets every part.
                if fill > 0, cut % 7 != 0 { continue }
                let copy = directory.copy()
                let path = copy.path + "/" + copy.segments[0]
                var bytes = try Data(contentsOf: URL(filePath: path))
                let original = bytes.count
                bytes.removeSubrange(cut...)
                switch fill {
                case 1: bytes.append(Data(repeating: 0, count: original - cut))
                case 2:
                    var random = SeededRandom(seed: UInt64(cut))
                    bytes.append(
                        Data((cut..<original).map { _ in UInt8(truncatingIfNeeded: random.next()) })
                    )
                default: break
                }
                try bytes.write(to: URL(filePath: path))
                try expectTwoBatchesAndGoOn(copy, "cut at \(cut), fill \(fill)")
            }
        }
    }

    @Test func everyFlippedByteBeforeTheLastBatchIsDamage() throws {
        let (directory, path, offsets) = try threeBatches()
        let original = try Data(contentsOf: URL(filePath: path))
        for offset in offsets[0]..<offsets[1] {
            // Padding behind a body carries nothing.
            guard offset < offsets[0] + LogFormat.batchHeaderBytes + 16 + 2 * (32 + 250) else {
                continue
            }
            var bytes = original
            bytes[offset] ^= 0x10
            try bytes.write(to: URL(filePath: path))
            let error = #expect(throws: DatabaseError.self, "offset \(offset)") {
                try LogHarness(directory)
            }
            #expect(error?.code == .storageFailed)
            #expect(error?.message.contains(path) == true, "\(String(describing: error))")
            #expect(error?.message.contains("offset \(offsets[0])") == true)
            #expect(error?.message.contains("peers") == true)
        }
        try original.write(to: URL(filePath: path))
        #expect(try LogHarness(directory).group(1)?.entries.count == 6)
    }

    @Test func everyFlippedByteOfASegmentHeaderIsRefused() throws {
        let (directory, path, _) = try threeBatches()
        let original = try Data(contentsOf: URL(filePath: path))
        for offset in 0..<LogFormat.segmentHeaderBytes {
            var bytes = original
            bytes[offset] ^= 1
            try bytes.write(to: URL(filePath: path))
            #expect(throws: DatabaseError.self, "offset \(offset)") { try LogHarness(directory) }
        }
    }

    /// Entries in several segments.
    private func severalSegments() throws -> TemporaryDirectory {
        let directory = TemporaryDirectory()
        let harness = try LogHarness(directory)
        harness.create(1)
        for index in 1...40 {
            harness.append(1, UInt64(index)...UInt64(index), bytes: 2_000)
            try harness.sync()
        }
        harness.log.close()
        try #require(directory.segments.count >= 4)
        return directory
    }

    @Test func missingSegmentIsNamed() throws {
        let directory = try severalSegments()
        let missing = directory.segments[1]
        try FileManager.default.removeItem(atPath: directory.path + "/" + missing)
        let error = #expect(throws: DatabaseError.self) { try LogHarness(directory) }
        #expect(error?.message.contains("\(missing) is missing") == true)
    }

    @Test func missingOldestSegmentLeavesAGapThatIsNamed() throws {
        let directory = try severalSegments()
        try FileManager.default.removeItem(atPath: directory.path + "/" + directory.segments[0])
        let error = #expect(throws: DatabaseError.self) { try LogHarness(directory) }
        #expect(error?.message.contains("group 1 lacks its entry 1") == true)
    }

    @Test func damagedLastBatchOfAnEarlierSegmentIsDamage() throws {
        let directory = try severalSegments()
        let path = directory.path + "/" + directory.segments[1]
        var bytes = try Data(contentsOf: URL(filePath: path))
        let last = try #require(bytes.lastIndex { $0 != 0 })
        bytes[last] ^= 1
        try bytes.write(to: URL(filePath: path))
        let error = #expect(throws: DatabaseError.self) { try LogHarness(directory) }
        #expect(error?.message.contains(path) == true, "\(String(describing: error))")
        #expect(error?.message.contains("is damaged or missing") == true)
    }

    @Test func segmentOfAnotherLogIsRefused() throws {
        let directory = try severalSegments()
        let other = try severalSegments()
        let name = directory.segments[1]
        let target = directory.path + "/" + name
        try FileManager.default.removeItem(atPath: target)
        try FileManager.default.copyItem(atPath: other.path + "/" + name, toPath: target)
        let error = #expect(throws: DatabaseError.self) { try LogHarness(directory) }
        #expect(error?.message.contains("\(name) belongs to another log") == true)
    }

    @Test func segmentUnderAnotherNameIsRefused() throws {
        let directory = try severalSegments()
        let names = directory.segments
        let target = directory.path + "/" + names[2]
        try FileManager.default.removeItem(atPath: target)
        try FileManager.default.copyItem(
            atPath: directory.path + "/" + names[1], toPath: target)
        let error = #expect(throws: DatabaseError.self) { try LogHarness(directory) }
        #expect(error?.message.contains("holds segment 2") == true)
    }

    @Test func unfinishedSegmentsAreDropped() throws {
        let directory = try severalSegments()
        let count = directory.segments.count
        // A kill before the rename, and one between the rename and the first batch.
        let first = directory.path + "/" + directory.segments[0]
        let next = LogFormat.segmentName(UInt64(count) + 1)
        try Data([1, 2, 3]).write(to: URL(filePath: directory.path + "/" + next + ".tmp"))
        let harness = try LogHarness(directory)
        let recovered = try #require(harness.group(1))
        #expect(recovered.entries.count == 40)
        harness.log.close()
        #expect(!FileManager.default.fileExists(atPath: directory.path + "/" + next + ".tmp"))

        let content = try Data(contentsOf: URL(filePath: first))
        let logID = try content.withUnsafeBytes { try SegmentHeader($0, path: first).logID }
        let header = SegmentHeader(
            logID: logID, segment: UInt64(count) + 1,
            firstBatch: harness.log.recovery.batches + 1)
        try Data(header.encoded() + Bytes(repeating: 0, count: 4_096))
            .write(to: URL(filePath: directory.path + "/" + next))
        let second = try LogHarness(directory)
        #expect(second.group(1)?.entries.count == 40)
        #expect(!directory.segments.contains(next))
        second.append(1, 41...60, bytes: 2_000)
        try second.sync()
        second.append(1, 61...61, bytes: 2_000)
        try second.sync()
        second.log.close()
        #expect(try LogHarness(directory).group(1)?.entries.count == 61)
    }

    @Test func killBetweenRemovalsOfSegmentsIsHarmless() throws {
        let directory = try severalSegments()
        let before = directory.copy()
        let harness = try LogHarness(directory)
        harness.log.release(group: GroupID(1), upTo: position(1, 40))
        for index in 41...60 {
            harness.append(1, UInt64(index)...UInt64(index), bytes: 2_000)
            try harness.sync()
        }
        harness.log.close()
        let kept = directory.segments
        let removed = before.segments.filter { !kept.contains($0) }
        try #require(removed.count >= 3)
        // Each state on the way: the newest `back` of the removed segments are still there.
        for back in 0...removed.count {
            let copy = directory.copy()
            for name in removed.suffix(back) {
                try FileManager.default.copyItem(
                    atPath: before.path + "/" + name, toPath: copy.path + "/" + name)
            }
            let group = try #require(try LogHarness(copy).group(1), "\(back) kept")
            #expect(group.compacted == position(1, 40), "\(back) kept")
            #expect(group.entries == (41...60).map { entry(1, $0, bytes: 2_000) })
        }
    }
}
