// Reads that a group's leader cannot answer yet.

import KVBase
import ReplicationCore

/// Reads that wait until a certain entry is applied, and those that wait for the word of a majority first.
struct WaitingReads {
    struct Read {
        /// Serve once this is applied.
        var index: LogIndex
        var waiter: Waiter
        var operation: Bytes
    }

    private var deferred: [Read] = []
    /// By the token given to the core.
    private var unconfirmed: [UInt64: Read] = [:]
    private var nextToken: UInt64 = 1

    var count: Int { deferred.count + unconfirmed.count }

    mutating func append(_ read: Read) { deferred.append(read) }

    /// Returns the token under which the core is asked.
    mutating func awaitMajority(_ read: Read) -> UInt64 {
        let token = nextToken
        nextToken += 1
        unconfirmed[token] = read
        return token
    }

    /// The core has answered; nil when the read is gone.
    mutating func takeUnconfirmed(_ token: UInt64) -> Read? {
        unconfirmed.removeValue(forKey: token)
    }

    /// What the entries up to `applied` release, in the order in which it came.
    mutating func takeReady(applied: LogIndex) -> [Read] {
        guard !deferred.isEmpty else { return [] }
        let ready = deferred.filter { $0.index <= applied }
        if !ready.isEmpty { deferred.removeAll { $0.index <= applied } }
        return ready
    }

    /// What was expected at `index` and behind it lies `distance` further.
    mutating func shift(from index: LogIndex, by distance: UInt64) {
        for place in deferred.indices where deferred[place].index >= index {
            deferred[place].index = LogIndex(deferred[place].index.rawValue + distance)
        }
    }

    /// What was expected behind `last` is not logged.
    mutating func limit(to last: LogIndex) {
        for place in deferred.indices where deferred[place].index > last {
            deferred[place].index = last
        }
    }

    /// In the order in which they came, as far as that is known.
    mutating func removeAll() -> [Read] {
        let all = deferred + unconfirmed.sorted { $0.key < $1.key }.map(\.value)
        deferred.removeAll()
        unconfirmed.removeAll()
        return all
    }
}
