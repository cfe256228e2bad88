// Replies to clients in RESP2 and RESP3.

import KVBase

/// The protocol version that a client chose by `HELLO`; 2 unless it did.
public enum RESPVersion: UInt8, Sendable {
    case two = 2
    case three = 3
}

/// Appends replies to one buffer; `take` hands it to the connection without a copy. Aggregates are
/// written as a header followed by as many replies as it announced.
public struct RESPWriter: Sendable {
    /// The version that the types without a RESP2 form follow.
    public var version: RESPVersion
    public private(set) var bytes: [UInt8] = []

    public init(version: RESPVersion = .two) { self.version = version }

    public var count: Int { bytes.count }
    public var isEmpty: Bool { bytes.isEmpty }

    /// Hands the bytes out and starts anew.
    public mutating func take() -> [UInt8] {
        var out: [UInt8] = []
        swap(&out, &bytes)
        return out
    }

    // MARK: Scalars

    public mutating func ok() { raw("+OK\r\n") }

    /// A status such as `PONG`: a literal without line ends.
    public mutating func simple(_ text: StaticString) {
        bytes.append(UInt8(ascii: "+"))
        raw(text)
        endLine()
    }

    /// A status; line ends in it become spaces.
    public mutating func simple(_ text: String) {
        bytes.append(UInt8(ascii: "+"))
        appendLine(text)
    }

    /// An error: its first word is what programs look at (`ERR`, `WRONGTYPE`, `UNKNOWN`), in
    /// capitals; the rest is for people. Line ends become spaces.
    public mutating func error(_ kind: StaticString, _ message: String) {
        bytes.append(UInt8(ascii: "-"))
        raw(kind)
        bytes.append(0x20)
        appendLine(message)
    }

    public mutating func integer(_ value: Int64) {
        header(UInt8(ascii: ":"), value)
    }

    public mutating func bulk(_ value: UnsafeRawBufferPointer) {
        bytes.reserveCapacity(growingBy: value.count + 24)
        header(UInt8(ascii: "$"), Int64(value.count))
        bytes.append(contentsOf: value)
        endLine()
    }

    public mutating func bulk(_ value: [UInt8]) {
        value.withUnsafeBytes { bulk($0) }
    }

    public mutating func bulk(_ text: String) {
        var text = text
        text.withUTF8 { bulk(UnsafeRawBufferPointer($0)) }
    }

    /// "No such value": `_` in RESP3, the null bulk string in RESP2.
    public mutating func null() { raw(version == .three ? "_\r\n" : "$-1\r\n") }

    /// `#t` or `#f` in RESP3, 1 or 0 in RESP2.
    public mutating func boolean(_ value: Bool) {
        if version == .three {
            raw(value ? "#t\r\n" : "#f\r\n")
        } else {
            integer(value ? 1 : 0)
        }
    }

    /// `,1.5` in RESP3, a bulk string in RESP2.
    public mutating func double(_ value: Double) {
        let text =
            value.isNaN ? "nan" : value.isInfinite ? (value < 0 ? "-inf" : "inf") : "\(value)"
        if version == .three {
            bytes.append(UInt8(ascii: ","))
            appendLine(text)
        } else {
            bulk(text)
        }
    }

    // MARK: Aggregates

    public mutating func array(count: Int) { header(UInt8(ascii: "*"), Int64(count)) }

    /// `pairs` keys, each followed by its value: a map in RESP3, a flat array in RESP2.
    public mutating func map(pairs: Int) {
        if version == .three {
            header(UInt8(ascii: "%"), Int64(pairs))
        } else {
            array(count: 2 * pairs)
        }
    }

    /// A set in RESP3, an array in RESP2.
    public mutating func set(count: Int) {
        header(version == .three ? UInt8(ascii: "~") : UInt8(ascii: "*"), Int64(count))
    }

    /// Out-of-band data in RESP3; an array in RESP2.
    public mutating func push(count: Int) {
        header(version == .three ? UInt8(ascii: ">") : UInt8(ascii: "*"), Int64(count))
    }

    /// Replies that another writer has encoded.
    public mutating func append(encoded: UnsafeRawBufferPointer) {
        bytes.append(contentsOf: encoded)
    }

    // MARK: Internals

    private mutating func header(_ marker: UInt8, _ value: Int64) {
        bytes.append(marker)
        DecimalNumber.append(value, to: &bytes)
        endLine()
    }

    private mutating func endLine() {
        bytes.append(0x0D)
        bytes.append(0x0A)
    }

    private mutating func appendLine(_ text: String) {
        for byte in text.utf8 { bytes.append(byte == 0x0D || byte == 0x0A ? 0x20 : byte) }
        endLine()
    }

    private mutating func raw(_ text: StaticString) {
        bytes.append(
            contentsOf: UnsafeBufferPointer(start: text.utf8Start, count: text.utf8CodeUnitCount))
    }
}

extension [UInt8] {
    /// Room for `count` more bytes, growing geometrically as `append` does.
    fileprivate mutating func reserveCapacity(growingBy count: Int) {
        let needed = self.count + count
        if needed > capacity { reserveCapacity(Swift.max(needed, 2 * capacity)) }
    }
}
