// Reading JSON (RFC 8259) from a server, without Foundation.

import KVBase

/// One JSON value. Strings are kept as bytes: most of what etcd sends is base64.
enum JSONTree: Sendable {
    case null
    case bool(Bool)
    case number(Bytes)
    case text(Bytes)
    case list([JSONTree])
    case object([Member])

    struct Member: Sendable {
        var name: Bytes
        var value: JSONTree
    }

    /// The member of an object; nil when there is none.
    subscript(name: String) -> JSONTree? {
        guard case .object(let members) = self else { return nil }
        return members.first { $0.name.elementsEqual(name.utf8) }?.value
    }

    var elements: [JSONTree] {
        guard case .list(let elements) = self else { return [] }
        return elements
    }

    var isTrue: Bool {
        guard case .bool(true) = self else { return false }
        return true
    }

    /// An integer, also as protocol buffers in JSON write 64 bits: in quotes.
    var unsigned: UInt64? {
        switch self {
        case .number(let digits), .text(let digits):
            return UInt64(String(decoding: digits, as: UTF8.self))
        default: return nil
        }
    }

    var string: String? {
        guard case .text(let bytes) = self else { return nil }
        return String(decoding: bytes, as: UTF8.self)
    }
}

extension JSONTree {
    /// Reads one value with nothing behind it. Throws `.malformed` with the place.
    init(parsing bytes: UnsafeRawBufferPointer) throws(DatabaseError) {
        var scanner = JSONScanner(bytes)
        self = try scanner.value(depth: 0)
        scanner.skipSpace()
        guard scanner.isAtEnd else { throw scanner.error("something behind the value") }
    }

    init(parsing bytes: Bytes) throws(DatabaseError) {
        self = try bytes.withRawBytes { (raw) throws(DatabaseError) in try JSONTree(parsing: raw) }
    }
}

private struct JSONScanner {
    private static let depthMax = 32

    private let bytes: UnsafeRawBufferPointer
    private var offset = 0

    init(_ bytes: UnsafeRawBufferPointer) { self.bytes = bytes }

    var isAtEnd: Bool { offset == bytes.count }

    func error(_ what: String) -> DatabaseError {
        DatabaseError(.malformed, "JSON: \(what) at byte \(offset)")
    }

    mutating func skipSpace() {
        while offset < bytes.count {
            switch bytes[offset] {
            case 0x20, 0x09, 0x0A, 0x0D: offset += 1
            default: return
            }
        }
    }

    mutating func value(depth: Int) throws(DatabaseError) -> JSONTree {
        guard depth < Self.depthMax else { throw error("too deep") }
        skipSpace()
        guard offset < bytes.count else { throw error("no value") }
        switch bytes[offset] {
        case UInt8(ascii: "{"): return .object(try members(depth))
        case UInt8(ascii: "["): return .list(try elements(depth))
        case UInt8(ascii: "\""): return .text(try text())
        case UInt8(ascii: "t"): return try word("true", .bool(true))
        case UInt8(ascii: "f"): return try word("false", .bool(false))
        case UInt8(ascii: "n"): return try word("null", .null)
        default: return .number(try number())
        }
    }

    private mutating func word(
        _ word: StaticString, _ value: JSONTree
    ) throws(DatabaseError) -> JSONTree {
        let count = word.utf8CodeUnitCount
        guard bytes.count - offset >= count,
            UnsafeRawBufferPointer(rebasing: bytes[offset..<offset + count])
                .elementsEqual(UnsafeBufferPointer(start: word.utf8Start, count: count))
        else { throw error("no value") }
        offset += count
        return value
    }

    private mutating func members(_ depth: Int) throws(DatabaseError) -> [JSONTree.Member] {
        offset += 1
        var members: [JSONTree.Member] = []
        if taken(UInt8(ascii: "}")) { return members }
        repeat {
            skipSpace()
            guard offset < bytes.count, bytes[offset] == UInt8(ascii: "\"") else {
                throw error("no name")
            }
            let name = try text()
            guard taken(UInt8(ascii: ":")) else { throw error("no colon") }
            members.append(JSONTree.Member(name: name, value: try value(depth: depth + 1)))
        } while taken(UInt8(ascii: ","))
        guard taken(UInt8(ascii: "}")) else { throw error("object without end") }
        return members
    }

    private mutating func elements(_ depth: Int) throws(DatabaseError) -> [JSONTree] {
        offset += 1
        var elements: [JSONTree] = []
        if taken(UInt8(ascii: "]")) { return elements }
        repeat { elements.append(try value(depth: depth + 1)) } while taken(UInt8(ascii: ","))
        guard taken(UInt8(ascii: "]")) else { throw error("list without end") }
        return elements
    }

    /// Skips space, then `byte` if it comes next.
    private mutating func taken(_ byte: UInt8) -> Bool {
        skipSpace()
        guard offset < bytes.count, bytes[offset] == byte else { return false }
        offset += 1
        return true
    }

    private mutating func number() throws(DatabaseError) -> Bytes {
        let start = offset
        while offset < bytes.count {
            switch bytes[offset] {
            case UInt8(ascii: "0")...UInt8(ascii: "9"), UInt8(ascii: "-"), UInt8(ascii: "+"),
                UInt8(ascii: "."), UInt8(ascii: "e"), UInt8(ascii: "E"):
                offset += 1
                continue
            default: break
            }
            break
        }
        guard offset > start else { throw error("no value") }
        return Bytes(bytes[start..<offset])
    }

    private mutating func text() throws(DatabaseError) -> Bytes {
        offset += 1
        let start = offset
        while offset < bytes.count, bytes[offset] != UInt8(ascii: "\""),
            bytes[offset] != UInt8(ascii: "\\")
        {
            offset += 1
        }
        var text = Bytes(bytes[start..<offset])
        while offset < bytes.count {
            let byte = bytes[offset]
            offset += 1
            if byte == UInt8(ascii: "\"") { return text }
            guard byte == UInt8(ascii: "\\") else {
                text.append(byte)
                continue
            }
            try escape(into: &text)
        }
        throw error("text without end")
    }

    private mutating func escape(into text: inout Bytes) throws(DatabaseError) {
        guard offset < bytes.count else { throw error("text without end") }
        let byte = bytes[offset]
        offset += 1
        switch byte {
        case UInt8(ascii: "n"): text.append(0x0A)
        case UInt8(ascii: "t"): text.append(0x09)
        case UInt8(ascii: "r"): text.append(0x0D)
        case UInt8(ascii: "b"): text.append(0x08)
        case UInt8(ascii: "f"): text.append(0x0C)
        case UInt8(ascii: "u"):
            var code = UInt32(try fourDigits())
            if (0xD800..<0xDC00).contains(code), bytes.count - offset >= 6,
                bytes[offset] == UInt8(ascii: "\\"), bytes[offset + 1] == UInt8(ascii: "u")
            {
                offset += 2
                code = 0x10000 + (code - 0xD800) << 10
                let low = UInt32(try fourDigits())
                guard (0xDC00..<0xE000).contains(low) else { throw error("half a character") }
                code += low - 0xDC00
            }
            guard let scalar = Unicode.Scalar(code) else { throw error("half a character") }
            text.append(contentsOf: String(Character(scalar)).utf8)
        default: text.append(byte)
        }
    }

    private mutating func fourDigits() throws(DatabaseError) -> UInt16 {
        guard bytes.count - offset >= 4,
            let code = UInt16(
                String(decoding: bytes[offset..<offset + 4], as: UTF8.self), radix: 16)
        else { throw error("no character code") }
        offset += 4
        return code
    }
}
