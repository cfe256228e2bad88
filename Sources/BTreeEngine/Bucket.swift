// Long keys: LMDB takes keys of at most 511 bytes, records have keys of a megabyte.
//
// A key shorter than 511 bytes is an LMDB key of its own. A key of 511 bytes or more lives in the
// bucket named by its first 511 bytes, beside all others that begin alike. LMDB keys of exactly 511
// bytes are always buckets, shorter ones never. The order is that of the keys: a short key and a
// bucket, or two buckets, either differ within the 511 bytes, or the short key is a prefix of the
// bucket's name and so comes before everything in it.

import KVBase

/// The value of a bucket: for each record, in order of the rest of its key, length of the rest (4
/// bytes), length of the value (4 bytes), rest, value. Integers are little-endian.
enum Bucket {
    static let nameBytes = 511

    static func isLong(_ key: UnsafeRawBufferPointer) -> Bool { key.count >= nameBytes }

    static func name(of key: UnsafeRawBufferPointer) -> UnsafeRawBufferPointer {
        UnsafeRawBufferPointer(rebasing: key[..<min(key.count, nameBytes)])
    }

    static func rest(of key: UnsafeRawBufferPointer) -> UnsafeRawBufferPointer {
        UnsafeRawBufferPointer(rebasing: key[nameBytes...])
    }

    /// Reads a bucket forward. A length that does not fit ends it with `isDamaged`.
    struct Reader {
        private let bytes: UnsafeRawBufferPointer
        private var offset = 0
        private(set) var isDamaged = false

        init(_ bytes: UnsafeRawBufferPointer) { self.bytes = bytes }

        mutating func next() -> (rest: UnsafeRawBufferPointer, value: UnsafeRawBufferPointer)? {
            guard offset < bytes.count else { return nil }
            guard bytes.count - offset >= 8 else {
                isDamaged = true
                return nil
            }
            let restCount = length(at: offset)
            let valueCount = length(at: offset + 4)
            let start = offset + 8
            guard restCount + valueCount <= bytes.count - start else {
                isDamaged = true
                return nil
            }
            offset = start + restCount + valueCount
            return (
                UnsafeRawBufferPointer(rebasing: bytes[start..<start + restCount]),
                UnsafeRawBufferPointer(rebasing: bytes[start + restCount..<offset])
            )
        }

        private func length(at offset: Int) -> Int {
            Int(UInt32(littleEndian: bytes.loadUnaligned(fromByteOffset: offset, as: UInt32.self)))
        }
    }

    /// False when `content` is of a bucket and its lengths do not fit.
    static func isWhole(
        _ content: UnsafeRawBufferPointer, of name: UnsafeRawBufferPointer
    ) -> Bool {
        guard isLong(name) else { return true }
        var reader = Reader(content)
        while reader.next() != nil {}
        return !reader.isDamaged
    }

    static func append(
        _ rest: UnsafeRawBufferPointer, _ value: UnsafeRawBufferPointer, to bucket: inout Bytes
    ) {
        withUnsafeBytes(of: UInt32(rest.count).littleEndian) { bucket.append(contentsOf: $0) }
        withUnsafeBytes(of: UInt32(value.count).littleEndian) { bucket.append(contentsOf: $0) }
        bucket.append(contentsOf: rest)
        bucket.append(contentsOf: value)
    }
}
