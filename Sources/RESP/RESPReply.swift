// Replies as a client sees them.

import KVBase

/// One reply of a server, RESP2 or RESP3.
public enum RESPReply: Hashable, Sendable {
    case simple(String)
    /// The whole line: kind, space, message.
    case error(String)
    case integer(Int64)
    case bulk(Bytes)
    case null
    case boolean(Bool)
    case double(Double)
    /// A number too big for 64 bits, as written.
    case bigNumber(String)
    /// Arrays and sets.
    case array([RESPReply])
    /// Keys and values in turn.
    case map([RESPReply])
    /// Out-of-band data.
    case push([RESPReply])

    /// The text of a status, error, bulk string or number; nil for the rest.
    public var text: String? {
        switch self {
        case .simple(let text), .error(let text), .bigNumber(let text): text
        case .bulk(let bytes): String(decoding: bytes, as: UTF8.self)
        case .integer(let value): String(value)
        case .double(let value): String(value)
        case .null, .boolean, .array, .map, .push: nil
        }
    }

    /// The elements of an array, map or push; nil for the rest.
    public var elements: [RESPReply]? {
        switch self {
        case .array(let elements), .map(let elements), .push(let elements): elements
        default: nil
        }
    }

    public var isError: Bool {
        if case .error = self { true } else { false }
    }
}

/// Parses the reply stream of one connection; bytes go in as they come, whole replies come out.
public struct ReplyParser: Sendable {
    private struct Frame {
        enum Kind { case array, map, push, attribute }
        let kind: Kind
        var remaining: Int
        var elements: [RESPReply] = []
    }

    /// Deepest nesting of aggregates.
    private static let depthMax = 32
    private static let lineBytesMax = 64 << 10

    private let bulkBytesMax: Int
    private let elementsMax: Int
    private var input = InputBuffer()
    private var searched = 0
    private var stack: [Frame] = []

    /// A reply beyond `bulkBytesMax` or `elementsMax` is malformed.
    public init(bulkBytesMax: Int = 64 << 20, elementsMax: Int = 4 << 20) {
        self.bulkBytesMax = bulkBytesMax
        self.elementsMax = elementsMax
    }

    /// Takes bytes that came.
    public mutating func append(_ bytes: UnsafeRawBufferPointer) { input.append(bytes) }

    /// The next whole reply; nil when more bytes are needed. Throws `malformed`: the connection
    /// cannot be used further.
    public mutating func next() throws(DatabaseError) -> RESPReply? {
        while let element = try nextElement() {
            switch element {
            case .value(let reply):
                if let whole = complete(with: reply) { return whole }
            case .aggregate(let kind, let count):
                guard stack.count < Self.depthMax else {
                    throw DatabaseError(.malformed, "reply nested deeper than \(Self.depthMax)")
                }
                stack.append(Frame(kind: kind, remaining: count))
                if count == 0, let whole = closeFrames() { return whole }
            }
        }
        return nil
    }

    // MARK: Aggregates

    /// Puts a reply where it belongs; returns the outermost one when that is complete.
    private mutating func complete(with reply: RESPReply) -> RESPReply? {
        guard !stack.isEmpty else { return reply }
        stack[stack.count - 1].elements.append(reply)
        stack[stack.count - 1].remaining -= 1
        return closeFrames()
    }

    private mutating func closeFrames() -> RESPReply? {
        while let frame = stack.last, frame.remaining == 0 {
            stack.removeLast()
            let reply: RESPReply
            switch frame.kind {
            case .array: reply = .array(frame.elements)
            case .map: reply = .map(frame.elements)
            case .push: reply = .push(frame.elements)
            case .attribute:
                // Says something about the reply that follows; nobody here asks for it.
                continue
            }
            guard !stack.isEmpty else { return reply }
            stack[stack.count - 1].elements.append(reply)
            stack[stack.count - 1].remaining -= 1
        }
        return nil
    }

    // MARK: Elements

    private enum Element {
        case value(RESPReply)
        case aggregate(Frame.Kind, Int)
    }

