// Finds the ends of replies in a stream without building them.

import KVBase

/// Walks over the replies of one connection (RESP2 and the scalar types of RESP3). Bytes of a reply
/// that is not complete are kept until the rest comes.
struct ReplyScanner {
    enum Reply: Equatable {
        case value
        /// A null: there is no such record.
        case absent
        /// The first word of an error.
        case error(String)
    }

    private enum Step {
        case incomplete
        case malformed
        /// A reply that ends at this offset.
        case reply(Reply, end: Int)
    }

    private var kept: Bytes = []

    /// Calls `body` with each reply that `bytes` complete. False when the stream is malformed.
    mutating func scan(
        _ bytes: UnsafeRawBufferPointer, _ body: (Reply) -> Void
    ) -> Bool {
        if kept.isEmpty {
            guard let end = Self.scanAll(bytes, body) else { return false }
            if end < bytes.count {
                kept.append(contentsOf: UnsafeRawBufferPointer(rebasing: bytes[end...]))
            }
            return true
        }
        kept.append(contentsOf: bytes)
        let end = kept.withUnsafeBytes { Self.scanAll($0, body) }
        guard let end else { return false }
        kept.removeFirst(end)
        return true
    }

    /// Where the first incomplete reply starts; nil when the stream is malformed.
    private static func scanAll(
        _ bytes: UnsafeRawBufferPointer, _ body: (Reply) -> Void
    ) -> Int? {
        var offset = 0
        while true {
            switch step(bytes, at: offset) {
            case .incomplete: return offset
            case .malformed: return nil
            case .reply(let reply, let end):
                body(reply)
                offset = end
            }
        }
    }

    private static func step(_ bytes: UnsafeRawBufferPointer, at start: Int) -> Step {
        var offset = start
        /// Elements still to come, of all arrays that are open.
        var remaining = 1
        var first: Reply?
        while remaining > 0 {
            guard let end = lineEnd(bytes, from: offset) else { return .incomplete }
            let kind = bytes[offset]
            let line = UnsafeRawBufferPointer(rebasing: bytes[offset + 1..<end])
            offset = end + 2
            remaining -= 1
            var reply = Reply.value
            switch kind {
            case UInt8(ascii: "+"), UInt8(ascii: ":"), UInt8(ascii: ","), UInt8(ascii: "#"): break
            case UInt8(ascii: "_"): reply = .absent
            case UInt8(ascii: "-"):
                let word = line.prefix { $0 != UInt8(ascii: " ") }
                reply = .error(String(decoding: word, as: UTF8.self))
            case UInt8(ascii: "$"):
                guard let count = number(line) else { return .malformed }
                if count < 0 {
                    reply = .absent
                } else {
                    offset += count + 2
                    guard offset <= bytes.count else { return .incomplete }
                }
            case UInt8(ascii: "*"):
                guard let count = number(line) else { return .malformed }
                if count < 0 { reply = .absent } else { remaining += count }
            default: return .malformed
            }
            if first == nil { first = reply }
        }
        return .reply(first ?? .value, end: offset)
    }

    /// The offset of the line's CR; nil when its end has not come.
    private static func lineEnd(_ bytes: UnsafeRawBufferPointer, from start: Int) -> Int? {
        var offset = start
        while offset + 1 < bytes.count {
            if bytes[offset] == 0x0D, bytes[offset + 1] == 0x0A { return offset }
            offset += 1
        }
        return nil
    }

    private static func number(_ line: UnsafeRawBufferPointer) -> Int? {
        guard line.count > 0, line.count <= 10 else { return nil }
        if line.first == UInt8(ascii: "-") { return -1 }
        var value = 0
        for byte in line {
            guard byte >= 0x30, byte <= 0x39 else { return nil }
            value = value * 10 + Int(byte - 0x30)
        }
        return value
    }
}
