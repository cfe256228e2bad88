// Probes measure the disk and leave no trace in the log.

import Foundation
import Glibc
import KVBase
import ReplicationCore
import TestKit
import Testing

@testable import ReplicatedLog

@Suite struct LogProbeTests {
    /// Asks for a probe and waits until it is written.
    private func probe(_ log: ReplicatedLog) {
        let before = log.pace.endedAt
        log.probe()
        while log.pace.endedAt == before, log.failure == nil { sched_yield() }
    }

    @Test func aProbeAtTheEndIsNoTornTail() throws {
        let directory = TemporaryDirectory()
        let first = try LogHarness(directory)
        first.create(1)
        first.append(1, 1...3)
        try first.sync()
        probe(first.log)
        first.log.close()
        let second = try LogHarness(directory)
        #expect(second.log.recovery.tornTail == nil)
        #expect(second.group(1)?.entries.count == 3)
        second.append(1, 4...4)
        try second.sync()
        second.log.close()
        #expect(try LogHarness(directory).group(1)?.entries.count == 4)
    }

    @Test func batchesAndNewSegmentsTakeTheProbesPlace() throws {
        let directory = TemporaryDirectory()
        let first = try LogHarness(directory)
        probe(first.log)
        first.create(1)
        try first.sync()
        for index in 1...60 {
            probe(first.log)
            first.append(1, UInt64(index)...UInt64(index), bytes: 700)
            try first.sync()
            probe(first.log)
            probe(first.log)
        }
        #expect(first.log.segmentCount > 2)
        let batches = first.log.statistics.batches
        first.log.close()
        let second = try LogHarness(directory)
        #expect(second.log.recovery.batches == batches)
        #expect(second.log.recovery.tornTail == nil)
        #expect(second.group(1)?.entries == (1...60).map { entry(1, $0, bytes: 700) })
        second.log.close()
    }

    /// A batch that was torn so that the probe's header under it survived.
    @Test func aTornBatchOverAProbeIsCutOff() throws {
        let directory = TemporaryDirectory()
        let first = try LogHarness(directory)
        first.create(1)
        first.append(1, 1...3)
        try first.sync()
        let end = LogFormat.align(Int(first.log.statistics.bytes) + LogFormat.alignment)
        probe(first.log)
        first.log.close()
        let path = directory.path + "/" + directory.segments[0]
        var bytes = try Data(contentsOf: URL(filePath: path))
        bytes[end + LogFormat.alignment + 9] = 7
        try bytes.write(to: URL(filePath: path))
        let second = try LogHarness(directory)
        #expect(second.log.recovery.tornTail != nil)
        #expect(second.group(1)?.entries.count == 3)
        second.log.close()
    }

    @Test func aStalledSyncShowsWhileItStalls() throws {
        let directory = TemporaryDirectory()
        let began = Completion()
        let gate = Completion()
        let armed = Completion()
        var options = LogOptions.small
        let system = options.operations
        options.operations.synchronize = { file in
            if armed.highest > 0 {
                began.report(.success(1))
                try? gate.wait(for: 1)
            }
            return system.synchronize(file)
        }
        let harness = try LogHarness(directory, options)
        harness.create(1)
        try harness.sync()
        armed.report(.success(1))
        harness.log.probe()
        try began.wait(for: 1)
        let startedAt = try #require(harness.log.pace.startedAt)
        let pace = harness.log.pace
        #expect(pace.delay(at: startedAt + .seconds(7)) == .seconds(7))
        gate.report(.success(1))
        while harness.log.pace.startedAt != nil { sched_yield() }
        let ended = harness.log.pace
        #expect(ended.delay(at: startedAt + .seconds(70)) == ended.newest)
        harness.log.close()
    }

    @Test func aProbeThatFailsEndsTheLog() throws {
        let directory = TemporaryDirectory()
        let armed = Completion()
        var options = LogOptions.small
        let system = options.operations
        options.operations.synchronize = { file in
            armed.highest > 0 ? EIO : system.synchronize(file)
        }
        let harness = try LogHarness(directory, options)
        harness.create(1)
        try harness.sync()
        armed.report(.success(1))
        probe(harness.log)
        #expect(throws: DatabaseError.self) { try harness.completion.wait(for: 99) }
        harness.append(1, 1...1)
        #expect(throws: DatabaseError.self) { try harness.sync() }
        harness.log.close()
    }
}
