// Decoding of what `ByteWriter` writes, from bytes that may be damaged or hostile.

/// Reads forward over bytes that it does not own: it must not outlive them. Every read checks the
/// bounds and throws `.malformed`; nothing here traps on any input.
public struct ByteReader {
    public let buffer: UnsafeRawBufferPointer
    public private(set) var offset = 0

    public init(_ buffer: UnsafeRawBufferPointer) { self.buffer = buffer }

    public var remaining: Int { buffer.count - offset }
    public var isAtEnd: Bool { offset == buffer.count }

    public mutating func readUInt8() throws(DatabaseError) -> UInt8 { try readInteger() }
    public mutating func readUInt16() throws(DatabaseError) -> UInt16 { try readInteger() }
    public mutating func readUInt32() throws(DatabaseError) -> UInt32 { try readInteger() }
    public mutating func readUInt64() throws(DatabaseError) -> UInt64 { try readInteger() }

    public mutating func readBool() throws(DatabaseError) -> Bool {
        switch try readUInt8() {
        case 0: return false
        case 1: return true
        case let other: throw DatabaseError(.malformed, "boolean byte \(other)")
        }
    }

    public mutating func read<ID: IntegerIdentity>(_: ID.Type = ID.self) throws(DatabaseError)
        -> ID
    {
        ID(rawValue: try readInteger())
    }

    public mutating func readSequencer() throws(DatabaseError) -> Sequencer {
        Sequencer(
            time: try readUInt64(), counter: try readUInt32(), node: NodeID(try readUInt32()))
    }

    /// A 4-byte length, then that many bytes, where they lie.
    public mutating func readSlice() throws(DatabaseError) -> UnsafeRawBufferPointer {
        let count = Int(try readUInt32())
        return try readRaw(count)
    }

    /// `count` bytes without a length, where they lie.
    public mutating func readRaw(_ count: Int) throws(DatabaseError) -> UnsafeRawBufferPointer {
        guard count >= 0, count <= remaining else {
            throw DatabaseError(.malformed, "\(count) bytes announced, \(remaining) there")
        }
        defer { offset += count }
        return UnsafeRawBufferPointer(rebasing: buffer[offset..<offset + count])
    }

    public mutating func readBytes() throws(DatabaseError) -> Bytes { Bytes(try readSlice()) }

    public mutating func readString() throws(DatabaseError) -> String {
        let slice = try readSlice()
        guard let text = String(validating: slice, as: UTF8.self) else {
            throw DatabaseError(.malformed, "text is not UTF-8")
        }
        return text
    }

    public mutating func readOptionalBytes() throws(DatabaseError) -> Bytes? {
        try readBool() ? try readBytes() : nil
    }

    /// A 4-byte count, then that many elements. `elementBytesMin` bounds the count by what can be
    /// there, so that a hostile count reserves no memory.
    public mutating func readList<Element>(
        elementBytesMin: Int = 1,
        _ body: (inout ByteReader) throws(DatabaseError) -> Element
    ) throws(DatabaseError) -> [Element] {
        let count = Int(try readUInt32())
        guard count * max(1, elementBytesMin) <= remaining else {
            throw DatabaseError(.malformed, "list of \(count) in \(remaining) bytes")
        }
        var list: [Element] = []
        list.reserveCapacity(count)
        for _ in 0..<count { list.append(try body(&self)) }
        return list
    }

    /// Throws unless everything was read: trailing bytes mean another version or damage.
    public func expectEnd() throws(DatabaseError) {
        guard isAtEnd else { throw DatabaseError(.malformed, "\(remaining) bytes too many") }
    }

    private mutating func readInteger<T: FixedWidthInteger>() throws(DatabaseError) -> T {
        let size = MemoryLayout<T>.size
        guard size <= remaining else {
            throw DatabaseError(.malformed, "\(size) bytes expected, \(remaining) there")
        }
        defer { offset += size }
        return T(littleEndian: buffer.loadUnaligned(fromByteOffset: offset, as: T.self))
    }
}

extension ByteReader {
    /// Decodes a whole buffer: `body` must read it to the end.
    public static func decode<Result>(
        _ bytes: Bytes, _ body: (inout ByteReader) throws(DatabaseError) -> Result
    ) throws(DatabaseError) -> Result {
        try bytes.withRawBytes { (buffer) throws(DatabaseError) in
            var reader = ByteReader(buffer)
            let result = try body(&reader)
            try reader.expectEnd()
            return result
        }
    }
}

extension ByteReader {
    /// One byte that is the raw value of an enumeration.
    public mutating func readEnum<E: RawRepresentable>(_: E.Type = E.self) throws(DatabaseError)
        -> E
    where E.RawValue == UInt8 {
        let raw = try readUInt8()
        guard let value = E(rawValue: raw) else {
            throw DatabaseError(.malformed, "\(raw) is no \(E.self)")
        }
        return value
    }
}

extension ByteReader {
    public mutating func readError() throws(DatabaseError) -> DatabaseError? {
        let raw = try readUInt8()
        if raw == 0 { return nil }
        guard let code = ErrorCode(rawValue: raw) else {
            throw DatabaseError(.malformed, "error code \(raw)")
        }
        return DatabaseError(code, try readString())
    }
}
