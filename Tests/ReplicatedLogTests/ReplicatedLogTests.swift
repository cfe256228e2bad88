// What is written comes back; what is not needed goes away.

import Checksum
import Foundation
import Glibc
import KVBase
import ReplicationCore
import TestKit
import Testing

@testable import ReplicatedLog

@Suite struct ReplicatedLogTests {
    @Test func roundTrip() throws {
        let directory = TemporaryDirectory()
        let first = try LogHarness(directory)
        #expect(first.recovered.isEmpty)
        first.create(7, replica: 3)
        let hardState = HardState(term: Term(5), vote: ReplicaID(2))
        let entries = [
            LogEntry(term: Term(4), index: LogIndex(1), kind: .noop, payload: []),
            LogEntry(
                term: Term(5), index: LogIndex(2), kind: .membership, payload: [1, 2, 3]),
            entry(5, 3, bytes: 100_000),
        ]
        first.log.stage(
            group: GroupID(7), replica: ReplicaID(3),
            persist: Persist(
                ticket: PersistTicket(1), hardState: hardState, entries: entries))
        try first.sync()
        #expect(try first.log.submit() == nil)
        first.log.close()

        let second = try LogHarness(directory)
        let group = try #require(second.group(7))
        #expect(second.recovered.count == 1)
        #expect(group.replica == ReplicaID(3))
        #expect(group.hardState == hardState)
        #expect(group.entries == entries)
        #expect(group.compacted == LogPosition())
        #expect(second.log.recovery.tornTail == nil)
    }

    @Test func manyGroupsComeBackSorted() throws {
        let directory = TemporaryDirectory()
        let first = try LogHarness(directory)
        for group in (1...500).reversed() { first.create(UInt32(group)) }
        for group in 1...500 { first.append(UInt32(group), 1...3) }
        try first.sync()
        first.log.close()
        let second = try LogHarness(directory)
        #expect(second.recovered.map(\.group.rawValue) == Array(1...500))
        #expect(second.recovered.allSatisfy { $0.entries == (1...3).map { entry(1, $0) } })
    }

    @Test func laterEntryCutsTheSuffix() throws {
        let directory = TemporaryDirectory()
        let first = try LogHarness(directory)
        first.create(1)
        first.append(1, term: 1, 1...10)
        try first.sync()
        first.append(1, term: 2, 4...5)
        try first.sync()
        first.log.close()
        let group = try #require(try LogHarness(directory).group(1))
        #expect(group.entries == (1...3).map { entry(1, $0) } + (4...5).map { entry(2, $0) })
    }

    @Test func snapshotReplacesTheLog() throws {
        let directory = TemporaryDirectory()
        let first = try LogHarness(directory)
        first.create(1)
        first.append(1, 1...10)
        try first.sync()
        first.log.stage(
            group: GroupID(1), replica: ReplicaID(1),
            persist: Persist(ticket: PersistTicket(1), snapshot: position(3, 100)))
        first.append(1, term: 3, 101...102)
        try first.sync()
        first.log.close()
        let group = try #require(try LogHarness(directory).group(1))
        #expect(group.compacted == position(3, 100))
        #expect(group.entries == (101...102).map { entry(3, $0) })
    }

    @Test func engineAheadOfTheLogCutsIt() throws {
        let directory = TemporaryDirectory()
        let first = try LogHarness(directory)
        first.create(1)
        first.append(1, 1...5)
        try first.sync()
        first.log.release(group: GroupID(1), upTo: position(2, 8))
        #expect(first.log.hasStaged)
        first.append(1, term: 2, 9...10)
        try first.sync()
        first.log.close()
        let group = try #require(try LogHarness(directory).group(1))
        #expect(group.compacted == position(2, 8))
        #expect(group.entries == (9...10).map { entry(2, $0) })
    }

    @Test func removedGroupStaysAwayAndItsSuccessorStartsEmpty() throws {
        let directory = TemporaryDirectory()
        let first = try LogHarness(directory)
        first.create(1, replica: 1)
        first.append(1, replica: 1, 1...10)
        first.create(2)
        first.log.stageRemoval(group: GroupID(1))
        try first.sync()
        first.log.close()
        let second = try LogHarness(directory)
        #expect(second.recovered.map(\.group.rawValue) == [2])
        second.create(1, replica: 9)
        second.append(1, replica: 9, term: 8, 1...1)
        try second.sync()
        second.log.close()
        let group = try #require(try LogHarness(directory).group(1))
        #expect(group.replica == ReplicaID(9))
        #expect(group.entries == [entry(8, 1)])
    }

