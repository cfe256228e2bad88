// What must hold after every event, whatever the faults (Ongaro 2014, figure 3.2, and more).

import KVBase
import ReplicationCore

/// A broken invariant: what, where, when.
public struct Violation: Error, CustomStringConvertible {
    public var description: String
}

/// Sees the whole group at once. Holds what was ever true, so that nothing may be forgotten.
struct Checkers {
    private struct Place: Hashable {
        var term: UInt64
        var index: UInt64
    }

    private var leaders: [UInt64: ReplicaID] = [:]
    private var votes: [Place: ReplicaID] = [:]
    /// Log matching by induction: an entry names itself and the term of the one before.
    private var entries: [Place: (hash: UInt64, previousTerm: Term)] = [:]
    /// Committed entries by index - 1.
    private var chosen: [(term: Term, hash: UInt64)] = []
    private var digests: [UInt64] = []
    private var commitByTerm: [(term: Term, commit: LogIndex)] = []
    /// Per key the newest version that a finished write or read has shown to a client.
    private var floors = [UInt64](repeating: 0, count: RegisterMachine.keyCount)

    var chosenCount: Int { chosen.count }

    static func hash(_ entry: LogEntry) -> UInt64 {
        let payload = entry.payload.withUnsafeBytes { stableHash($0) }
        let place = SeededRandom.mix(entry.index.rawValue &* 31 &+ entry.term.rawValue)
        return SeededRandom.mix(payload ^ place &+ UInt64(entry.kind.rawValue))
    }

    // MARK: Log

    mutating func appended(
        _ entry: LogEntry, previousTerm: Term, by replica: ReplicaID
    ) throws(Violation) {
        let place = Place(term: entry.term.rawValue, index: entry.index.rawValue)
        let hash = Self.hash(entry)
        if let known = entries[place] {
            guard known.hash == hash, known.previousTerm == previousTerm else {
                throw Violation(
                    description: "log matching: replica \(replica) holds another entry"
                        + " \(entry.index) of term \(entry.term)")
            }
        } else {
            entries[place] = (hash, previousTerm)
        }
    }

    mutating func committed(_ entry: LogEntry, at replica: ReplicaID) throws(Violation) {
        let place = Int(entry.index.rawValue) - 1
        let hash = Self.hash(entry)
        if place < chosen.count {
            guard chosen[place].hash == hash else {
                throw Violation(
                    description: "state machine safety: replica \(replica) applies another entry"
                        + " at \(entry.index): term \(entry.term), not \(chosen[place].term)")
            }
        } else if place == chosen.count {
            chosen.append((entry.term, hash))
        } else {
            throw Violation(description: "replica \(replica) skipped to entry \(entry.index)")
        }
    }

    mutating func applied(_ machine: RegisterMachine, at replica: ReplicaID) throws(Violation) {
        let place = Int(machine.position.index.rawValue) - 1
        if place == digests.count {
            digests.append(machine.digest)
        } else if place > digests.count || digests[place] != machine.digest {
            throw Violation(
                description: "state of replica \(replica) differs at \(machine.position.index)")
        }
    }

    // MARK: Elections

    mutating func voted(
        _ replica: ReplicaID, for candidate: ReplicaID, in term: Term
    ) throws(Violation) {
        let place = Place(term: term.rawValue, index: UInt64(replica.rawValue))
        if let earlier = votes[place], earlier != candidate {
            throw Violation(
                description: "replica \(replica) voted twice in term \(term):"
                    + " for \(earlier) and \(candidate)")
        }
        votes[place] = candidate
    }

    /// Entries committed by leaders of lower terms must be in the log of a new one.
    mutating func leads(
        _ replica: ReplicaID, in term: Term, log: StoredLog
    ) throws(Violation) {
        if let other = leaders[term.rawValue] {
            if other != replica {
                throw Violation(
                    description: "two leaders in term \(term): \(other) and \(replica)")
            }
            return
        }
        leaders[term.rawValue] = replica
        for known in commitByTerm where known.term < term && known.commit > log.compacted.index {
            guard let held = log.term(at: known.commit) else {
                throw Violation(
                    description: "leader completeness: \(replica), leader of \(term), lacks"
                        + " \(known.commit), committed in term \(known.term)")
            }
            let place = Int(known.commit.rawValue) - 1
            if place < chosen.count, chosen[place].term != held {
                throw Violation(
                    description: "leader completeness: \(replica), leader of \(term), holds"
                        + " another entry \(known.commit)")
            }
        }
    }

    mutating func leaderCommitted(_ commit: LogIndex, in term: Term) {
        if let place = commitByTerm.lastIndex(where: { $0.term == term }) {
            commitByTerm[place].commit = max(commitByTerm[place].commit, commit)
        } else {
            commitByTerm.append((term, commit))
            if commitByTerm.count > 64 { commitByTerm.removeFirst() }
        }
    }

    // MARK: Membership

    /// Any quorum of the one and any of the other share a replica.
    func changed(from old: Membership, to new: Membership) throws(Violation) {
        var everyone = old.all
        for member in new.all where !everyone.contains(member) { everyone.append(member) }
        func isQuorum(_ membership: Membership, _ bits: Int) -> Bool {
            func enough(_ list: [Member]) -> Bool {
                var count = 0
                for member in list {
                    let place = everyone.firstIndex(of: member)!
                    if bits >> place & 1 == 1 { count += 1 }
                }
                return count > list.count / 2
            }
            return enough(membership.voters)
                && (membership.outgoing.isEmpty || enough(membership.outgoing))
        }
        if old.voters.isEmpty || new.voters.isEmpty { return }
        if old.voters == new.voters, old.outgoing == new.outgoing { return }
        let all = 1 << everyone.count
        for bits in 0..<all
        where isQuorum(old, bits) && isQuorum(new, (all - 1) ^ bits) {
            throw Violation(description: "quorums of \(old) and \(new) need not meet")
        }
    }

    // MARK: Clients

    /// What a client operation that starts now must not fall behind.
    func floor(of key: Int) -> UInt64 { floors[key] }

    mutating func wrote(key: Int, version: UInt64, floor: UInt64) throws(Violation) {
        guard version > floor else {
            throw Violation(
                description: "write of key \(key) took version \(version), begun after \(floor)")
        }
        floors[key] = max(floors[key], version)
    }

    mutating func read(
        key: Int, version: UInt64, floor: UInt64, by replica: ReplicaID, mode: ReadMode
    ) throws(Violation) {
        guard version >= floor else {
            throw Violation(
                description: "stale \(mode) read of key \(key) at replica \(replica):"
                    + " version \(version), begun after \(floor)")
        }
        floors[key] = max(floors[key], version)
    }
}
