// Encoding of integers and byte strings, little-endian, into one growing buffer.

/// Appends to a buffer that it owns. All integers are little-endian; lengths are 4 bytes.
public struct ByteWriter: Sendable {
    public private(set) var bytes: Bytes = []

    public init() {}
    public init(reserving capacity: Int) { bytes.reserveCapacity(capacity) }
    /// Goes on writing behind `bytes`.
    public init(continuing bytes: consuming Bytes) { self.bytes = bytes }

    public var count: Int { bytes.count }

    @inlinable
    public mutating func write(_ value: UInt8) { append(value) }
    public mutating func write(_ value: Bool) { bytes.append(value ? 1 : 0) }
    public mutating func write(_ value: UInt16) { appendInteger(value) }
    public mutating func write(_ value: UInt32) { appendInteger(value) }
    public mutating func write(_ value: UInt64) { appendInteger(value) }
    public mutating func write(_ value: some IntegerIdentity) { appendInteger(value.rawValue) }

    public mutating func write(_ value: Sequencer) {
        appendInteger(value.time)
        appendInteger(value.counter)
        appendInteger(value.node.rawValue)
    }

    /// A 4-byte length, then the bytes.
    public mutating func write(_ value: UnsafeRawBufferPointer) {
        appendInteger(UInt32(value.count))
        bytes.append(contentsOf: value)
    }

    public mutating func write(_ value: Bytes) {
        appendInteger(UInt32(value.count))
        bytes.append(contentsOf: value)
    }

    public mutating func write(_ value: String) {
        var copy = value
        copy.withUTF8 { write(UnsafeRawBufferPointer($0)) }
    }

    public mutating func write(_ value: Bytes?) {
        write(value != nil)
        if let value { write(value) }
    }

    /// A 4-byte count, then each element.
    public mutating func write<Element>(
        list: some Collection<Element>, _ body: (inout ByteWriter, Element) -> Void
    ) {
        appendInteger(UInt32(list.count))
        for element in list { body(&self, element) }
    }

    /// Bytes without a length.
    public mutating func writeRaw(_ value: UnsafeRawBufferPointer) {
        bytes.append(contentsOf: value)
    }

    public mutating func writeRaw(_ value: Bytes) { bytes.append(contentsOf: value) }

    /// Overwrites four bytes that were written before, for lengths and checksums known only later.
    public mutating func patch(_ value: UInt32, at offset: Int) {
        precondition(offset + 4 <= bytes.count)
        bytes.withUnsafeMutableBytes {
            $0.storeBytes(of: value.littleEndian, toByteOffset: offset, as: UInt32.self)
        }
    }

    /// Empties the buffer and keeps its capacity.
    public mutating func removeAll() { bytes.removeAll(keepingCapacity: true) }

    /// Hands the buffer out and starts an empty one.
    public mutating func take() -> Bytes {
        var out: Bytes = []
        swap(&out, &bytes)
        return out
    }

    @usableFromInline
    mutating func append(_ value: UInt8) { bytes.append(value) }

    private mutating func appendInteger<T: FixedWidthInteger>(_ value: T) {
        withUnsafeBytes(of: value.littleEndian) { bytes.append(contentsOf: $0) }
    }
}

extension ByteWriter {
    /// An outcome: 0 for none, else the code, then the message.
    public mutating func write(_ error: DatabaseError?) {
        write(error?.code.rawValue ?? 0)
        if let error { write(error.message) }
    }
}