    private mutating func nextElement() throws(DatabaseError) -> Element? {
        let searched = searched
        let (bulkBytesMax, elementsMax) = (bulkBytesMax, elementsMax)
        var consumed = 0
        var searchedNow = 0
        let element = try input.withUnsafeBytes { bytes throws(DatabaseError) -> Element? in
            var end = searched
            while end < bytes.count, bytes[end] != 0x0A { end += 1 }
            guard end < bytes.count else {
                guard end <= Self.lineBytesMax else {
                    throw DatabaseError(.malformed, "reply line without end")
                }
                searchedNow = end
                return nil
            }
            guard end >= 2, bytes[end - 1] == 0x0D else {
                throw DatabaseError(.malformed, "reply line without CR LF")
            }
            let line = UnsafeRawBufferPointer(rebasing: bytes[1..<end - 1])
            consumed = end + 1
            switch bytes[0] {
            case UInt8(ascii: "$"), UInt8(ascii: "="):
                guard let count = try Self.length(line, max: bulkBytesMax) else {
                    return .value(.null)
                }
                guard bytes.count - consumed >= count + 2 else {
                    // The header is short: looking at it again costs nothing.
                    searchedNow = end
                    consumed = 0
                    return nil
                }
                guard bytes[consumed + count] == 0x0D, bytes[consumed + count + 1] == 0x0A else {
                    throw DatabaseError(.malformed, "bulk reply without CR LF")
                }
                // A verbatim string starts with its format and a colon.
                let skipped = bytes[0] == UInt8(ascii: "=") ? min(4, count) : 0
                let body = bytes[consumed + skipped..<consumed + count]
                consumed += count + 2
                return .value(.bulk(Bytes(body)))
            case UInt8(ascii: "*"), UInt8(ascii: "~"):
                return try Self.aggregate(.array, line, 1, max: elementsMax)
            case UInt8(ascii: "%"): return try Self.aggregate(.map, line, 2, max: elementsMax)
            case UInt8(ascii: "|"):
                return try Self.aggregate(.attribute, line, 2, max: elementsMax)
            case UInt8(ascii: ">"): return try Self.aggregate(.push, line, 1, max: elementsMax)
            case let marker: return .value(try Self.scalar(marker, line))
            }
        }
        self.searched = searchedNow
        input.consume(consumed)
        return element
    }

    private static func aggregate(
        _ kind: Frame.Kind, _ line: UnsafeRawBufferPointer, _ factor: Int, max: Int
    ) throws(DatabaseError) -> Element {
        guard let count = try length(line, max: max) else { return .value(.null) }
        return .aggregate(kind, count * factor)
    }

    /// Nil for -1, the null of RESP2.
    private static func length(_ line: UnsafeRawBufferPointer, max: Int) throws(DatabaseError)
        -> Int?
    {
        guard let count = DecimalNumber.parse(line), count >= -1, count <= max else {
            throw DatabaseError(
                .malformed, "reply length \"\(String(decoding: line, as: UTF8.self))\"")
        }
        return count == -1 ? nil : Int(count)
    }

    private static func scalar(_ marker: UInt8, _ line: UnsafeRawBufferPointer)
        throws(DatabaseError) -> RESPReply
    {
        let text = String(decoding: line, as: UTF8.self)
        switch marker {
        case UInt8(ascii: "+"): return .simple(text)
        case UInt8(ascii: "-"): return .error(text)
        case UInt8(ascii: "_") where line.isEmpty: return .null
        case UInt8(ascii: "#") where text == "t": return .boolean(true)
        case UInt8(ascii: "#") where text == "f": return .boolean(false)
        case UInt8(ascii: "("): return .bigNumber(text)
        case UInt8(ascii: ":"):
            if let value = DecimalNumber.parse(line) { return .integer(value) }
        case UInt8(ascii: ","):
            if let value = Double(text) { return .double(value) }
        default: break
        }
        throw DatabaseError(
            .malformed, "reply starts with byte \(marker), then \"\(text.prefix(32))\"")
    }
}
