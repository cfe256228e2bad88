// A child process that writes is killed; what it reported durable must be there.

import Foundation
import KVBase
import ReplicationCore
import TestKit
import Testing

@testable import ReplicatedLog

@Suite struct LogKillTests {
    static let directoryVariable = "RANGEKEEPER_TEST_LOG_CHILD"

    /// The child: goes on from what is in the directory until it is killed, and writes one byte to
    /// its standard error for each durable entry.
    @Test(.enabled(if: ProcessInfo.processInfo.environment[directoryVariable] != nil))
    func childWrites() throws {
        let path = ProcessInfo.processInfo.environment[Self.directoryVariable]!
        var options = LogOptions()
        options.segmentBytes = 8 << 10
        let (log, recovered) = try ReplicatedLog.open(directory: path, options: options)
        let completion = Completion()
        log.onDurable = { completion.report($0) }
        var last = recovered.first?.entries.last?.index.rawValue ?? 0
        if recovered.isEmpty {
            log.stageCreation(group: GroupID(1), replica: ReplicaID(1))
        } else {
            last = max(last, recovered[0].compacted.index.rawValue)
        }
        while true {
            last += 1
            log.stage(
                group: GroupID(1), replica: ReplicaID(1),
                persist: Persist(
                    ticket: PersistTicket(0),
                    entries: [entry(1, last, bytes: Int(last * 37 % 900))]))
            if let number = try log.submit(), last % 3 == 0 { try completion.wait(for: number) }
            if last % 3 == 0 {
                WritingChild.report(durable: last)
                if last > 30 { log.release(group: GroupID(1), upTo: position(1, last - 30)) }
            }
        }
    }

    @Test(.enabled(if: ProcessInfo.processInfo.environment[directoryVariable] == nil))
    func killedWriterLosesNothingDurable() throws {
        let directory = TemporaryDirectory()
        var random = SeededRandom(seed: 11)
        var options = LogOptions()
        options.segmentBytes = 8 << 10
        var durable: UInt64 = 0
        let child = WritingChild(
            test: "LogKillTests/childWrites",
            environment: [Self.directoryVariable: directory.path])
        for round in 1...12 {
            durable = try child.runAndKill(atDurable: durable + 1 + random.below(200))
            let harness = try LogHarness(directory, options)
            let group = try #require(harness.group(1))
            let last = group.entries.last?.index.rawValue ?? 0
            #expect(last >= durable, "round \(round)")
            #expect(
                group.entries.allSatisfy {
                    $0 == entry(1, $0.index.rawValue, bytes: Int($0.index.rawValue * 37 % 900))
                }, "round \(round)")
            durable = last
            harness.log.close()
        }
        #expect(directory.segments.count < 10)
    }
}
