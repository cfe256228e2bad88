// A scrub finds what recovery would refuse, while the log is being written.

import Foundation
import KVBase
import ReplicationCore
import TestKit
import Testing

@testable import ReplicatedLog

@Suite struct LogScrubTests {
    private func scrub(_ log: ReplicatedLog) throws(DatabaseError) -> (ends: Bool, bytes: Int) {
        var bytes = 0
        let ends = try log.scrub.run(willRead: { _ in true }, didRead: { bytes += $0 })
        return (ends, bytes)
    }

    /// A log of several segments, open, and everything in it durable.
    private func severalSegments(_ directory: TemporaryDirectory) throws -> LogHarness {
        let harness = try LogHarness(directory)
        harness.create(1)
        for index in 1...60 as ClosedRange<UInt64> {
            harness.append(1, index...index, bytes: 700)
            try harness.sync()
        }
        #expect(directory.segments.count > 2)
        return harness
    }

    @Test func aWholeLogIsReadAndFoundWhole() throws {
        let directory = TemporaryDirectory()
        let empty = try LogHarness(directory)
        #expect(try scrub(empty.log).ends)
        empty.log.close()
        let harness = try severalSegments(directory)
        let (ends, bytes) = try scrub(harness.log)
        #expect(ends)
        #expect(bytes >= Int(harness.log.statistics.bytes))
        // With a probe behind the last batch, and more batches over it.
        harness.log.probe()
        harness.append(1, 61...61)
        try harness.sync()
        #expect(try scrub(harness.log).ends)
        harness.log.close()
        let again = try LogHarness(directory)
        #expect(try scrub(again.log).ends)
        again.log.close()
    }

    @Test func itEndsWhenItIsToldTo() throws {
        let directory = TemporaryDirectory()
        let harness = try severalSegments(directory)
        var reads = 0
        let ends = try harness.log.scrub.run(
            willRead: { _ in
                reads += 1
                return reads < 3
            }, didRead: { _ in })
        #expect(!ends)
        #expect(reads == 3)
        harness.log.close()
    }

    /// In the first, a middle and the last segment: every byte of headers and bodies counts.
    @Test func everyFlippedByteIsFoundAndNamed() throws {
        let directory = TemporaryDirectory()
        let harness = try severalSegments(directory)
        let names = directory.segments
        for name in [names[0], names[1], names[names.count - 1]] {
            let path = directory.path + "/" + name
            let original = try Data(contentsOf: URL(filePath: path))
            let places =
                Array(0..<LogFormat.segmentHeaderBytes)
                + Array(LogFormat.alignment..<LogFormat.alignment + LogFormat.batchHeaderBytes)
                + Array(
                    stride(from: LogFormat.alignment + 100, to: LogFormat.alignment + 600, by: 37))
            for place in places {
                // In place: the file that is being written stays the same file.
                try overwrite(path, place, original[place] ^ 0x20)
                let error = #expect(throws: DatabaseError.self, "\(name): byte \(place)") {
                    _ = try scrub(harness.log)
                }
                #expect(error.map { LogScrub.isDamage($0) } == true, "\(String(describing: error))")
                #expect(error?.message.contains(path) == true, "\(String(describing: error))")
                try overwrite(path, place, original[place])
            }
        }
        #expect(try scrub(harness.log).ends)
        harness.log.close()
    }

    private func overwrite(_ path: String, _ place: Int, _ byte: UInt8) throws {
        let file = try FileHandle(forUpdating: URL(filePath: path))
        try file.seek(toOffset: UInt64(place))
        try file.write(contentsOf: Data([byte]))
        try file.close()
    }
}
