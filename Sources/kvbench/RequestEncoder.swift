// Requests as bytes: fixed pieces around a key and a value, appended straight to a send buffer.

import KVBase
import RESP

/// Encodes the requests of one run.
struct RequestEncoder {
    private let keyBytes: Int
    private let valueBytes: Int
    private let putHead: Bytes
    private let putMiddle: Bytes
    private let getHead: Bytes
    private let getTail: Bytes
    /// Random text; each value is a piece of it, so that no compression flatters the server.
    private let valuePool: Bytes
    private static let valueStarts = 4096

    init(_ options: BenchOptions) {
        keyBytes = options.keyBytes
        valueBytes = options.valueBytes
        let table = Bytes(options.table.utf8)
        func command(_ words: [Bytes], arguments: Int) -> Bytes {
            var bytes: Bytes = []
            CommandEncoder.appendHeader(arguments, to: &bytes)
            for word in words { CommandEncoder.append(argument: word, to: &bytes) }
            return bytes + Self.length(options.keyBytes)
        }
        let isList = options.workload == .list
        switch options.dialect {
        case .hset:
            putHead = command([Bytes("HSET".utf8), table], arguments: 4)
            getHead =
                isList
                ? command([Bytes("KV.LIST".utf8), table, Bytes("FROM".utf8)], arguments: 6)
                : command([Bytes("HGET".utf8), table], arguments: 3)
        case .set:
            putHead = command([Bytes("SET".utf8)], arguments: 3)
            getHead = command([Bytes("GET".utf8)], arguments: 2)
        }
        putMiddle = Self.lineEnd + Self.length(options.valueBytes)
        getTail = Self.lineEnd + (isList ? Bytes("$5\r\nLIMIT\r\n$3\r\n100\r\n".utf8) : [])
        var random = SeededRandom(seed: options.seed)
        valuePool = (0..<options.valueBytes + Self.valueStarts).map { _ in
            UInt8(ascii: "0") + UInt8(random.below(75))
        }
    }

    /// Appends a write of key number `key`.
    func appendPut(_ key: UInt64, to bytes: inout Bytes) {
        bytes.append(contentsOf: putHead)
        append(key, to: &bytes)
        bytes.append(contentsOf: putMiddle)
        let start = Int(SeededRandom.mix(key) % UInt64(Self.valueStarts))
        bytes.append(contentsOf: valuePool[start..<start + valueBytes])
        bytes.append(contentsOf: Self.lineEnd)
    }

    /// Appends a read of key number `key`, or a list from it on.
    func appendGet(_ key: UInt64, to bytes: inout Bytes) {
        bytes.append(contentsOf: getHead)
        append(key, to: &bytes)
        bytes.append(contentsOf: getTail)
    }

    /// Decimal digits with leading zeros, `keyBytes` of them.
    private func append(_ key: UInt64, to bytes: inout Bytes) {
        let start = bytes.count
        bytes.append(contentsOf: repeatElement(UInt8(ascii: "0"), count: keyBytes))
        var rest = key
        var position = start + keyBytes
        while rest > 0 {
            position -= 1
            bytes[position] = UInt8(ascii: "0") + UInt8(rest % 10)
            rest /= 10
        }
    }

    private static let lineEnd = Bytes("\r\n".utf8)
    private static func length(_ count: Int) -> Bytes { Bytes("$\(count)\r\n".utf8) }
}
