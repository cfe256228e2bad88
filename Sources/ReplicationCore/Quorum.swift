// Majorities: of one voter list, and of both lists while a group is in joint consensus.

import KVBase

enum Quorum {
    /// The smallest number that is more than half of `count`.
    static func majority(of count: Int) -> Int { count / 2 + 1 }

    /// The highest value that a majority of `members` has reached; nil when there are none. Visits
    /// each member once; allocates nothing.
    static func reached<Value: Comparable>(
        _ members: [Member], _ value: (ReplicaID) -> Value
    ) -> Value? {
        if members.isEmpty { return nil }
        return withUnsafeTemporaryAllocation(of: Value.self, capacity: members.count) { sorted in
            var count = 0
            for member in members {
                let new = value(member.replica)
                var place = count
                while place > 0, sorted[place - 1] < new { place -= 1 }
                if place == count {
                    sorted.initializeElement(at: count, to: new)
                } else {
                    sorted.initializeElement(at: count, to: sorted[count - 1])
                    var index = count - 1
                    while index > place {
                        sorted[index] = sorted[index - 1]
                        index -= 1
                    }
                    sorted[place] = new
                }
                count += 1
            }
            defer { UnsafeMutableBufferPointer(rebasing: sorted[..<count]).deinitialize() }
            return sorted[majority(of: count) - 1]
        }
    }

    /// What a majority of the voters and, in joint consensus, one of the outgoing voters has reached.
    static func reached<Value: Comparable>(
        _ membership: Membership, _ value: (ReplicaID) -> Value
    ) -> Value? {
        guard let incoming = reached(membership.voters, value) else { return nil }
        guard let outgoing = reached(membership.outgoing, value) else { return incoming }
        return min(incoming, outgoing)
    }

    /// Whether the replicas for which `holds` is true are enough to decide.
    static func isReached(_ membership: Membership, _ holds: (ReplicaID) -> Bool) -> Bool {
        func enough(_ members: [Member]) -> Bool {
            var count = 0
            for member in members where holds(member.replica) { count += 1 }
            return count >= majority(of: members.count)
        }
        guard !membership.voters.isEmpty, enough(membership.voters) else { return false }
        return membership.outgoing.isEmpty || enough(membership.outgoing)
    }
}
