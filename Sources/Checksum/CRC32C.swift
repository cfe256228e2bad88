// CRC32C (Castagnoli polynomial, reflected, as in RFC 3720 appendix B.4), by ISA-L's vector code.

import CISAL
import KVBase

/// The CRC32C of `bytes`. `seed` is the CRC of what comes before them, so that
/// `crc32c(b, seed: crc32c(a))` is the CRC of `a` followed by `b`.
public func crc32c(_ bytes: UnsafeRawBufferPointer, seed: UInt32 = 0) -> UInt32 {
    guard let base = bytes.baseAddress else { return seed }
    var state = ~seed
    var offset = 0
    // The C function takes its length as `int`.
    while offset < bytes.count {
        let length = min(bytes.count - offset, 1 << 30)
        let start = (base + offset).assumingMemoryBound(to: UInt8.self)
        state = crc32_iscsi(UnsafeMutablePointer(mutating: start), Int32(length), state)
        offset += length
    }
    return ~state
}

/// `crc32c` of owned bytes.
public func crc32c(_ bytes: Bytes, seed: UInt32 = 0) -> UInt32 {
    bytes.withUnsafeBytes { crc32c($0, seed: seed) }
}
