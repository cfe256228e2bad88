// The audit log as a whole, as it is stored, and whether it is as it was written.

import KVBase

public struct AuditTrail: Sendable {
    /// In the order of their numbers.
    public let entries: [AuditEntry]
    public let head: AuditHead
    /// The first record of the store that is no entry.
    private let unreadable: String?

    /// `records`: all under `AuditEntry.storePrefix`, in order.
    public init(_ records: [MetadataRecord], head: AuditHead) {
        var entries: [AuditEntry] = []
        var unreadable: String?
        for record in records {
            do throws(DatabaseError) {
                entries.append(
                    try ByteReader.decode(record.value) { (reader) throws(DatabaseError) in
                        try AuditEntry(from: &reader)
                    })
            } catch {
                unreadable = unreadable ?? "a record cannot be read: \(error.message)"
            }
        }
        self.entries = entries
        self.head = head
        self.unreadable = unreadable
    }

    /// What is wrong with the log; nil when every entry is there and as it was written. `anchor` is
    /// a head that somebody noted earlier; `hash` is SHA-256.
    public func fault(since anchor: AuditAnchor?, hash: (Bytes) -> Bytes) -> String? {
        if let unreadable { return unreadable }
        var next = head.first
        var seal = entries.first?.previous ?? head.seal
        if let anchor, anchor.number + 1 == head.first, anchor.seal != seal {
            return "entry \(anchor.number) was another one when its seal was noted"
        }
        for entry in entries {
            guard entry.number == next else {
                return entry.number < next
                    ? "entry \(entry.number) is out of place" : "entry \(next) is missing"
            }
            guard entry.previous == seal else {
                return "entry \(entry.number) does not follow entry \(next - 1) as it is now"
            }
            guard hash(entry.sealedBytes) == entry.seal else {
                return "entry \(entry.number) was changed"
            }
            if let anchor, anchor.number == entry.number, anchor.seal != entry.seal {
                return "entry \(entry.number) was another one when its seal was noted"
            }
            seal = entry.seal
            next += 1
        }
        guard next == head.next else { return "entry \(next) is missing" }
        guard seal == head.seal else { return "the newest entry is not the one that was written" }
        if let anchor, anchor.number >= next {
            return "entry \(anchor.number) is missing: the log ends with \(next - 1)"
        }
        return nil
    }
}

/// A seal that an operator noted: `NUMBER:SEAL`, as `kvctl audit verify` prints it.
public struct AuditAnchor: Hashable, Sendable {
    public let number: UInt64
    public let seal: Bytes

    /// The newest entry; nil while there is none.
    public init?(_ head: AuditHead) {
        guard head.next > 1 else { return nil }
        number = head.next - 1
        seal = head.seal
    }

    public init(_ text: String) throws(DatabaseError) {
        let parts = text.split(separator: ":", omittingEmptySubsequences: false)
        guard parts.count == 2, let number = UInt64(parts[0]),
            parts[1].utf8.count == 2 * AuditEntry.sealBytes,
            let seal = Self.bytes(hexadecimal: parts[1])
        else {
            throw DatabaseError(
                .invalidRequest, "a noted head is NUMBER:SEAL, as kvctl audit verify prints it")
        }
        self.number = number
        self.seal = seal
    }

    /// The text of the newest entry; nil while there is none.
    public static func text(_ head: AuditHead) -> String? {
        AuditAnchor(head).map { anchor in
            "\(anchor.number):" + anchor.seal.map { hex(UInt64($0), count: 2) }.joined()
        }
    }

    private static func bytes(hexadecimal text: Substring) -> Bytes? {
        let digits = text.map(\.hexDigitValue)
        var bytes: Bytes = []
        for index in stride(from: 0, to: digits.count, by: 2) {
            guard let high = digits[index], let low = digits[index + 1] else { return nil }
            bytes.append(UInt8(high << 4 | low))
        }
        return bytes
    }
}
