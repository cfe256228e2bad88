// Changes for an engine, encoded into one flat buffer that is reused from batch to batch.

import KVBase

/// One change, its bytes where they lie in the batch.
public enum EngineOperation {
    case put(key: UnsafeRawBufferPointer, value: UnsafeRawBufferPointer)
    case delete(key: UnsafeRawBufferPointer)
    /// Every key with `from <= key < to`.
    case deleteRange(from: UnsafeRawBufferPointer, to: UnsafeRawBufferPointer)
}

/// An atomic set of changes in order: a later change of the same key wins.
///
/// Layout of one operation: kind (1 byte), length of the first string, length of the second (4 bytes
/// each, host order; the buffer never leaves the process), the two strings.
public struct EngineBatch: Sendable {
    private enum Kind: UInt8 {
        case put, delete, deleteRange
    }

    private static let headBytes = 9

    private var bytes: Bytes = []
    /// Number of operations.
    public private(set) var count = 0

    public init() {}

    /// Bytes of the encoded operations.
    public var byteCount: Int { bytes.count }
    public var isEmpty: Bool { count == 0 }

    /// Precondition, here and below: the key is not empty.
    public mutating func put(key: UnsafeRawBufferPointer, value: UnsafeRawBufferPointer) {
        precondition(!key.isEmpty)
        appendHead(.put, key.count, value.count)
        bytes.append(contentsOf: key)
        bytes.append(contentsOf: value)
    }

    /// The value is `header` followed by `value`.
    public mutating func put(
        key: UnsafeRawBufferPointer, header: UnsafeRawBufferPointer, value: UnsafeRawBufferPointer
    ) {
        precondition(!key.isEmpty)
        appendHead(.put, key.count, header.count + value.count)
        bytes.append(contentsOf: key)
        bytes.append(contentsOf: header)
        bytes.append(contentsOf: value)
    }

    public mutating func delete(key: UnsafeRawBufferPointer) {
        precondition(!key.isEmpty)
        appendHead(.delete, key.count, 0)
        bytes.append(contentsOf: key)
    }

    /// Deletes every key with `from <= key < to`; nothing when `from >= to`.
    public mutating func deleteRange(from: UnsafeRawBufferPointer, to: UnsafeRawBufferPointer) {
        guard compareBytes(from, to) < 0 else { return }
        appendHead(.deleteRange, from.count, to.count)
        bytes.append(contentsOf: from)
        bytes.append(contentsOf: to)
    }

    /// Empties the batch and keeps its buffer.
    public mutating func removeAll() {
        bytes.removeAll(keepingCapacity: true)
        count = 0
    }

    /// The operations in the order they were added.
    public func forEachOperation(_ body: (EngineOperation) -> Void) {
        bytes.withUnsafeBytes { buffer in
            var offset = 0
            while offset < buffer.count {
                let first = Int(buffer.loadUnaligned(fromByteOffset: offset + 1, as: UInt32.self))
                let second = Int(buffer.loadUnaligned(fromByteOffset: offset + 5, as: UInt32.self))
                let start = offset + Self.headBytes
                let a = UnsafeRawBufferPointer(rebasing: buffer[start..<start + first])
                let b = UnsafeRawBufferPointer(
                    rebasing: buffer[start + first..<start + first + second])
                switch buffer[offset] {
                case Kind.put.rawValue: body(.put(key: a, value: b))
                case Kind.delete.rawValue: body(.delete(key: a))
                default: body(.deleteRange(from: a, to: b))
                }
                offset = start + first + second
            }
        }
    }

    private mutating func appendHead(_ kind: Kind, _ first: Int, _ second: Int) {
        bytes.append(kind.rawValue)
        withUnsafeBytes(of: UInt32(first)) { bytes.append(contentsOf: $0) }
        withUnsafeBytes(of: UInt32(second)) { bytes.append(contentsOf: $0) }
        count += 1
    }
}
