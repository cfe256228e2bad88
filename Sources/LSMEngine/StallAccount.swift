// For what reasons RocksDB held writes back, and for how long.

import KVBase
import StorageAPI

/// RocksDB tells the time as one sum, and apart from it how often it found which reason to hold writes
/// back. What is added to the sum is shared out by the reasons found meanwhile: mostly that is one. When
/// none was, those found last still hold.
struct StallAccount {
    private(set) var times = WriteStallTimes()
    private var total = Nanoseconds.zero
    private var counts: [WriteStallReason: UInt64] = [:]
    private var weights: [WriteStallReason: UInt64] = [:]

    /// `counts` are read only when `total` rose.
    mutating func note(total: Nanoseconds, counts read: () -> [WriteStallReason: UInt64]) {
        guard total > self.total else { return }
        let found = read()
        let risen = found.merging(counts) { $0 - min($0, $1) }
        if risen.values.contains(where: { $0 > 0 }) { weights = risen }
        share(total - self.total)
        self.total = total
        counts = found
    }

    private mutating func share(_ time: Nanoseconds) {
        var left = time
        var parts = weights.values.reduce(0, +)
        for reason in WriteStallReason.allCases {
            guard let weight = weights[reason], weight > 0 else { continue }
            let part = Nanoseconds(
                weight == parts
                    ? left.count : UInt64(Double(left.count) * Double(weight) / Double(parts)))
            times[reason] = times[reason] + part
            left = left - part
            parts -= weight
        }
        times[.other] = times[.other] + left
    }

    /// From a line such as `Stalls(count): 3 level0_slowdown, 3 level0_slowdown_with_compaction, ...`.
    /// Those with compaction are among those without the word.
    static func counts(in report: String) -> [WriteStallReason: UInt64] {
        let label = "Stalls(count): "
        guard let line = report.split(separator: "\n").first(where: { $0.hasPrefix(label) }) else {
            return [:]
        }
        var counts: [WriteStallReason: UInt64] = [:]
        for part in line.dropFirst(label.count).split(separator: ", ") {
            let words = part.split(separator: " ", maxSplits: 1)
            guard words.count == 2, let count = UInt64(words[0]), let reason = reasons[words[1]]
            else { continue }
            counts[reason, default: 0] += count
        }
        return counts
    }

    private static let reasons: [Substring: WriteStallReason] = [
        "level0_slowdown": .level0, "level0_numfiles": .level0,
        "memtable_slowdown": .memtables, "memtable_compaction": .memtables,
        "slowdown for pending_compaction_bytes": .pendingCompaction,
        "stop for pending_compaction_bytes": .pendingCompaction,
    ]
}
