// One replica of a group of the migration simulation: the real state machine and its records.

import KVBase
import NodeCore
import ReplicationCore
import ShardCore

struct MigrationReplica {
    struct Applied {
        /// Without their waiters.
        var outcomes: [MigrationOutcome] = []
        var writes: [MigrationWrite] = []
        /// The shard that the entry asks to be digested.
        var verified: OwnedShard?
    }

    let group: GroupID
    private(set) var state: GroupState
    /// By routed key, which is the key here. Never walked unsorted.
    private(set) var records: [Bytes: MigrationRecord] = [:]
    private(set) var applied = 0
    private let canary: MigrationCanary?

    init(group: GroupID, canary: MigrationCanary?) {
        self.group = group
        self.canary = canary
        let membership = Membership(
            voters: [Member(replica: ReplicaID(1), node: NodeID(group.rawValue))])
        state = GroupState(membership: membership)
    }

    /// As it comes back from a disk, where the cursors of copies are a record of their own.
    func reopened() throws(DatabaseError) -> MigrationReplica {
        var copy = self
        var writer = ByteWriter()
        state.encode(into: &writer)
        let floor = state.floor
        copy.state = try ByteReader.decode(writer.take()) { (reader) throws(DatabaseError) in
            try GroupState(from: &reader, applied: LogPosition(), floor: floor)
        }
        state.encodeCursors(into: &writer)
        try ByteReader.decode(writer.take()) { (reader) throws(DatabaseError) in
            try copy.state.takeCursors(from: &reader)
        }
        return copy
    }

    func sortedKeys(in range: KeyRange) -> [Bytes] {
        records.keys.filter { range.contains($0) }.sorted { compareBytes($0, $1) < 0 }
    }

    // MARK: Tombstones and digests

    private func shard(of key: Bytes) -> OwnedShard? {
        state.shards.elements.first { $0.shard.range.contains(key) }
    }

    /// Forgets the tombstones of shards that are owned.
    mutating func sweep() {
        for (key, record) in records where record.version.isTombstone {
            let phase = shard(of: key)?.phase
            if phase == .owned || canary == .earlySweep && phase != nil { records[key] = nil }
        }
    }

    /// What replicas must agree on.
    var compared: [Bytes: MigrationRecord] {
        records.filter { key, record in
            shard(of: key)?.isCompared(record.version) ?? !record.version.isTombstone
        }
    }

    func digest(of owned: OwnedShard) -> RecordDigest {
        var digest = RecordDigest()
        for key in sortedKeys(in: owned.shard.range) {
            guard let record = records[key], owned.isCompared(record.version) else { continue }
            key.withUnsafeBytes { key in
                withUnsafeBytes(of: record.value.littleEndian) { value in
                    digest.add(
                        key, record.version.sequencer, isTombstone: record.version.isTombstone,
                        value)
                }
            }
        }
        return digest
    }

    mutating func loseRecord() {
        let keys = sortedKeys(in: .all)
        if let key = keys.first { records[key] = nil }
    }

    // MARK: Apply

    mutating func apply(_ payload: Bytes) throws(Violation) -> Applied {
        var result = Applied()
        applied += 1
        do throws(DatabaseError) {
            try payload.withRawBytes { (payload) throws(DatabaseError) in
                var batch = try CommandBatch(payload)
                for position in 0..<Int(batch.count) {
                    let operation = try batch.next()
                    let sequencer = batch.base.advanced(by: UInt32(position))
                    var outcome = MigrationOutcome(waiter: .none)
                    do throws(DatabaseError) {
                        if operation.code == .shardCommand {
                            let effect = try command(operation, sequencer)
                            outcome.sequencer = effect.floor
                            if let verified = effect.verified { result.verified = verified }
                        } else if operation.code.isControl, operation.code != .importRecord {
                            _ = try state.apply(operation.code, operation.value)
                        } else if let write = try write(operation, sequencer, &outcome) {
                            result.writes.append(write)
                        }
                    } catch {
                        outcome.error = error
                    }
                    result.outcomes.append(outcome)
                }
                state.floor = max(state.floor, batch.last)
            }
        } catch {
            throw Violation(
                description: "group \(group): entry \(applied) does not decode: \(error)")
        }
        return result
    }

    private mutating func command(
        _ operation: Operation, _ sequencer: Sequencer
    ) throws(DatabaseError) -> CommandEffect {
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
        case (.noMergeEpochs, .merge(let id, let epoch, let neighbour, let other)):
            command = .merge(
                id, state.shards[id]?.shard.epoch ?? epoch, with: neighbour,
                at: state.shards[neighbour]?.shard.epoch ?? other)
        default: break
        }
        let effect = try state.apply(command, sequencer: sequencer)
        // Garbage stays until something clears it: the worst that a slow collection can do.
        if let cleared = effect.cleared {
            for key in sortedKeys(in: cleared.shard.range) { records[key] = nil }
        }
        return effect
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
