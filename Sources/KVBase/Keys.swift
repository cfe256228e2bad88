// Keys: their order, their ranges and their hash.

/// Bytes of a key, value or encoded structure, owned.
public typealias Bytes = [UInt8]

extension Bytes {
    /// `withUnsafeBytes` for a body with a typed error.
    @inlinable
    public func withRawBytes<Result>(
        _ body: (UnsafeRawBufferPointer) throws(DatabaseError) -> Result
    ) throws(DatabaseError) -> Result {
        let outcome = withUnsafeBytes { bytes -> Swift.Result<Result, DatabaseError> in
            do throws(DatabaseError) {
                return .success(try body(bytes))
            } catch {
                return .failure(error)
            }
        }
        return try outcome.get()
    }
}

/// Lexicographic order of unsigned bytes, a shorter prefix first: negative, zero or positive.
@inlinable
public func compareBytes(_ left: UnsafeRawBufferPointer, _ right: UnsafeRawBufferPointer) -> Int {
    let common = min(left.count, right.count)
    var offset = 0
    while offset + 8 <= common {
        let a = left.loadUnaligned(fromByteOffset: offset, as: UInt64.self)
        let b = right.loadUnaligned(fromByteOffset: offset, as: UInt64.self)
        if a != b { return a.bigEndian < b.bigEndian ? -1 : 1 }
        offset += 8
    }
    while offset < common {
        if left[offset] != right[offset] { return left[offset] < right[offset] ? -1 : 1 }
        offset += 1
    }
    return left.count - right.count
}

/// `compareBytes` on owned bytes.
@inlinable
public func compareBytes(_ left: Bytes, _ right: Bytes) -> Int {
    left.withUnsafeBytes { a in right.withUnsafeBytes { b in compareBytes(a, b) } }
}

/// A half-open range of keys, `start <= key < end`; `end == nil` means "to the last key".
public struct KeyRange: Hashable, Sendable {
    public var start: Bytes
    public var end: Bytes?

    public init(start: Bytes, end: Bytes?) {
        self.start = start
        self.end = end
    }

    public static let all = KeyRange(start: [], end: nil)

    public func contains(_ key: UnsafeRawBufferPointer) -> Bool {
        if start.withUnsafeBytes({ compareBytes(key, $0) }) < 0 { return false }
        guard let end else { return true }
        return end.withUnsafeBytes { compareBytes(key, $0) } < 0
    }

    public func contains(_ key: Bytes) -> Bool { key.withUnsafeBytes { contains($0) } }

    /// Some key may be in both.
    public func overlaps(_ other: KeyRange) -> Bool {
        !KeyRange(
            start: compareBytes(start, other.start) < 0 ? other.start : start,
            end: [end, other.end].compactMap { $0 }.min { compareBytes($0, $1) < 0 }
        ).isEmpty
    }

    public var isEmpty: Bool {
        guard let end else { return false }
        return compareBytes(start, end) >= 0
    }
}

/// A stable 64-bit hash of a key, the same on every machine and in every version: FNV-1a over
/// 8-byte words with a SplitMix64 finaliser. It places keys of HASH tables, so it must never
/// change. Not for input chosen by an attacker to collide.
@inlinable
public func stableHash(_ key: UnsafeRawBufferPointer) -> UInt64 {
    var hash: UInt64 = 0xCBF2_9CE4_8422_2325 ^ UInt64(key.count)
    var offset = 0
    while offset + 8 <= key.count {
        let word = key.loadUnaligned(fromByteOffset: offset, as: UInt64.self).littleEndian
        hash = SeededRandom.mix((hash ^ word) &* 0x100_0000_01B3)
        offset += 8
    }
    var tail: UInt64 = 0
    var shift: UInt64 = 0
    while offset < key.count {
        tail |= UInt64(key[offset]) << shift
        shift += 8
        offset += 1
    }
    return SeededRandom.mix((hash ^ tail) &* 0x100_0000_01B3)
}
