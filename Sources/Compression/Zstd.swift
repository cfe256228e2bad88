// Compression of whole objects in memory.

import CZstd
import KVBase

/// One zstd frame per call.
public enum Zstd {
    /// zstd's own default: a snapshot of a million shards takes well under a second.
    private static let level: Int32 = 3

    /// Fails only when there is no memory.
    public static func compress(_ bytes: Bytes) throws(DatabaseError) -> Bytes {
        var output = Bytes(repeating: 0, count: ZSTD_compressBound(bytes.count))
        let capacity = output.count
        let count = output.withUnsafeMutableBytes { target in
            bytes.withUnsafeBytes { source in
                ZSTD_compress(
                    target.baseAddress, capacity, source.baseAddress, source.count, level)
            }
        }
        guard ZSTD_isError(count) == 0 else {
            throw DatabaseError(
                .storageFailed, "compression: \(String(cString: ZSTD_getErrorName(count)))")
        }
        output.removeLast(output.count - count)
        return output
    }

    /// Nil unless it is one frame of exactly `byteCount` bytes.
    public static func decompress(_ bytes: Bytes, byteCount: Int) -> Bytes? {
        let declared = bytes.withUnsafeBytes {
            ZSTD_getFrameContentSize($0.baseAddress, $0.count)
        }
        guard declared == UInt64(byteCount) else { return nil }
        var output = Bytes(repeating: 0, count: byteCount)
        let count = output.withUnsafeMutableBytes { target in
            bytes.withUnsafeBytes { source in
                ZSTD_decompress(
                    target.baseAddress, byteCount, source.baseAddress, source.count)
            }
        }
        return ZSTD_isError(count) == 0 && count == byteCount ? output : nil
    }
}
