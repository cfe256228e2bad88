// One simulated process with its disk, engine and clock around a real `Replica`.

import KVBase
import ReplicationCore

/// What a client asked, and the newest version that it must not fall behind.
struct ClientOperation {
    var key: Int
    var value: UInt64
    var floor: UInt64
}

enum NodeInput {
    case event(Event)
    case writes([ClientOperation])
    case read(ClientOperation, ReadMode)
    case change(MembershipChange)
}

final class SimulatedNode {
    let id: ReplicaID
    let member: Member
    /// Local time runs `partsPerMillion` faster than true time (slower when negative).
    let clockOffset: UInt64
    let partsPerMillion: Int64

    // Survives a crash.
    var disk = StoredLog()
    var durableMachine: RegisterMachine
    /// The highest term in which a promise left the node.
    var promisedTerm: Term = .none

    // Lost in a crash.
    var replica: Replica?
    var incarnation: UInt64 = 0
    var isPaused = false
    var inbox: [NodeInput] = []
    var log = StoredLog()
    var machine: RegisterMachine
    var diskQueue: [Persist] = []
    var diskBatch: [Persist] = []
    var applyQueue: [LogEntry] = []
    var applyHead = 0
    var isApplying = false
    var isFlushing = false
    var timerAt: UInt64 = .max
    var proposals: [(term: Term, index: LogIndex, operation: ClientOperation)] = []
    var proposalsHead = 0
    var reads: [(token: UInt64, operation: ClientOperation, mode: ReadMode)] = []
    var readyReads: [(index: LogIndex, operation: ClientOperation)] = []
    var changes: [(token: UInt64, change: MembershipChange)] = []
    var seenTerm: Term = .none
    var seenCommit: LogIndex = .none
    var wasLeader = false

    init(id: ReplicaID, membership: Membership, clockOffset: UInt64, partsPerMillion: Int64) {
        self.id = id
        self.member = Member(replica: id, node: NodeID(id.rawValue))
        self.clockOffset = clockOffset
        self.partsPerMillion = partsPerMillion
        durableMachine = RegisterMachine(membership: membership)
        machine = durableMachine
    }

    var isUp: Bool { replica != nil }
    var isRunning: Bool { replica != nil && !isPaused }

    func localTime(_ time: UInt64) -> Instant {
        let skew = Int64(time) * partsPerMillion / 1_000_000
        return Instant(nanoseconds: UInt64(Int64(time) + skew) + clockOffset)
    }

    /// The true time at which the local clock has reached `deadline`.
    func trueTime(_ deadline: Instant, now: UInt64) -> UInt64 {
        guard deadline < .distantFuture else { return .max }
        let left = deadline - localTime(now)
        let rate = UInt64(1_000_000 + partsPerMillion)
        return now + left.count / rate * 1_000_000 + 1_000_000
    }

    func start(
        group: GroupID, tuning: Tuning, seed: UInt64, time: UInt64, forgetsPromise: Bool
    ) {
        incarnation += 1
        isPaused = false
        machine = durableMachine
        log = disk
        let restored = RestoredState(
            hardState: disk.hardState, applied: machine.position, membership: machine.membership,
            entries: disk.entries, compacted: disk.compacted)
        let now = localTime(time)
        var start = now
        if forgetsPromise {
            start = Instant(nanoseconds: now.nanoseconds - tuning.leaseDuration.count)
        }
        let replica = Replica(
            group: group, id: id, tuning: tuning, restored: restored, seed: seed, now: start)
        seenTerm = replica.term
        seenCommit = replica.commit
        wasLeader = false
        if log.term(at: machine.position.index) != machine.position.term {
            // The core will reset the disk's log by a persist; its view is reset already.
            log.write(Persist(ticket: PersistTicket(0), snapshot: machine.position))
        }
        self.replica = replica
    }

    /// The process dies; of the unsynced writes a prefix survives.
    func crash(random: inout SeededRandom, keepsNothing: Bool) {
        let unsynced = diskBatch + diskQueue
        if !keepsNothing, !unsynced.isEmpty {
            let whole = Int(random.below(UInt64(unsynced.count + 1)))
            for persist in unsynced[..<whole] { disk.write(persist) }
            if whole < unsynced.count, unsynced[whole].snapshot == nil {
                let some = random.below(UInt64(unsynced[whole].entries.count + 1))
                disk.write(unsynced[whole], entryCount: Int(some))
            }
        }
        replica = nil
        isPaused = false
        inbox.removeAll()
        diskQueue.removeAll()
        diskBatch.removeAll()
        applyQueue.removeAll()
        applyHead = 0
        isApplying = false
        isFlushing = false
        timerAt = .max
        proposals.removeAll()
        proposalsHead = 0
        reads.removeAll()
        readyReads.removeAll()
        changes.removeAll()
    }
}