    @Test func segmentsAreFreedWhenNoGroupNeedsThem() throws {
        let directory = TemporaryDirectory()
        let first = try LogHarness(directory)
        first.create(1)
        first.create(2)
        let vote = HardState(term: Term(9), vote: ReplicaID(4))
        first.log.stage(
            group: GroupID(2), replica: ReplicaID(1),
            persist: Persist(
                ticket: PersistTicket(1), hardState: vote, entries: [entry(1, 1)]))
        for index in 1...100 {
            first.append(1, UInt64(index)...UInt64(index), bytes: 2_000)
            try first.sync()
        }
        // Group 2's only entry keeps every segment.
        #expect(first.log.segmentCount > 10)
        #expect(directory.segments.count == first.log.segmentCount)
        #expect(first.log.groupsHoldingOldest(limit: 5).map(\.rawValue) == [1, 2])
        first.log.release(group: GroupID(1), upTo: position(1, 95))
        #expect(first.log.groupsHoldingOldest(limit: 5).map(\.rawValue) == [2])
        let held = first.log.bytesSinceOldestNeeded
        first.log.release(group: GroupID(2), upTo: position(1, 1))
        #expect(first.log.bytesSinceOldestNeeded < held / 2)
        var index: UInt64 = 101
        while first.log.segmentCount > 4 {
            first.append(1, index...index, bytes: 2_000)
            try first.sync()
            index += 1
            try #require(index < 200)
        }
        first.log.close()
        #expect(directory.segments.count == first.log.segmentCount)

        let second = try LogHarness(directory)
        let one = try #require(second.group(1))
        #expect(one.compacted.index.rawValue <= 95)
        #expect(
            one.entries
                == (one.compacted.index.rawValue + 1..<index).map { entry(1, $0, bytes: 2_000) })
        // Nothing was said about group 2 in the segments that are left but their state tables.
        let two = try #require(second.group(2))
        #expect(two.hardState == vote)
        #expect(two.compacted == position(1, 1))
        #expect(two.entries.isEmpty)
    }

    @Test func snapshotAndRemovalFreeSegmentsToo() throws {
        let directory = TemporaryDirectory()
        let first = try LogHarness(directory)
        first.create(1)
        first.create(2)
        first.create(3)
        first.append(1, 1...50, bytes: 1_000)
        first.append(2, 1...50, bytes: 1_000)
        try first.sync()
        first.log.stageRemoval(group: GroupID(2))
        // Below the last index: the log behind the snapshot is gone as well.
        first.log.stage(
            group: GroupID(1), replica: ReplicaID(1),
            persist: Persist(ticket: PersistTicket(1), snapshot: position(1, 20)))
        for index in 1...30 {
            first.append(3, UInt64(index)...UInt64(index), bytes: 2_000)
            try first.sync()
            first.log.release(group: GroupID(3), upTo: position(1, UInt64(index)))
        }
        first.log.close()
        #expect(first.log.segmentCount <= 2)
        let second = try LogHarness(directory)
        #expect(second.recovered.map(\.group.rawValue) == [1, 3])
        #expect(second.group(1)?.compacted == position(1, 20))
        #expect(second.group(1)?.entries == [])
    }

    @Test func oneSubmissionLargerThanASegment() throws {
        let directory = TemporaryDirectory()
        let first = try LogHarness(directory)
        first.create(1)
        first.append(1, 1...2, bytes: 300_000)
        try first.sync()
        first.append(1, 3...4, bytes: 300_000)
        try first.sync()
        first.log.close()
        #expect(directory.segments.count == 2)
        let group = try #require(try LogHarness(directory).group(1))
        #expect(group.entries == (1...4).map { entry(1, $0, bytes: 300_000) })
    }

    @Test func stagingBeyondTheBoundHandsOverEarly() throws {
        let directory = TemporaryDirectory()
        var options = LogOptions.small
        options.batchBytesMax = 1_000
        let first = try LogHarness(directory, options)
        first.create(1)
        for index in 1...100 { first.append(1, UInt64(index)...UInt64(index), bytes: 500) }
        try first.sync()
        #expect(first.log.statistics.submissions > 20)
        first.log.close()
        let group = try #require(try LogHarness(directory).group(1))
        #expect(group.entries.count == 100)
    }

    @Test func submissionsShareASync() throws {
        let directory = TemporaryDirectory()
        let began = Completion()
        let gate = Completion()
        let armed = Completion()
        var options = LogOptions.small
        let system = options.operations
        // From the moment it is armed, a sync waits until the gate opens.
        options.operations.synchronize = { file in
            if armed.highest > 0 {
                began.report(.success(1))
                try? gate.wait(for: 1)
            }
            return system.synchronize(file)
        }
        let first = try LogHarness(directory, options)
        armed.report(.success(1))
        first.create(1)
        _ = try first.log.submit()
        try began.wait(for: 1)
        var last: UInt64 = 0
        for index in 1...50 {
            first.append(1, UInt64(index)...UInt64(index))
            last = try first.log.submit() ?? last
        }
        gate.report(.success(1))
        try first.completion.wait(for: last)
        let statistics = first.log.statistics
        #expect(statistics.submissions == 51)
        #expect(statistics.batches == 2)
        #expect(statistics.records == 51)
        #expect(statistics.syncHistogram.reduce(0, +) == 2)
        #expect(statistics.queuedBytes == 0)
        first.log.close()
        #expect(try LogHarness(directory).group(1)?.entries.count == 50)
    }

    @Test func checksumIsCastagnoli() {
        #expect(crc32c(Bytes("123456789".utf8)) == 0xE306_9283)
        // RFC 3720, B.4: 32 bytes of zeros, of ones, rising.
        #expect(crc32c(Bytes(repeating: 0, count: 32)) == 0x8A91_36AA)
        #expect(crc32c(Bytes(repeating: 0xFF, count: 32)) == 0x62A8_AB43)
        #expect(crc32c(Bytes(0..<32)) == 0x46DD_794E)
        #expect(crc32c([]) == 0)
        #expect(crc32c(Bytes("6789".utf8), seed: crc32c(Bytes("12345".utf8))) == 0xE306_9283)
    }

    @Test func emptyDirectoryIsRefusedWhenALogIsExpected() throws {
        let directory = TemporaryDirectory()
        var options = LogOptions.small
        options.expectExisting = true
        #expect(throws: DatabaseError.self) { try LogHarness(directory, options) }
    }

    @Test func durableFileIsReplacedWhole() throws {
        let directory = TemporaryDirectory()
        let path = directory.path + "/identity"
        #expect(try DurableFile.read(path) == nil)
        try DurableFile.replace(path, with: [1, 2, 3])
        try DurableFile.replace(path, with: [4])
        #expect(try DurableFile.read(path) == [4])
        var failing = FileOperations.system
        failing.rename = { _, _ in EIO }
        #expect(throws: DatabaseError.self) {
            try DurableFile.replace(path, with: [5], operations: failing)
        }
        #expect(try DurableFile.read(path) == [4])
        #expect(throws: DatabaseError.self) { try DurableFile.read(path, bytesMax: 0) }
    }

    @Test func directoryLockNamesItsHolder() throws {
        let directory = TemporaryDirectory()
        var lock: DirectoryLock? = try DirectoryLock(directory: directory.path)
        #expect(lock != nil)
        let error = #expect(throws: DatabaseError.self) {
            try DirectoryLock(directory: directory.path)
        }
        #expect(error?.code == .refused)
        #expect(error?.message.contains("process \(getpid())") == true)
        lock = nil
        _ = try DirectoryLock(directory: directory.path)
    }

    /// As a child has it between its fork and the program that it executes.
    @Test func aLockThatWasGivenUpIsFreeThoughACopyOfItsFileIsOpen() throws {
        let directory = TemporaryDirectory()
        var lock: DirectoryLock? = try DirectoryLock(directory: directory.path)
        let path = URL(filePath: directory.path + "/LOCK").resolvingSymlinksInPath().path
        let file = try #require(
            FileManager.default.contentsOfDirectory(atPath: "/proc/self/fd").first {
                (try? FileManager.default.destinationOfSymbolicLink(atPath: "/proc/self/fd/" + $0))
                    == path
            })
        let copy = dup(try #require(Int32(file)))
        defer { close(copy) }
        #expect(lock != nil)
        lock = nil
        _ = try DirectoryLock(directory: directory.path)
    }
}
