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
    /// What a replica has on disk: restart begins here and applies the log behind it.
    private struct Checkpoint {
        var state: Bytes
        var floor: Sequencer
        var records: [Bytes: MigrationRecord]
        var applied: Int
    }

    let id: GroupID
    var state: GroupState
    /// By routed key, which is the key here. Never walked unsorted.
    private(set) var records: [Bytes: MigrationRecord] = [:]
    private(set) var log: [Bytes] = []
    private(set) var applied = 0
    private var waiters: [[MigrationWaiter]] = []
    private var checkpoint: Checkpoint
    private var clock: SequencerClock
    private var restarts: UInt32 = 0
    private let canary: MigrationCanary?

    init(id: GroupID, canary: MigrationCanary?) {
        self.id = id
        self.canary = canary
        let membership = Membership(
            voters: [Member(replica: ReplicaID(1), node: NodeID(id.rawValue))])
        state = GroupState(membership: membership)
        clock = SequencerClock(node: NodeID(id.rawValue * 1_000))
        checkpoint = Checkpoint(state: [], floor: .zero, records: [:], applied: 0)
        checkpoint = captured()
    }

    var isBehind: Bool { applied < log.count }

    func sortedKeys(in range: KeyRange) -> [Bytes] {
        records.keys.filter { range.contains($0) }.sorted { compareBytes($0, $1) < 0 }
    }

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
        let before = (records: records, applied: applied)
        do throws(DatabaseError) {
            let from = checkpoint
            state = try ByteReader.decode(from.state) { (reader) throws(DatabaseError) in
                try GroupState(from: &reader, applied: LogPosition(), floor: from.floor)
            }
            records = from.records
            applied = from.applied
        } catch {
            throw Violation(description: "group \(id): its state does not decode: \(error)")
        }
        restarts += 1
        clock = SequencerClock(node: NodeID(id.rawValue * 1_000 + restarts % 1_000))
        clock.observe(state.floor)
        for entry in applied..<log.count { waiters[entry] = waiters[entry].map { _ in .none } }
        while applied < before.applied { _ = try applyNext() }
        guard records == before.records else {
            throw Violation(description: "group \(id): a replay gave other records")
        }
    }

    mutating func takeCheckpoint() { checkpoint = captured() }

    private func captured() -> Checkpoint {
        var writer = ByteWriter()
        state.encode(into: &writer)
        return Checkpoint(
            state: writer.take(), floor: state.floor, records: records, applied: applied)
    }

    // MARK: Apply

    mutating func applyNext() throws(Violation) -> (
        outcomes: [MigrationOutcome], writes: [MigrationWrite]
    ) {
        var outcomes: [MigrationOutcome] = []
        var writes: [MigrationWrite] = []
        let payload = log[applied]
        let waiting = waiters[applied]
        applied += 1
        do throws(DatabaseError) {
            try payload.withRawBytes { (payload) throws(DatabaseError) in
                var batch = try CommandBatch(payload)
                for position in 0..<Int(batch.count) {
                    let operation = try batch.next()
                    let sequencer = batch.base.advanced(by: UInt32(position))
                    var outcome = MigrationOutcome(waiter: waiting[position])
                    do throws(DatabaseError) {
                        if operation.code == .shardCommand {
                            outcome.sequencer = try command(operation, sequencer)
                        } else if operation.code.isControl, operation.code != .importRecord {
                            _ = try state.apply(operation.code, operation.value)
                        } else if let write = try write(operation, sequencer, &outcome) {
                            writes.append(write)
                        }
                    } catch {
                        outcome.error = error
                    }
                    outcomes.append(outcome)
                }
                state.floor = max(state.floor, batch.last)
                clock.observe(state.floor)
            }
        } catch {
            throw Violation(description: "group \(id): entry \(applied) does not decode: \(error)")
        }
        return (outcomes, writes)
    }

    private mutating func command(
        _ operation: Operation, _ sequencer: Sequencer
    ) throws(DatabaseError) -> Sequencer {
        var reader = ByteReader(operation.value)
        var command = try ShardCommand(from: &reader)
        switch (canary, command) {
        case (.noCursorCheck, .advance(let id, let epoch, _, let to)):
            if case .importing(_, _, let cursor?) = state.shards[id]?.phase,
                to.map({ compareBytes(cursor, $0) < 0 }) ?? true
            {
                command = .advance(id, epoch, from: cursor, to: to)
            }
        case (.noFloor, .activate(let shard, let partitioning, let source, _)):
            command = .activate(shard, partitioning, from: source, floor: .zero)
        default: break
        }
        let effect = try state.apply(command, sequencer: sequencer)
        // Garbage stays until something clears it: the worst that a slow collection can do.
        if let cleared = effect.cleared {
            for key in sortedKeys(in: cleared.shard.range) { records[key] = nil }
        }
        return effect.floor
    }

    private mutating func write(
        _ operation: Operation, _ sequencer: Sequencer, _ outcome: inout MigrationOutcome
    ) throws(DatabaseError) -> MigrationWrite? {
        let owned = try state.owned(operation.shard, operation.epoch)
        let key = Bytes(operation.key)
        guard owned.shard.range.contains(key) else {
            throw DatabaseError(.staleEpoch, "the key is not in the shard")
        }
        let present = records[key]?.version
        let decision = try owned.decide(
            operation, sequencer: sequencer, routedKey: operation.key, asksPrevious: true,
            present: { () throws(DatabaseError) in present })
        outcome.sequencer = decision.sequencer
        outcome.previous = decision.previous
        outcome.error = decision.error
        var value: UInt64 = 0
        if !operation.value.isEmpty {
            var reader = ByteReader(operation.value)
            value = try reader.readUInt64()
        }
        switch decision.effect {
        case .put:
            records[key] = MigrationRecord(
                version: RecordVersion(sequencer: decision.sequencer, isTombstone: false),
                value: value)
        case .putTombstone where canary == .noTombstones && operation.code == .delete:
            records[key] = nil
        case .putTombstone:
            records[key] = MigrationRecord(
                version: RecordVersion(sequencer: decision.sequencer, isTombstone: true), value: 0)
        case .remove: records[key] = nil
        case .none: return nil
        }
        guard operation.code != .importRecord else { return nil }
        return MigrationWrite(
            shard: operation.shard, epoch: operation.epoch, key: key,
            sequencer: decision.sequencer, value: operation.code == .put ? value : nil,
            expected: operation.flags.contains(.conditional) ? operation.expected : nil)
    }
}
