// The key that halves a shard's bytes and those that quarter them, found in one pass in bounded memory.

import KVBase
import ShardCore

/// Is told every record of a shard in order of key; knows at the end where half of the bytes lie
/// below.
///
/// Marks are set along the way, one in each *stride* of bytes; when there are too many, every other
/// one is dropped and the stride doubled. So the nearest mark is at most a stride off, which is
/// below 1/250 of all bytes, and one record more; in a HASH table one virtual range more.
public struct MiddleKey: Sendable {
    private static let marksMax = 512
    /// Longer keys make no cut, so that a report stays small.
    private static let keyBytesMax = ShardLoad.sampledKeyBytesMax

    private struct Mark: Sendable {
        var cut: Bytes
        var below: UInt64
    }

    private let partitioning: Partitioning
    private var marks: [Mark] = []
    private var stride: UInt64 = 1
    private var nextMark: UInt64 = 1
    /// Set while a cut is wanted: how the key of the record before begins.
    private var left: Bytes?
    private var total: UInt64 = 0
    /// The key of the newest record, and its bytes.
    private var last: Bytes = []
    private var lastBytes: UInt64 = 0

    public init(_ partitioning: Partitioning) { self.partitioning = partitioning }

    public mutating func add(_ routedKey: UnsafeRawBufferPointer, bytes: UInt64) {
        if let known = left { cut(behind: known, before: routedKey) }
        total += bytes
        last.removeAll(keepingCapacity: true)
        last.append(contentsOf: routedKey.prefix(Self.keyBytesMax))
        lastBytes = bytes
        // In HASH tables only the virtual range counts, and that is still the one noted.
        if total >= nextMark, left == nil || partitioning == .range {
            left = Bytes(routedKey.prefix(Self.keyBytesMax + 1))
        }
    }

    /// The cut that is nearest to the half; nil when there is none.
    public var key: Bytes? {
        var best: Mark?
        for mark in marks {
            if let known = best, distance(known) <= distance(mark) { continue }
            best = mark
        }
        return best?.cut
    }

    /// Where the bytes lie.
    public var spread: KeySpread {
        KeySpread(
            marks.lazy.map { ($0.cut, $0.below) }, greatest: last, own: lastBytes, of: total)
    }

    private mutating func cut(behind known: Bytes, before routedKey: UnsafeRawBufferPointer) {
        let right = UnsafeRawBufferPointer(rebasing: routedKey.prefix(Self.keyBytesMax + 1))
        let cut: Bytes? = known.withUnsafeBytes { known in
            guard RoutedCut.isPossible(known, right, partitioning) else { return nil }
            return RoutedCut.key(between: known, right, partitioning)
        }
        guard let cut, cut.count <= Self.keyBytesMax else { return }
        left = nil
        marks.append(Mark(cut: cut, below: total))
        if marks.count == Self.marksMax {
            stride = max(2 * stride, total / UInt64(Self.marksMax / 2))
            thin()
        }
        nextMark = total + stride
    }

    /// Keeps one mark in each stride.
    private mutating func thin() {
        var kept: [Mark] = []
        for mark in marks where kept.last.map({ mark.below - $0.below >= stride }) ?? true {
            kept.append(mark)
        }
        marks = kept
    }

    private func distance(_ mark: Mark) -> UInt64 {
        max(2 * mark.below, total) - min(2 * mark.below, total)
    }
}
