// Base64 of RFC 4648, section 4: how etcd's JSON gateway writes keys and values.

import KVBase

enum Base64 {
    private static let digits = Bytes(
        "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/".utf8)
    private static let padding = UInt8(ascii: "=")
    /// 255: no digit.
    private static let values: Bytes = {
        var values = Bytes(repeating: 255, count: 256)
        for (value, digit) in digits.enumerated() { values[Int(digit)] = UInt8(value) }
        return values
    }()

    static func append(_ bytes: Bytes, to text: inout Bytes) {
        text.reserveCapacity(text.count + (bytes.count + 2) / 3 * 4)
        var index = 0
        while index < bytes.count {
            let rest = min(3, bytes.count - index)
            var group = UInt32(bytes[index]) << 16
            if rest > 1 { group |= UInt32(bytes[index + 1]) << 8 }
            if rest > 2 { group |= UInt32(bytes[index + 2]) }
            text.append(digits[Int(group >> 18 & 63)])
            text.append(digits[Int(group >> 12 & 63)])
            text.append(rest > 1 ? digits[Int(group >> 6 & 63)] : padding)
            text.append(rest > 2 ? digits[Int(group & 63)] : padding)
            index += 3
        }
    }

    /// Nil when `text` is no base64 with its padding.
    static func decode(_ text: Bytes) -> Bytes? {
        guard text.count % 4 == 0 else { return nil }
        var bytes: Bytes = []
        bytes.reserveCapacity(text.count / 4 * 3)
        var index = 0
        while index < text.count {
            let isLast = index + 4 == text.count
            var group: UInt32 = 0
            var padded = 0
            for digit in text[index..<index + 4] {
                let value = values[Int(digit)]
                if value == 255 || padded > 0 {
                    guard digit == padding, isLast else { return nil }
                    padded += 1
                }
                group = group << 6 | UInt32(value & 63)
            }
            guard padded <= 2 else { return nil }
            bytes.append(UInt8(group >> 16 & 255))
            if padded < 2 { bytes.append(UInt8(group >> 8 & 255)) }
            if padded < 1 { bytes.append(UInt8(group & 255)) }
            index += 4
        }
        return bytes
    }
}
