// A shard as a group holds it: what it may be asked, and what an operation does to a record of it.

import KVBase
import ShardCore

/// Where a group stands with a shard.
public enum ShardPhase: Hashable, Sendable {
    /// Serves reads and writes.
    case owned
    /// Frozen: the group `to` takes over with the next epoch. No record changes from here on, and
    /// none of its sequencers is above `floor`. Not `isWhole`: it was being copied from `to` when it
    /// was fenced, so the shard's records are here and there.
    case fenced(to: GroupID, floor: Sequencer, isWhole: Bool)
    /// Takes all writes; records of the group `from` are still being copied. Those below the routed
    /// key `cursor` are all here, with nil simply all. Every sequencer issued here is above `floor`.
    case importing(from: GroupID, floor: Sequencer, cursor: Bytes?)
}

/// A shard, how its keys are routed, and its phase.
public struct OwnedShard: Hashable, Sendable {
    public var shard: Shard
    public var partitioning: Partitioning
    public var phase: ShardPhase
    /// Requests of every epoch from here to the shard's are served: finishing a move raises the
    /// epoch and changes nothing for requests under way.
    public var lowestEpoch: Epoch

    public init(shard: Shard, partitioning: Partitioning, phase: ShardPhase = .owned) {
        self.shard = shard
        self.partitioning = partitioning
        self.phase = phase
        lowestEpoch = shard.epoch
    }

    /// A delete leaves a tombstone: the former owner may still hold the record.
    @inlinable
    public var isImporting: Bool {
        if case .importing = phase { return true }
        return false
    }

    /// What this group says about the key is the truth: no other group need be asked.
    public func isFinal(_ routedKey: UnsafeRawBufferPointer) -> Bool {
        switch phase {
        case .owned: true
        case .fenced: false
        case .importing(_, _, let cursor):
            cursor.map { $0.withUnsafeBytes { compareBytes(routedKey, $0) < 0 } } ?? true
        }
    }

    public func encode(into writer: inout ByteWriter) {
        shard.encode(into: &writer)
        partitioning.encode(into: &writer)
        writer.write(lowestEpoch)
        switch phase {
        case .owned: writer.write(UInt8(0))
        case .fenced(let group, let floor, let isWhole):
            writer.write(UInt8(1))
            writer.write(group)
            writer.write(floor)
            writer.write(isWhole)
        case .importing(let group, let floor, let cursor):
            writer.write(UInt8(2))
            writer.write(group)
            writer.write(floor)
            writer.write(cursor)
        }
    }

    public init(from reader: inout ByteReader) throws(DatabaseError) {
        shard = try Shard(from: &reader)
        partitioning = try Partitioning(from: &reader)
        lowestEpoch = try reader.read()
        switch try reader.readUInt8() {
        case 0: phase = .owned
        case 1:
            phase = .fenced(
                to: try reader.read(), floor: try reader.readSequencer(),
                isWhole: try reader.readBool())
        case 2:
            phase = .importing(
                from: try reader.read(), floor: try reader.readSequencer(),
                cursor: try reader.readOptionalBytes())
        case let kind: throw DatabaseError(.malformed, "shard phase \(kind)")
        }
    }
}

/// The version of a key that a group holds.
public struct RecordVersion: Hashable, Sendable {
    public var sequencer: Sequencer
    public var isTombstone: Bool

    public init(sequencer: Sequencer, isTombstone: Bool) {
        self.sequencer = sequencer
        self.isTombstone = isTombstone
    }
}

/// What applying an operation does to its record.
public struct WriteDecision: Sendable {
    public enum Effect: Sendable {
        case put
        case putTombstone
        case remove
        case none
    }

    public var effect: Effect
    /// Of the record that is put.
    public var sequencer: Sequencer
    /// Of the record before, `.zero` for none or a tombstone. Known when the operation depends on
    /// it or `asksPrevious` was given.
    public var previous: Sequencer
    /// Why the operation took no effect.
    public var error: DatabaseError?
}

extension OwnedShard {
    /// This group's version of a key is the newest there is: all of the former owner's are here, or
    /// this one was written since.
    public func isNewest(
        _ version: RecordVersion?, _ routedKey: UnsafeRawBufferPointer
    ) -> Bool {
        if case .importing(_, let floor, _) = phase, let version, version.sequencer > floor {
            return true
        }
        return isFinal(routedKey)
    }

    /// Decides a put, delete or import, alike on every replica. `present` reads the key's version
    /// as of the operation before; it is asked only when the answer matters. `asksPrevious`: this
    /// replica's answer tells it.
    ///
    /// Precondition: shard, epoch and range were checked with `GroupState.owned`.
    public func decide(
        _ operation: Operation, sequencer: Sequencer, routedKey: UnsafeRawBufferPointer,
        asksPrevious: Bool, present: () throws(DatabaseError) -> RecordVersion?
    ) throws(DatabaseError) -> WriteDecision {
        if operation.code == .importRecord {
            return try decideImport(operation, present: present)
        }
        var decision = WriteDecision(
            effect: .none, sequencer: sequencer, previous: .zero, error: nil)
        let isConditional = operation.flags.contains(.conditional)
        let needsPrevious = isConditional || operation.flags.contains(.wantsPrevious)
        if case .importing(_, let floor, _) = phase, sequencer <= floor {
            decision.error = DatabaseError(
                .unavailable, "logged before shard \(shard.id) was activated")
            return decision
        }
        if isConditional || asksPrevious || needsPrevious && isImporting {
            let version = try present()
            if needsPrevious, !operation.flags.contains(.previousImported),
                !isNewest(version, routedKey)
            {
                decision.error = DatabaseError(
                    .unavailable, "the record is not copied to this group yet")
                return decision
            }
            if let version, !version.isTombstone { decision.previous = version.sequencer }
        }
        if isConditional, decision.previous != operation.expected {
            decision.error = DatabaseError(
                .conditionFailed,
                decision.previous == .zero
                    ? "there is no record" : "the record has sequencer \(decision.previous)")
            return decision
        }
        decision.effect =
            operation.code == .put ? .put : isImporting ? .putTombstone : .remove
        return decision
    }

    /// The higher sequencer stays, whoever wrote it.
    private func decideImport(
        _ operation: Operation, present: () throws(DatabaseError) -> RecordVersion?
    ) throws(DatabaseError) -> WriteDecision {
        var decision = WriteDecision(
            effect: .none, sequencer: operation.expected, previous: .zero, error: nil)
        guard isImporting, operation.flags.contains(.conditional) else {
            decision.error = DatabaseError(.fenced, "shard \(shard.id) imports no records")
            return decision
        }
        if let version = try present(), version.sequencer >= operation.expected { return decision }
        decision.effect = operation.flags.contains(.tombstone) ? .putTombstone : .put
        return decision
    }
}
