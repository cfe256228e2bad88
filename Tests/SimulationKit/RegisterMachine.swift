// The state machine of the simulation: one register per key, every written value unique.

import KVBase
import ReplicationCore

struct RegisterMachine {
    static let keyCount = 8

    var position = LogPosition()
    var membership: Membership
    /// Per key the value and the index of the entry that wrote it.
    var values = [UInt64](repeating: 0, count: keyCount)
    var versions = [UInt64](repeating: 0, count: keyCount)
    /// Over everything applied so far.
    var digest: UInt64 = 0

    init(membership: Membership) { self.membership = membership }

    static func encode(key: Int, value: UInt64, padding: Int) -> Bytes {
        var writer = ByteWriter(reserving: 9 + padding)
        writer.write(UInt8(key))
        writer.write(value)
        writer.writeRaw(Bytes(repeating: 0x2E, count: padding))
        return writer.take()
    }

    mutating func apply(_ entry: LogEntry) {
        precondition(entry.index == position.index.next())
        position = LogPosition(index: entry.index, term: entry.term)
        digest = SeededRandom.mix(digest ^ Checkers.hash(entry))
        switch entry.kind {
        case .noop: break
        case .membership:
            guard let decoded = try? Membership.decode(entry.payload) else {
                preconditionFailure("membership entry \(entry.index) does not decode")
            }
            membership = decoded
        case .command:
            let key = Int(entry.payload[0])
            var value: UInt64 = 0
            for offset in (1...8).reversed() { value = value << 8 | UInt64(entry.payload[offset]) }
            values[key] = value
            versions[key] = entry.index.rawValue
        }
    }
}
