// Keys as operators read and write them: printable ASCII as it is, everything else as \xNN.

import KVBase
import ShardCore

/// Text of keys for operators, and back.
public enum KeyText {
    /// The text of a key.
    public static func text(_ key: some Sequence<UInt8>) -> String {
        var text = ""
        for byte in key {
            if byte >= 0x20, byte < 0x7F, byte != UInt8(ascii: "\\") {
                text.unicodeScalars.append(Unicode.Scalar(byte))
            } else {
                let digits = String(byte, radix: 16, uppercase: true)
                text += "\\x" + (digits.utf8.count == 1 ? "0" : "") + digits
            }
        }
        return text
    }

    /// Reads what `text` writes; UTF-8 that is not escaped stands for its bytes. Nil when an escape
    /// is not `\xNN`.
    public static func key(_ text: String) -> Bytes? {
        var key: Bytes = []
        var rest = Bytes(text.utf8)[...]
        while let byte = rest.popFirst() {
            guard byte == UInt8(ascii: "\\") else {
                key.append(byte)
                continue
            }
            guard rest.count >= 3, rest.popFirst() == UInt8(ascii: "x"),
                let value = UInt8(String(decoding: rest.prefix(2), as: UTF8.self), radix: 16)
            else { return nil }
            rest = rest.dropFirst(2)
            key.append(value)
        }
        return key
    }

    /// A bound of a shard: `hash:N` for HASH tables.
    public static func bound(_ routed: Bytes, of partitioning: Partitioning) -> String {
        guard case .hash = partitioning else { return text(routed) }
        let range = routed.count >= 2 ? UInt16(routed[0]) << 8 | UInt16(routed[1]) : 0
        return "hash:\(range)"
    }

    /// Reads what `bound` writes: the routed key of a cut.
    public static func cut(_ text: String, of partitioning: Partitioning) throws(DatabaseError)
        -> Bytes
    {
        guard case .hash(let ranges) = partitioning else {
            guard let key = key(text) else {
                throw DatabaseError(.invalidRequest, "key \(text): after a backslash comes xNN")
            }
            return key
        }
        // The empty key is none of a virtual range: the core says what would be one.
        guard text.hasPrefix("hash:"), let range = UInt16(text.dropFirst(5)) else { return [] }
        guard range < ranges else {
            throw DatabaseError(
                .refused,
                "the table has the virtual ranges hash:0 to hash:\(ranges - 1), not \(text)")
        }
        return [UInt8(range >> 8), UInt8(range & 0xFF)]
    }
}
