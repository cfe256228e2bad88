// A group for the migration simulation: its log already linearized, its state machine the real one.

import KVBase
import NodeCore
import ReplicationCore
import ShardCore

/// A fault built into the simulation on purpose: the checks must find it.
public enum MigrationCanary: Sendable, CaseIterable {
    /// A chunk moves the cursor wherever the copy stands.
    case noCursorCheck
    /// A delete in a shard that is being copied leaves no tombstone.
    case noTombstones
    /// The new owner does not learn the highest sequencer of the former one.
    case noFloor
    /// The new owner answers reads from what it holds.
    case noDualRead
    /// Conditions are decided without the record that was not copied yet.
    case noImportFirst
    /// A merge takes effect whatever epochs it names.
    case noMergeEpochs
    /// A follower loses a record.
    case lostRecord
    /// A follower digests what it holds some entries later.
    case lateDigest
    /// Tombstones are forgotten while the copy that needs them runs.
    case earlySweep
}

struct MigrationRecord: Hashable {
    var version: RecordVersion
    var value: UInt64
}

/// Who waits for an operation of the log.
enum MigrationWaiter {
    case none
    case client(operation: Int)
    case controller(attempt: Int)
}

/// How an applied operation ended.
struct MigrationOutcome {
    var waiter: MigrationWaiter
    var error: DatabaseError?
    var sequencer: Sequencer = .zero
    var previous: Sequencer = .zero
}

/// A client's write as it took effect.
struct MigrationWrite {
    var shard: ShardID
    var epoch: Epoch
    var key: Bytes
    var sequencer: Sequencer
    /// Nil for a delete.
    var value: UInt64?
    /// The condition it had, if any.
    var expected: Sequencer?
}

struct MigrationGroup {
    let id: GroupID
    private(set) var leader: MigrationReplica
    /// Applies the same log in its own time.
    private(set) var follower: MigrationReplica
    private(set) var log: [Bytes] = []
    private var waiters: [[MigrationWaiter]] = []
    /// What a replica has on disk: restart begins here and applies the log behind it.
    private var checkpoint: MigrationReplica
    private var clock: SequencerClock
    private var restarts: UInt32 = 0
    private let canary: MigrationCanary?
    /// Digests by the entry that asked, until the other replica has one.
    private var digests: [Int: RecordDigest] = [:]
    private(set) var comparisons = 0
    /// The copy rests until then.
    var heldUntil: UInt64 = 0

    init(id: GroupID, canary: MigrationCanary?) {
        self.id = id
        self.canary = canary
        leader = MigrationReplica(group: id, canary: canary)
        follower = leader
        checkpoint = leader
        clock = SequencerClock(node: NodeID(id.rawValue * 1_000))
    }

    var state: GroupState { leader.state }
    var records: [Bytes: MigrationRecord] { leader.records }
    var isBehind: Bool { leader.applied < log.count }

    func sortedKeys(in range: KeyRange) -> [Bytes] { leader.sortedKeys(in: range) }

    // MARK: Log

    /// Appends one entry. `operations` are encoded operations.
    mutating func propose(
        _ operations: [(Bytes, MigrationWaiter)], wallClock: UInt64
    ) {
        let base = clock.issue(UInt32(operations.count), wallClock: wallClock)
        var writer = ByteWriter()
        writer.write(base)
        writer.write(UInt32(operations.count))
        for (bytes, _) in operations { writer.writeRaw(bytes) }
        log.append(writer.take())
        waiters.append(operations.map { $0.1 })
    }

    /// Another replica leads: it stands at the checkpoint and applies again what was applied.
    /// Nobody who waited is answered. The caller applies the rest before it proposes anything.
    mutating func restart() throws(Violation) {
        let before = leader
        do throws(DatabaseError) {
            leader = try checkpoint.reopened()
        } catch {
            throw Violation(description: "group \(id): its state does not decode: \(error)")
        }
        restarts += 1
        clock = SequencerClock(node: NodeID(id.rawValue * 1_000 + restarts % 1_000))
        clock.observe(leader.state.floor)
        for entry in leader.applied..<log.count {
            waiters[entry] = waiters[entry].map { _ in .none }
        }
        while leader.applied < before.applied { _ = try applyNext() }
        guard leader.compared == before.compared else {
            throw Violation(description: "group \(id): a replay gave other records")
        }
    }

    mutating func takeCheckpoint() { checkpoint = leader }

    /// The follower gets a snapshot, which leaves out what means nothing.
    mutating func restoreFollower() {
        follower = leader
        follower.sweep()
    }

    mutating func sweepLeader() { leader.sweep() }
    mutating func sweepFollower() { follower.sweep() }

    // MARK: Apply

    mutating func applyNext() throws(Violation) -> (
        outcomes: [MigrationOutcome], writes: [MigrationWrite]
    ) {
        let entry = leader.applied
        var result = try leader.apply(log[entry])
        for position in result.outcomes.indices {
            result.outcomes[position].waiter = waiters[entry][position]
        }
        clock.observe(leader.state.floor)
        if let verified = result.verified {
            try compare(leader.digest(of: verified), entry)
        }
        return (result.outcomes, result.writes)
    }

    mutating func follow() throws(Violation) {
        guard follower.applied < leader.applied else { return }
        let entry = follower.applied
        let result = try follower.apply(log[entry])
        if canary == .lostRecord, entry % 97 == 96 { follower.loseRecord() }
        guard let verified = result.verified else { return }
        if canary == .lateDigest {
            for _ in 0..<3 where follower.applied < leader.applied {
                _ = try follower.apply(log[follower.applied])
            }
        }
        try compare(follower.digest(of: verified), entry)
    }

    private mutating func compare(_ digest: RecordDigest, _ entry: Int) throws(Violation) {
        guard let other = digests[entry] else {
            digests[entry] = digest
            return
        }
        guard other == digest else {
            throw Violation(description: "group \(id): replicas differ behind entry \(entry)")
        }
        comparisons += 1
    }
}
