// Decimal numbers in bytes, without a string in between.

enum DecimalNumber {
    /// An optional minus sign and 1 to 19 digits, in the range of the type; nil for anything else.
    static func parse(_ bytes: UnsafeRawBufferPointer) -> Int64? {
        var offset = 0
        let isNegative = bytes.first == UInt8(ascii: "-")
        if isNegative { offset = 1 }
        guard offset < bytes.count, bytes.count - offset <= 19 else { return nil }
        var value: Int64 = 0
        while offset < bytes.count {
            let digit = bytes[offset] &- 0x30
            guard digit <= 9 else { return nil }
            // Downwards, since the lowest number has no positive twin.
            let (product, overflow) = value.multipliedReportingOverflow(by: 10)
            let (sum, overflow2) = product.subtractingReportingOverflow(Int64(digit))
            guard !overflow, !overflow2 else { return nil }
            value = sum
            offset += 1
        }
        if isNegative { return value }
        return value == .min ? nil : -value
    }

    /// Appends the digits of `value`.
    static func append(_ value: Int64, to bytes: inout [UInt8]) {
        if value >= 0, value < 10 {
            bytes.append(0x30 + UInt8(truncatingIfNeeded: value))
            return
        }
        var rest = value.magnitude
        withUnsafeTemporaryAllocation(byteCount: 20, alignment: 1) { digits in
            var start = 20
            while rest > 0 {
                start -= 1
                digits[start] = 0x30 + UInt8(truncatingIfNeeded: rest % 10)
                rest /= 10
            }
            if value < 0 {
                start -= 1
                digits[start] = UInt8(ascii: "-")
            }
            bytes.append(contentsOf: UnsafeRawBufferPointer(rebasing: digits[start..<20]))
        }
    }
}
