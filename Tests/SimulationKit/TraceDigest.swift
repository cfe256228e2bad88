// A fingerprint of a whole run: equal seeds must give equal traces, in every process.

import KVBase
import ReplicationCore

struct TraceDigest {
    private(set) var value: UInt64 = 0

    mutating func add(_ word: UInt64) { value = SeededRandom.mix(value ^ word &+ 0x9E37) }

    mutating func add(_ message: Message) {
        add(message.term.rawValue)
        switch message {
        case .voteRequest(_, let last, let isPreVote, let leaseReleased):
            add(1 + (isPreVote ? 64 : 0) + (leaseReleased ? 128 : 0))
            add(last.index.rawValue)
            add(last.term.rawValue)
        case .voteResponse(_, let isPreVote, let granted, let retryAfter):
            add(2 + (isPreVote ? 64 : 0) + (granted ? 128 : 0))
            add(retryAfter.count)
        case .append(_, let previous, let entries, let commit):
            add(3)
            add(previous.index.rawValue)
            add(commit.rawValue)
            for entry in entries { add(Checkers.hash(entry)) }
        case .appendResponse(_, let accepted, let match, let hint):
            add(4 + (accepted ? 64 : 0))
            add(match.rawValue)
            add(hint.index.rawValue)
        case .heartbeat(_, let commit, let sentAt, let round):
            add(5)
            add(commit.rawValue)
            add(sentAt.nanoseconds)
            add(round)
        case .heartbeatResponse(_, let accepted, let sentAt, let round, let match):
            add(6 + (accepted ? 64 : 0))
            add(sentAt.nanoseconds)
            add(round)
            add(match.rawValue)
        case .timeoutNow:
            add(7)
        case .snapshotInstalled(_, let position):
            add(8)
            add(position.index.rawValue)
        }
    }
}
