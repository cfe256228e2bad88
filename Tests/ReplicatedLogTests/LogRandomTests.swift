// Random operations against a model, with reopening and with kills.

import Glibc
import KVBase
import ReplicationCore
import TestKit
import Testing

@testable import ReplicatedLog

/// What a group must come back as.
private struct ModelGroup: Equatable {
    var replica: UInt32
    var hardState = HardState()
    var released = LogPosition()
    /// Entry `n` has index `base + n + 1`.
    var base = LogPosition()
    var entries: [LogEntry] = []
    var last: UInt64 { base.index.rawValue + UInt64(entries.count) }
}

@Suite struct LogRandomTests {
    @Test(arguments: 1...60 as ClosedRange<UInt64>)
    func modelComesBack(seed: UInt64) throws {
        var random = SeededRandom(seed: seed)
        let directory = TemporaryDirectory()
        var options = LogOptions()
        options.segmentBytes = 4 << 10
        options.batchBytesMax = 8 << 10
        var model: [UInt32: ModelGroup] = [:]
        var nextReplica: UInt32 = 1
        for _ in 0..<6 {
            let harness = try LogHarness(directory, options)
            try compare(harness, &model, seed)
            for _ in 0..<random.below(80) {
                for _ in 0...random.below(4) {
                    step(harness.log, &model, &nextReplica, &random)
                }
                if random.chance(2, in: 3) { _ = try harness.log.submit() }
                if random.chance(1, in: 3) { try harness.sync() }
            }
            try harness.sync()
            harness.log.close()
        }
        let harness = try LogHarness(directory, options)
        try compare(harness, &model, seed)
        harness.log.close()
    }

    private func step(
        _ log: ReplicatedLog, _ model: inout [UInt32: ModelGroup], _ nextReplica: inout UInt32,
        _ random: inout SeededRandom
    ) {
        let id = UInt32(random.below(6)) + 1
        guard var group = model[id] else {
            model[id] = ModelGroup(replica: nextReplica)
            log.stageCreation(group: GroupID(id), replica: ReplicaID(nextReplica))
            nextReplica += 1
            return
        }
        switch random.below(40) {
        case 0:
            log.stageRemoval(group: GroupID(id))
            model[id] = nil
            return
        case 1...6:
            let room = group.last - group.released.index.rawValue
            if room > 0 {
                let index = group.released.index.rawValue + 1 + random.below(room)
                let entry = group.entries[Int(index - group.base.index.rawValue) - 1]
                group.released = LogPosition(index: entry.index, term: entry.term)
                log.release(group: GroupID(id), upTo: group.released)
            }
            model[id] = group
            return
        case 7:
            let position = position(
                group.hardState.term.rawValue, group.last + random.below(20) + 1)
            group.entries = []
            group.base = position
            group.released = position
            log.stage(
                group: GroupID(id), replica: ReplicaID(group.replica),
                persist: Persist(ticket: PersistTicket(0), snapshot: position))
            model[id] = group
            return
        default: break
        }
        var persist = Persist(ticket: PersistTicket(0))
        if random.chance(1, in: 3) {
            group.hardState.term = group.hardState.term.next()
            group.hardState.vote = ReplicaID(UInt32(random.below(5)))
            persist.hardState = group.hardState
        }
        var next = group.last + 1
        if random.chance(1, in: 6) {
            // Cuts a suffix that was not released.
            next -= random.below(group.last - group.released.index.rawValue + 1)
            group.entries.removeSubrange(Int(next - group.base.index.rawValue - 1)...)
        }
        for index in next..<next + random.below(5) + 1 {
            let entry = entry(
                group.hardState.term.rawValue, index, bytes: Int(random.below(600)))
            persist.entries.append(entry)
            group.entries.append(entry)
        }
        log.stage(group: GroupID(id), replica: ReplicaID(group.replica), persist: persist)
        model[id] = group
    }

    /// The log may have forgotten less than was released, never more.
    private func compare(
        _ harness: LogHarness, _ model: inout [UInt32: ModelGroup], _ seed: UInt64
    ) throws {
        try #require(
            harness.recovered.map(\.group.rawValue) == model.keys.sorted(), "seed \(seed)")
        for recovered in harness.recovered {
            var group = model[recovered.group.rawValue]!
            let context = "seed \(seed), group \(recovered.group)"
            #expect(recovered.replica.rawValue == group.replica, "\(context)")
            #expect(recovered.hardState == group.hardState, "\(context)")
            try #require(recovered.compacted.index <= group.released.index, "\(context)")
            try #require(recovered.compacted.index >= group.base.index, "\(context)")
            let skip = Int(recovered.compacted.index.rawValue - group.base.index.rawValue)
            try #require(recovered.entries == Array(group.entries[skip...]), "\(context)")
            group.released = recovered.compacted
            model[recovered.group.rawValue] = group
        }
    }
}
