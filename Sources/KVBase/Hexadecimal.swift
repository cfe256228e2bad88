// Numbers of a fixed width in hexadecimal: names that sort as their numbers do, and ids that people
// compare with each other.

/// `value` in lower case with leading zeros, `count` digits wide.
///
/// Precondition: `value` fits.
public func hex(_ value: UInt64, count: Int = 16) -> String {
    let digits = String(value, radix: 16)
    return String(repeating: "0", count: count - digits.utf8.count) + digits
}

extension UInt64 {
    /// Reads what `hex` writes: exactly `count` lower-case digits, no sign; nil for anything else.
    public init?(hex text: some StringProtocol, count: Int = 16) {
        guard text.utf8.count == count, text.utf8.allSatisfy(isHexDigit),
            let value = UInt64(text, radix: 16)
        else { return nil }
        self = value
    }
}

private func isHexDigit(_ byte: UInt8) -> Bool {
    (UInt8(ascii: "0")...UInt8(ascii: "9")).contains(byte)
        || (UInt8(ascii: "a")...UInt8(ascii: "f")).contains(byte)
}
