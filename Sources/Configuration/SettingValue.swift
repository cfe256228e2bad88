// Reading of values as users write them.

import KVBase

/// A value after its check.
enum SettingValue: Hashable, Sendable {
    case text(String)
    case integer(Int)
    case duration(Nanoseconds)
    case boolean(Bool)
    case list([String])

    /// Reads `text` as `kind` wants it. Throws `invalidRequest` with the reason alone; the caller
    /// knows where the value stands.
    static func parse(_ text: String, as kind: Setting.Kind) throws(DatabaseError) -> SettingValue {
        switch kind {
        case .string:
            return .text(text)
        case .path:
            guard !text.isEmpty, !text.utf8.contains(0) else { throw refuse("not a path") }
            return .text(text)
        case .integer(let range):
            guard let value = Int(text) else { throw refuse("not a whole number") }
            guard range.contains(value) else {
                throw refuse("not from \(range.lowerBound) to \(range.upperBound)")
            }
            return .integer(value)
        case .bytes(let range):
            let value = try scaled(text, byteUnits, "a number of bytes such as 4096 or 64MiB")
            guard let value = Int(exactly: value), range.contains(value) else {
                throw refuse("not from \(range.lowerBound) to \(range.upperBound) bytes")
            }
            return .integer(value)
        case .duration(let range):
            guard text == "0" || text.utf8.last.map({ $0 > 0x39 }) == true else {
                throw refuse("a duration needs a unit, such as 250ms or 10s")
            }
            let value = Nanoseconds(
                try scaled(text, durationUnits, "a duration such as 250ms or 10s"))
            guard range.contains(value) else {
                throw refuse("not from \(write(range.lowerBound)) to \(write(range.upperBound))")
            }
            return .duration(value)
        case .address:
            try checkAddress(text)
            return .text(text)
        case .boolean:
            switch text.lowercased() {
            case "true", "yes", "on", "1": return .boolean(true)
            case "false", "no", "off", "0": return .boolean(false)
            default: throw refuse("neither true nor false")
            }
        case .choice(let words):
            guard words.contains(text) else {
                let hint = Suggestion.phrase(for: text, among: words)
                throw refuse("not one of \(words.joined(separator: ", "))\(hint)")
            }
            return .text(text)
        case .list:
            return .list(split(text))
        case .addressList:
            let parts = split(text)
            for part in parts { try checkAddress(part) }
            return .list(parts)
        }
    }

    /// The form that a user would write.
    func written(as kind: Setting.Kind) -> String {
        switch self {
        case .text(let text): return text
        case .integer(let value):
            guard case .bytes = kind else { return String(value) }
            for (unit, factor) in Self.byteUnits.reversed() where unit.hasSuffix("iB") {
                if value > 0, UInt64(value) % factor == 0 {
                    return "\(UInt64(value) / factor)\(unit)"
                }
            }
            return String(value)
        case .duration(let value): return Self.write(value)
        case .boolean(let value): return value ? "true" : "false"
        case .list(let parts): return parts.joined(separator: ",")
        }
    }

    // MARK: Units

    private static let byteUnits: [(String, UInt64)] = [
        ("", 1), ("B", 1), ("kB", 1_000), ("KB", 1_000), ("KiB", 1 << 10), ("MB", 1_000_000),
        ("MiB", 1 << 20), ("GB", 1_000_000_000), ("GiB", 1 << 30), ("TB", 1_000_000_000_000),
        ("TiB", 1 << 40),
    ]

    private static let durationUnits: [(String, UInt64)] = [
        ("", 1), ("ns", 1), ("us", 1_000), ("ms", 1_000_000), ("s", 1_000_000_000),
        ("m", 60_000_000_000), ("h", 3_600_000_000_000), ("d", 86_400_000_000_000),
    ]

    /// A whole number followed by one of the units.
    private static func scaled(
        _ text: String, _ units: [(String, UInt64)], _ wanted: String
    ) throws(DatabaseError) -> UInt64 {
        let digits = text.prefix { $0.isASCII && $0.isNumber }
        let unit = text.dropFirst(digits.count).drop { $0 == " " }
        guard let number = UInt64(digits), let factor = units.first(where: { $0.0 == unit })?.1
        else { throw refuse("not \(wanted)") }
        let (product, overflow) = number.multipliedReportingOverflow(by: factor)
        guard !overflow else { throw refuse("too large") }
        return product
    }

    private static func write(_ duration: Nanoseconds) -> String {
        for (unit, factor) in durationUnits.reversed() where !unit.isEmpty {
            if duration.count > 0, duration.count % factor == 0 {
                return "\(duration.count / factor)\(unit)"
            }
        }
        return "0s"
    }

    // MARK: Parts

    private static func split(_ text: String) -> [String] {
        text.split(separator: ",").map(trimmed).filter { !$0.isEmpty }
    }

    private static func trimmed(_ text: Substring) -> String {
        var text = text.drop { $0 == " " || $0 == "\t" }
        while let last = text.last, last == " " || last == "\t" { text.removeLast() }
        return String(text)
    }

    /// The shape alone; whether the host exists shows when it is used.
    private static func checkAddress(_ text: String) throws(DatabaseError) {
        guard let colon = text.lastIndex(of: ":") else { throw refuse("an address is host:port") }
        let port = text[text.index(after: colon)...]
        let host = text[..<colon]
        guard !port.isEmpty, port.utf8.allSatisfy({ (0x30...0x39).contains($0) }),
            UInt16(port) != nil
        else { throw refuse("the port is not a number from 0 to 65535") }
        let isBracketed = host.hasPrefix("[") && host.hasSuffix("]") && host.contains(":")
        guard isBracketed || !host.contains(where: { "[]:".contains($0) }) else {
            throw refuse("an IPv6 address stands in brackets, as in [::1]:7000")
        }
        guard !host.utf8.contains(where: { $0 <= 0x20 || $0 >= 0x7F }) else {
            throw refuse("the host holds a character that no host name has")
        }
    }

    private static func refuse(_ why: String) -> DatabaseError {
        DatabaseError(.invalidRequest, why)
    }
}
