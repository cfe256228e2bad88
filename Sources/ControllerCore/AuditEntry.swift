// The audit log's records: who asked for what, and what came of it, each sealed with the hash of the
// one before, so that none can be changed or taken out unseen.

import KVBase

/// One record of the audit log. A command leaves two: one before it is carried out, one with what
/// came of it.
public struct AuditEntry: Hashable, Sendable {
    public enum Event: Hashable, Sendable {
        /// The arguments, as JSON.
        case requested(arguments: String)
        /// What came of the request with this number. `isDone`: it was accepted; else `text` says why
        /// not.
        case answered(request: UInt64, isDone: Bool, text: String)
    }

    /// Where entries stand in the metadata store.
    public static var storePrefix: Bytes { StoreKey.auditPrefix }

    /// Of a seal.
    static let sealBytes = 32

    /// Rises by one with each.
    public var number: UInt64
    /// Wall clock in milliseconds since 1970.
    public var at: UInt64
    /// As the caller introduced itself: `alice@host`, or the name of a router.
    public var caller: String
    /// Where it connected from.
    public var address: String
    /// As in the admin protocol: `table.create`.
    public var verb: String
    public var event: Event
    /// The seal of the entry before, empty for the very first.
    public var previous: Bytes
    /// The hash of everything above.
    public private(set) var seal: Bytes

    /// `hash` is SHA-256: cores import no library.
    public init(
        after head: AuditHead, at: UInt64, caller: String, address: String, verb: String,
        event: Event, hash: (Bytes) -> Bytes
    ) {
        number = head.next
        self.at = at
        self.caller = caller
        self.address = address
        self.verb = verb
        self.event = event
        previous = head.seal
        seal = []
        seal = hash(sealedBytes)
    }

    /// What the seal is the hash of.
    public var sealedBytes: Bytes {
        var writer = ByteWriter()
        writer.write(number)
        writer.write(at)
        writer.write(caller)
        writer.write(address)
        writer.write(verb)
        switch event {
        case .requested(let arguments):
            writer.write(UInt8(0))
            writer.write(arguments)
        case .answered(let request, let isDone, let text):
            writer.write(UInt8(1))
            writer.write(request)
            writer.write(isDone)
            writer.write(text)
        }
        writer.write(previous)
        return writer.take()
    }

    func encode(into writer: inout ByteWriter) {
        writer.writeRaw(sealedBytes)
        writer.write(seal)
    }

    public init(from reader: inout ByteReader) throws(DatabaseError) {
        number = try reader.readUInt64()
        at = try reader.readUInt64()
        caller = try reader.readString()
        address = try reader.readString()
        verb = try reader.readString()
        switch try reader.readUInt8() {
        case 0: event = .requested(arguments: try reader.readString())
        case 1:
            event = .answered(
                request: try reader.readUInt64(), isDone: try reader.readBool(),
                text: try reader.readString())
        case let other: throw DatabaseError(.malformed, "audit entry of kind \(other)")
        }
        previous = try reader.readBytes()
        seal = try reader.readBytes()
    }
}

/// Where the audit log stands.
public struct AuditHead: Hashable, Sendable {
    /// The oldest entry that is kept; equals `next` when there is none.
    public var first: UInt64 = 1
    /// The number of the entry to come.
    public var next: UInt64 = 1
    /// Of the newest entry, empty when there never was one.
    public var seal: Bytes = []

    public init() {}

    /// Where it stands in the metadata store.
    public static var storeKey: Bytes { StoreKey.auditHead }

    /// As it is stored; that of an empty log without a record.
    public init(_ record: MetadataRecord?) throws(DatabaseError) {
        self.init()
        guard let record else { return }
        self = try ByteReader.decode(record.value) { (reader) throws(DatabaseError) in
            try AuditHead(from: &reader)
        }
    }

    func encode(into writer: inout ByteWriter) {
        writer.write(first)
        writer.write(next)
        writer.write(seal)
    }

    public init(from reader: inout ByteReader) throws(DatabaseError) {
        first = try reader.readUInt64()
        next = try reader.readUInt64()
        seal = try reader.readBytes()
        guard first <= next, first > 0 else {
            throw DatabaseError(.malformed, "audit log from \(first) to \(next)")
        }
    }
}

extension MetadataTransaction {
    /// Puts a sealed entry behind `head`, for whoever writes the log without being the acting controller.
    mutating func audit(_ entry: AuditEntry, behind head: inout AuditHead) {
        head.next += 1
        head.seal = entry.seal
        put(StoreKey.audit(entry.number)) { entry.encode(into: &$0) }
    }
}

extension Controller {
    /// Stores an entry. What it is about is stored after it, so a command that took effect is in the
    /// log.
    mutating func audit(_ entry: AuditEntry, into effects: inout ControllerEffects) {
        guard isActing else { return }
        precondition(entry.number == auditHead.next && entry.previous == auditHead.seal)
        auditHead.next += 1
        auditHead.seal = entry.seal
        var transaction = MetadataTransaction()
        transaction.put(StoreKey.audit(entry.number)) { entry.encode(into: &$0) }
        while auditHead.next - auditHead.first > settings.auditEntriesMax {
            transaction.changes.append(.delete(key: StoreKey.audit(auditHead.first)))
            auditHead.first += 1
        }
        transaction.put(StoreKey.auditHead) { auditHead.encode(into: &$0) }
        store(transaction, then: .nothing, into: &effects)
    }
}
