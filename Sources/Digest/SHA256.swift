// SHA-256 (FIPS 180-4), by OpenSSL.

import COpenSSL
import KVBase

public enum SHA256 {
    /// Of a digest.
    public static let byteCount = 32

    public static func digest(_ bytes: Bytes) -> Bytes {
        var digest = Bytes(repeating: 0, count: byteCount)
        _ = COpenSSL.SHA256(bytes, bytes.count, &digest)
        return digest
    }
}
