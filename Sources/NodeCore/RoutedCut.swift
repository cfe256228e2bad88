// Where a shard may be cut in two, given two of its routed keys that should part.

import KVBase
import ShardCore

/// Cuts between two neighbouring routed keys of a shard. A cut lies above the left one, so it is
/// never the shard's start, and not above the right one.
public enum RoutedCut {
    /// Bytes of a routed key in front of the user's key in HASH tables.
    private static let virtualRangeByteCount = 2

    /// Whether a cut may part the keys. Precondition: `left` is not above `right`.
    public static func isPossible(
        _ left: Bytes, _ right: Bytes, _ partitioning: Partitioning
    ) -> Bool {
        left.withUnsafeBytes { left in
            right.withUnsafeBytes { isPossible(left, $0, partitioning) }
        }
    }

    public static func isPossible(
        _ left: UnsafeRawBufferPointer, _ right: UnsafeRawBufferPointer,
        _ partitioning: Partitioning
    ) -> Bool {
        switch partitioning {
        case .range: compareBytes(left, right) != 0
        case .hash:
            commonPrefix(left, right) < virtualRangeByteCount
                && right.count >= virtualRangeByteCount
        }
    }

    /// In RANGE tables the shortest key that parts the two, in HASH tables the boundary at which the
    /// right one's virtual range begins. Precondition: a cut is possible.
    public static func key(
        between left: Bytes, _ right: Bytes, _ partitioning: Partitioning
    ) -> Bytes {
        left.withUnsafeBytes { left in
            right.withUnsafeBytes { key(between: left, $0, partitioning) }
        }
    }

    public static func key(
        between left: UnsafeRawBufferPointer, _ right: UnsafeRawBufferPointer,
        _ partitioning: Partitioning
    ) -> Bytes {
        switch partitioning {
        case .range: Bytes(right.prefix(commonPrefix(left, right) + 1))
        case .hash: Bytes(right.prefix(virtualRangeByteCount))
        }
    }

    private static func commonPrefix(
        _ left: UnsafeRawBufferPointer, _ right: UnsafeRawBufferPointer
    ) -> Int {
        let most = min(left.count, right.count)
        var count = 0
        while count < most, left[count] == right[count] { count += 1 }
        return count
    }
}
