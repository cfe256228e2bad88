// A log in a directory of its own, with calls that wait for the disk.

import Foundation
import KVBase
import ReplicationCore
import TestKit
import Testing

@testable import ReplicatedLog

extension TemporaryDirectory {
    var segments: [String] { files.filter { $0.hasSuffix(".log") } }
}

/// Collects what the writer thread reports, for a test thread that waits.
final class Completion: @unchecked Sendable {
    private let condition = NSCondition()
    private var durable: UInt64 = 0
    private var failure: DatabaseError?

    func report(_ result: Result<UInt64, DatabaseError>) {
        condition.lock()
        switch result {
        case .success(let number): durable = max(durable, number)
        case .failure(let error): failure = error
        }
        condition.broadcast()
        condition.unlock()
    }

    /// Returns when `number` is durable; throws when the log failed first.
    func wait(for number: UInt64) throws(DatabaseError) {
        condition.lock()
        defer { condition.unlock() }
        while durable < number, failure == nil { condition.wait() }
        if durable < number, let failure { throw failure }
    }

    var highest: UInt64 {
        condition.lock()
        defer { condition.unlock() }
        return durable
    }
}

struct LogHarness {
    let log: ReplicatedLog
    let recovered: [RecoveredGroup]
    let completion = Completion()

    init(_ directory: TemporaryDirectory, _ options: LogOptions = .small) throws(DatabaseError) {
        (log, recovered) = try ReplicatedLog.open(directory: directory.path, options: options)
        let completion = completion
        log.onDurable = { completion.report($0) }
    }

    /// Submits what is staged and waits for the disk.
    func sync() throws(DatabaseError) {
        while log.hasStaged {
            let before = completion.highest
            if let number = try log.submit() {
                try completion.wait(for: number)
            } else {
                try completion.wait(for: before + 1)
            }
        }
    }

    func create(_ group: UInt32, replica: UInt32 = 1) {
        log.stageCreation(group: GroupID(group), replica: ReplicaID(replica))
    }

    func append(
        _ group: UInt32, replica: UInt32 = 1, term: UInt64 = 1, _ indexes: ClosedRange<UInt64>,
        bytes: Int = 10
    ) {
        let entries = indexes.map { entry(term, $0, bytes: bytes) }
        log.stage(
            group: GroupID(group), replica: ReplicaID(replica),
            persist: Persist(ticket: PersistTicket(0), entries: entries))
    }

    func group(_ id: UInt32) -> RecoveredGroup? {
        recovered.first { $0.group == GroupID(id) }
    }
}

extension LogOptions {
    /// Small segments, so that edges come soon.
    static var small: LogOptions {
        var options = LogOptions()
        options.segmentBytes = 16 << 10
        return options
    }
}

/// An entry whose payload follows from term and index.
func entry(_ term: UInt64, _ index: UInt64, bytes: Int = 10) -> LogEntry {
    LogEntry(
        term: Term(term), index: LogIndex(index), kind: .command,
        payload: Bytes(repeating: UInt8(truncatingIfNeeded: term &* 31 &+ index), count: bytes))
}

func position(_ term: UInt64, _ index: UInt64) -> LogPosition {
    LogPosition(index: LogIndex(index), term: Term(term))
}
