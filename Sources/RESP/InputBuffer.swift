// Bytes that have come and are not used up yet.

import KVBase

/// A growing window over a stream: appended at the end, consumed at the front. Gives memory back
/// once it is empty, so that thousands of quiet connections hold none.
public struct InputBuffer: Sendable {
    /// Above this an empty buffer's memory is given back.
    private static let keptBytesMax = 16 << 10

    private var storage: [UInt8] = []
    private var start = 0

    public init() {}

    public var count: Int { storage.count - start }
    public var isEmpty: Bool { start == storage.count }

    /// Appends a copy of `bytes`.
    public mutating func append(_ bytes: UnsafeRawBufferPointer) {
        if start > 0, start >= storage.count / 2 {
            storage.removeSubrange(0..<start)
            start = 0
        }
        storage.append(contentsOf: bytes)
    }

    /// Drops `count` bytes at the front. Precondition: they are there.
    public mutating func consume(_ count: Int) {
        precondition(count >= 0 && count <= self.count)
        start += count
        guard start == storage.count else { return }
        start = 0
        if storage.capacity > Self.keptBytesMax {
            storage = []
        } else {
            storage.removeAll(keepingCapacity: true)
        }
    }

    /// The bytes not consumed yet, valid during the call.
    public func withUnsafeBytes<Result>(
        _ body: (UnsafeRawBufferPointer) throws(DatabaseError) -> Result
    ) throws(DatabaseError) -> Result {
        try storage.withRawBytes { (raw) throws(DatabaseError) in
            try body(UnsafeRawBufferPointer(rebasing: raw[start...]))
        }
    }
}
