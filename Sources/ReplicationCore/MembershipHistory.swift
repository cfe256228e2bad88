// The memberships that a replica's log holds, by the index from which each is in force.

import KVBase

/// Invariants: never empty; indexes rise; the first is in force at the log's compaction point.
struct MembershipHistory: Sendable {
    private var records: [(index: LogIndex, membership: Membership)]

    init(index: LogIndex, membership: Membership) { records = [(index, membership)] }

    /// In force: a membership counts from the moment it is appended, committed or not.
    var current: Membership { records[records.count - 1].membership }
    var currentIndex: LogIndex { records[records.count - 1].index }

    /// The membership in force at `index`, or the oldest known one.
    func membership(at index: LogIndex) -> Membership {
        (records.last { $0.index <= index } ?? records[0]).membership
    }

    /// Whether `replica` votes in the membership in force at `commit` or in any later one. Until a
    /// membership without it is committed, a replica may hold entries that the others need to go on,
    /// so it must be able to lead (Ongaro 2014, section 4.2.2).
    func isVoter(_ replica: ReplicaID, sinceCommit commit: LogIndex) -> Bool {
        for record in records.reversed() {
            if record.membership.isVoter(replica) { return true }
            if record.index <= commit { return false }
        }
        return false
    }

    mutating func append(index: LogIndex, membership: Membership) {
        precondition(index > currentIndex)
        records.append((index, membership))
    }

    /// Forgets memberships at or above `first`.
    mutating func truncate(from first: LogIndex) {
        while records.count > 1, currentIndex >= first { records.removeLast() }
    }

    /// Forgets what was superseded at or below `index`.
    mutating func compact(through index: LogIndex) {
        while records.count > 1, records[1].index <= index { records.removeFirst() }
    }

    mutating func reset(index: LogIndex, membership: Membership) {
        records = [(index, membership)]
    }
}

extension Membership {
    /// Reads the payload of an entry of kind `.membership`.
    public static func decode(_ payload: Bytes) throws(DatabaseError) -> Membership {
        try ByteReader.decode(payload) { (reader) throws(DatabaseError) in
            try Membership(from: &reader)
        }
    }

    /// The payload of an entry of kind `.membership`.
    public func encoded() -> Bytes {
        var writer = ByteWriter()
        encode(into: &writer)
        return writer.take()
    }
}
