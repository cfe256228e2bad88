// Numbers that people compare with each other: cluster ids, digests.

/// Sixteen hexadecimal digits.
public func hex(_ value: UInt64) -> String {
    let digits = String(value, radix: 16)
    return String(repeating: "0", count: 16 - digits.utf8.count) + digits
}
