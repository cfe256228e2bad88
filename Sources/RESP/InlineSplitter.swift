// Splitting of an inline command into arguments, with the quoting rules of redis-cli and Redis.

import KVBase

/// Words apart by white space. `"..."` knows `\n \r \t \b \a \\ \" \xHH`, `'...'` knows `\'`; after a
/// closing quote white space or the line's end must follow.
struct InlineSplitter {
    private let line: UnsafeRawBufferPointer
    private var offset = 0

    init(line: UnsafeRawBufferPointer) { self.line = line }

    /// Appends the next argument's bytes to `bytes` and tells where they are; nil at the end.
    mutating func next(into bytes: inout [UInt8]) throws(DatabaseError) -> ParsedCommand.Argument? {
        while offset < line.count, Self.isSpace(line[offset]) { offset += 1 }
        guard offset < line.count else { return nil }
        let start = bytes.count
        while offset < line.count, !Self.isSpace(line[offset]) {
            let byte = line[offset]
            offset += 1
            switch byte {
            case UInt8(ascii: "\""): try takeDoubleQuoted(&bytes)
            case UInt8(ascii: "'"): try takeSingleQuoted(&bytes)
            default: bytes.append(byte)
            }
        }
        return .init(offset: start, count: bytes.count - start)
    }

    private mutating func takeDoubleQuoted(_ bytes: inout [UInt8]) throws(DatabaseError) {
        while offset < line.count {
            let byte = line[offset]
            offset += 1
            if byte == UInt8(ascii: "\"") { return try expectEndOfWord() }
            guard byte == UInt8(ascii: "\\"), offset < line.count else {
                bytes.append(byte)
                continue
            }
            let escaped = line[offset]
            offset += 1
            switch escaped {
            case UInt8(ascii: "n"): bytes.append(0x0A)
            case UInt8(ascii: "r"): bytes.append(0x0D)
            case UInt8(ascii: "t"): bytes.append(0x09)
            case UInt8(ascii: "b"): bytes.append(0x08)
            case UInt8(ascii: "a"): bytes.append(0x07)
            case UInt8(ascii: "x"):
                if offset + 1 < line.count, let high = Self.nibble(line[offset]),
                    let low = Self.nibble(line[offset + 1])
                {
                    bytes.append(high << 4 | low)
                    offset += 2
                } else {
                    bytes.append(escaped)
                }
            default: bytes.append(escaped)
            }
        }
        throw CommandParser.error("unbalanced quotes in request")
    }

    private mutating func takeSingleQuoted(_ bytes: inout [UInt8]) throws(DatabaseError) {
        while offset < line.count {
            let byte = line[offset]
            offset += 1
            if byte == UInt8(ascii: "'") { return try expectEndOfWord() }
            if byte == UInt8(ascii: "\\"), offset < line.count, line[offset] == UInt8(ascii: "'") {
                bytes.append(UInt8(ascii: "'"))
                offset += 1
            } else {
                bytes.append(byte)
            }
        }
        throw CommandParser.error("unbalanced quotes in request")
    }

    private func expectEndOfWord() throws(DatabaseError) {
        guard offset == line.count || Self.isSpace(line[offset]) else {
            throw CommandParser.error("unbalanced quotes in request")
        }
    }

    private static func isSpace(_ byte: UInt8) -> Bool {
        byte == 0x20 || (byte >= 0x09 && byte <= 0x0D) || byte == 0
    }

    private static func nibble(_ byte: UInt8) -> UInt8? {
        switch byte {
        case 0x30...0x39: byte - 0x30
        case 0x41...0x46: byte - 0x41 + 10
        case 0x61...0x66: byte - 0x61 + 10
        default: nil
        }
    }
}
