// The last transaction of a store that the metadata leaves.

import KVBase

/// The mark of a move and the audit log's word on it, as one revision: whoever finds one finds the other, in
/// both stores.
public enum MoveMark {
    /// What the audit log says of the request to move.
    public struct Request: Hashable, Sendable {
        public var number: UInt64
        public var caller: String
        public var address: String
        public var verb: String

        public init(number: UInt64, caller: String, address: String, verb: String) {
            self.number = number
            self.caller = caller
            self.address = address
            self.verb = verb
        }
    }

    /// `get` reads the state that is to move; `move` is the record of the move. Whatever another controller
    /// did since makes the comparison of the term fail: it raises the term first.
    public static func transaction(
        _ get: (Bytes) -> MetadataRecord?, move: Bytes, request: Request, said text: String,
        at: UInt64, hash: (Bytes) -> Bytes
    ) throws(DatabaseError) -> MetadataTransaction {
        var transaction = MetadataTransaction()
        for key in [StoreKey.term, StoreKey.home, StoreKey.auditHead] {
            transaction.comparisons.append(
                .init(key: key, modRevision: get(key)?.modRevision ?? .none))
        }
        transaction.put(StoreKey.home) { $0.writeRaw(move) }
        var head = try AuditHead(get(StoreKey.auditHead))
        let entry = AuditEntry(
            after: head, at: at, caller: request.caller, address: request.address,
            verb: request.verb,
            event: .answered(request: request.number, isDone: true, text: text), hash: hash)
        transaction.audit(entry, behind: &head)
        transaction.put(StoreKey.auditHead) { head.encode(into: &$0) }
        return transaction
    }
}
