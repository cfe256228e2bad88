// What a new table may be, and how its key space is cut.

import KVBase
import ShardCore

enum TableRules {
    /// Why this creation is refused, or nil.
    static func objection(to request: TableRequest, splitBytesMax: Int) -> DatabaseError? {
        guard case .create(let name, let partitioning, _, let replicas, let splits, _) = request
        else { return nil }
        let bytes = Bytes(name.utf8)
        guard bytes.withUnsafeBytes({ Limits.isValidTableName($0) }) else {
            return DatabaseError(
                .invalidRequest,
                "a table name is 1 to \(Limits.tableNameBytesMax) printable ASCII characters "
                    + "without space and does not start with '_'")
        }
        if let replicas, ![1, 3, 5].contains(replicas) {
            return DatabaseError(.invalidRequest, "a table has 1, 3 or 5 replicas, not \(replicas)")
        }
        switch partitioning {
        case .hash(let count):
            guard splits.isEmpty else {
                return DatabaseError(.invalidRequest, "a HASH table takes no split points")
            }
            guard Partitioning.virtualRangeBounds.contains(count) else {
                return DatabaseError(
                    .invalidRequest,
                    "a HASH table has \(Partitioning.virtualRangeBounds.lowerBound) to "
                        + "\(Partitioning.virtualRangeBounds.upperBound) virtual ranges, not \(count)"
                )
            }
            return nil
        case .range: return objection(to: splits, bytesMax: splitBytesMax)
        }
    }

    /// The routed ranges of the shards, in order; they tile the key space.
    static func ranges(of partitioning: Partitioning, splits: [Bytes]) -> [KeyRange] {
        switch partitioning {
        case .hash(let count): (0..<count).map { partitioning.routedRange(ofVirtualRange: $0) }
        case .range:
            (0...splits.count).map {
                KeyRange(
                    start: $0 == 0 ? [] : splits[$0 - 1],
                    end: $0 == splits.count ? nil : splits[$0])
            }
        }
    }

    private static func objection(to splits: [Bytes], bytesMax: Int) -> DatabaseError? {
        guard splits.count < Limits.initialShardsMax else {
            return DatabaseError(
                .tooLarge, "a table starts with at most \(Limits.initialShardsMax) shards")
        }
        var previous: Bytes = []
        var total = 0
        for split in splits {
            guard split.count <= Limits.keyBytesMax else {
                return DatabaseError(.tooLarge, "a split point of \(split.count) bytes")
            }
            guard compareBytes(previous, split) < 0 else {
                return DatabaseError(
                    .invalidRequest, "split points are not empty and rise strictly")
            }
            previous = split
            total += split.count
        }
        guard total <= bytesMax else {
            return DatabaseError(
                .tooLarge, "the split points have \(total) bytes, at most \(bytesMax) are taken")
        }
        return nil
    }
}
