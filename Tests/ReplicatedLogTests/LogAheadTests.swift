// Zeros go ahead of small batches, within the reserved space, once for many batches.

import Foundation
import KVBase
import ReplicationCore
import Synchronization
import TestKit
import Testing

@testable import ReplicatedLog

@Suite struct LogAheadTests {
    /// The writes of a log, as ranges of its file.
    private final class Writes: Sendable {
        private let ranges = Mutex<[Range<Int>]>([])
        var all: [Range<Int>] { ranges.withLock { $0 } }

        func options(segmentBytes: Int) -> LogOptions {
            var options = LogOptions()
            options.segmentBytes = segmentBytes
            let system = options.operations.write
            options.operations.write = { [self] file, parts, count, offset in
                let written = system(file, parts, count, offset)
                ranges.withLock { $0.append(Int(offset)..<Int(offset) + written) }
                return written
            }
            return options
        }

        func forget() { ranges.withLock { $0 = [] } }
    }

    @Test func oneWriteGoesAheadForManyBatches() throws {
        let directory = TemporaryDirectory()
        let writes = Writes()
        let first = try LogHarness(directory, writes.options(segmentBytes: 1 << 20))
        writes.forget()
        first.create(1)
        try first.sync()
        for index in UInt64(1)...200 {
            first.append(1, index...index, bytes: 900)
            try first.sync()
        }
        let ahead = writes.all.filter { $0.count >= BatchAppender.aheadBytes }
        #expect(writes.all.count == 201)
        #expect(ahead.count == 1, "\(ahead)")
        #expect(first.log.statistics.bytes < UInt64(BatchAppender.aheadBytes))
        first.log.close()

        // What the zeros were written over must come back, and the next batches with it.
        let second = try LogHarness(directory, writes.options(segmentBytes: 1 << 20))
        #expect(second.log.recovery.tornTail == nil)
        #expect(second.group(1)?.entries == (1...200).map { entry(1, $0, bytes: 900) })
        second.append(1, 201...201, bytes: 900)
        try second.sync()
        second.log.close()
        let third = try LogHarness(directory)
        #expect(third.group(1)?.entries == (1...201).map { entry(1, $0, bytes: 900) })
    }

    @Test func zerosStayWithinTheReservedSpace() throws {
        let directory = TemporaryDirectory()
        let writes = Writes()
        let reserved = BatchAppender.aheadBytes + (64 << 10)
        let harness = try LogHarness(directory, writes.options(segmentBytes: reserved))
        harness.create(1)
        try harness.sync()
        var index: UInt64 = 0
        while harness.log.segmentCount < 3 {
            index += 1
            harness.append(1, index...index, bytes: 30_000)
            try harness.sync()
        }
        // The last batch of a segment may end behind the reserved space; zeros may not.
        for range in writes.all where range.upperBound > reserved {
            #expect(range.count < 32 << 10, "\(range)")
        }
        #expect(writes.all.contains { $0.upperBound == reserved })
        harness.log.close()
        #expect(try LogHarness(directory).group(1)?.entries.count == Int(index))
    }

    @Test func aLargeBatchGoesAlone() throws {
        let writes = Writes()
        let harness = try LogHarness(TemporaryDirectory(), writes.options(segmentBytes: 4 << 20))
        harness.create(1)
        harness.append(1, 1...1, bytes: 200 << 10)
        try harness.sync()
        let largest = writes.all.map(\.count).max() ?? 0
        #expect(largest < (200 << 10) + BatchAppender.aheadBytes, "\(writes.all)")
        harness.log.close()
    }
}
