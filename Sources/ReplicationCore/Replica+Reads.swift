// Reads: by lease at once, or by a heartbeat round to a majority (Ongaro 2014, section 6.4).

import KVBase

/// Reads that wait for a majority to confirm the leadership. One round is on its way at a time;
/// reads that arrive meanwhile share the next one.
///
/// Invariant: a read's round is sent after the read arrived.
struct QuorumReads: Sendable {
    private var pending: [(token: UInt64, round: UInt64, index: LogIndex)] = []
    /// The newest round that went out with heartbeats, and the newest a majority answered.
    private(set) var sent: UInt64 = 0
    private(set) var confirmed: UInt64 = 0

    var count: Int { pending.count }
    /// Reads wait for a round that was not sent, and none is on its way.
    var needsRound: Bool { confirmed >= sent && (pending.last?.round ?? 0) > sent }

    mutating func add(token: UInt64, index: LogIndex) { pending.append((token, sent + 1, index)) }

    /// The round to put on heartbeats that leave now.
    mutating func startRound() -> UInt64 {
        if (pending.last?.round ?? 0) > sent { sent += 1 }
        return sent
    }

    mutating func confirm(round: UInt64, into effects: inout Effects) {
        confirmed = max(confirmed, min(round, sent))
        var count = 0
        while count < pending.count, pending[count].round <= confirmed {
            effects.readsReady.append((pending[count].token, pending[count].index))
            count += 1
        }
        pending.removeFirst(count)
    }

    mutating func refuseAll(into effects: inout Effects) {
        for read in pending { effects.readsRefused.append((read.token, .notLeader)) }
        pending.removeAll()
    }
}

extension Replica {
    mutating func read(
        token: UInt64, mode: ReadMode, now: Instant, into effects: inout Effects
    ) {
        guard role == .leader else {
            effects.readsRefused.append((token, .notLeader))
            return
        }
        switch mode {
        case .lease:
            if canServeReads(at: now) {
                effects.readsReady.append((token, .none))
            } else {
                effects.readsRefused.append((token, .notReady))
            }
        case .quorum:
            guard applied >= termStart, reads.count < tuning.quorumReadsMax else {
                effects.readsRefused.append((token, .notReady))
                return
            }
            reads.add(token: token, index: commit)
            if reads.needsRound { sendHeartbeats(now: now, into: &effects) }
        }
    }

    /// Serves the reads whose round a majority has answered, then sends the next round.
    mutating func advanceReads(now: Instant, into effects: inout Effects) {
        finishReads(into: &effects)
        if reads.needsRound { sendHeartbeats(now: now, into: &effects) }
    }

    mutating func finishReads(into effects: inout Effects) {
        guard reads.count > 0 else { return }
        let reached = Quorum.reached(membership) { replica -> UInt64 in
            if replica == id { return .max }
            return followerPlace(replica).map { followers[$0].acknowledgedRound } ?? 0
        }
        reads.confirm(round: reached ?? 0, into: &effects)
    }
}
