// How many bytes a key range takes, from counting its beginning.

import KVBase

/// Counts records of a scan up to a bound, then extrapolates by where the last counted key lies
/// between the ends of the range. Without an upper end the most that is left is what the tree has.
struct SizeEstimate {
    private static let recordsMax = 20_000

    private let from: Bytes
    private let to: Bytes?
    private var records = 0
    private var counted: UInt64 = 0
    private var lastKey: Bytes?

    init(from: UnsafeRawBufferPointer, to: UnsafeRawBufferPointer?) {
        self.from = Bytes(from)
        self.to = to.map { Bytes($0) }
    }

    /// Returns whether to go on.
    mutating func count(_ key: UnsafeRawBufferPointer, _ value: UnsafeRawBufferPointer) -> Bool {
        records += 1
        counted += UInt64(key.count + value.count)
        guard records >= Self.recordsMax else { return true }
        lastKey = Bytes(key)
        return false
    }

    func bytes(treeBytes: UInt64) -> UInt64 {
        guard let lastKey else { return counted }
        let most = max(counted, treeBytes)
        guard let to else { return most }
        // Eight bytes behind what all keys of the range have in common.
        let common = zip(from, to).prefix { $0 == $1 }.count
        let low = Self.word(from, common)
        let span = Self.word(to, common) - low
        let passed = max(1, Self.word(lastKey, common) - low)
        return min(most, UInt64(min(Double(counted) * span / passed, 1e18)))
    }

    private static func word(_ key: Bytes, _ offset: Int) -> Double {
        var word: UInt64 = 0
        for place in offset..<offset + 8 {
            word = word << 8 | UInt64(place < key.count ? key[place] : 0)
        }
        return Double(word)
    }
}
