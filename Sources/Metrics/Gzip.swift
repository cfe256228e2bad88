// The gzip form of a page, by zlib.

import CZlib
import KVBase

public enum Gzip {
    /// One gzip member; nil when it would not be smaller than the input, or there is no memory.
    public static func compress(_ bytes: Bytes) -> Bytes? {
        let compressed = Bytes(unsafeUninitializedCapacity: bytes.count) { output, count in
            count = bytes.withUnsafeBytes {
                rangekeeper_gzip($0.baseAddress, $0.count, output.baseAddress, output.count)
            }
        }
        return compressed.isEmpty ? nil : compressed
    }
}
