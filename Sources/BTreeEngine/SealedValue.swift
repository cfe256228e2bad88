// Values of the tree with their checksums: LMDB's pages have none.

import Checksum
import KVBase

/// What the tree holds under a name: the content, then 4 bytes, the CRC32C of the name and the content behind
/// it, little-endian. A value under the name of another does not pass.
enum SealedValue {
    static let checksumBytes = 4

    /// The content of `stored`, nil when it is not what was written under `name`.
    static func open(
        _ stored: UnsafeRawBufferPointer, of name: UnsafeRawBufferPointer
    ) -> UnsafeRawBufferPointer? {
        let count = stored.count - checksumBytes
        guard count >= 0 else { return nil }
        let content = UnsafeRawBufferPointer(rebasing: stored[..<count])
        let written = stored.loadUnaligned(fromByteOffset: count, as: UInt32.self)
        return UInt32(littleEndian: written) == checksum(content, of: name) ? content : nil
    }

    /// Fills `place`, which is `checksumBytes` longer than `content`.
    static func write(
        _ content: UnsafeRawBufferPointer, of name: UnsafeRawBufferPointer,
        to place: UnsafeMutableRawBufferPointer
    ) {
        place.copyMemory(from: content)
        place.storeBytes(
            of: checksum(content, of: name).littleEndian, toByteOffset: content.count,
            as: UInt32.self)
    }

    private static func checksum(
        _ content: UnsafeRawBufferPointer, of name: UnsafeRawBufferPointer
    ) -> UInt32 {
        crc32c(content, seed: crc32c(name))
    }
}
