// Applying the commands that split, move, merge and verify shards (docs/internals/migration.md).

import KVBase
import ShardCore

/// What a command does besides changing the group's state.
public struct CommandEffect: Hashable, Sendable {
    /// The shard whose records are garbage from here on.
    public var garbage: OwnedShard?
    /// The shard that must start without a record: what lies in its range is left from an earlier
    /// stay and is deleted with this command.
    public var cleared: OwnedShard?
    /// After a fence: the floor for the new owner.
    public var floor: Sequencer = .zero
    /// The shard that was taken in by its neighbour: what is known of it means nothing any more.
    public var absorbed: ShardID?
    /// The shard whose records are to be digested as they are behind this command's entry.
    public var verified: OwnedShard?
    /// The shard whose tombstones mean nothing from here on.
    public var finished: OwnedShard?

    public init() {}
}

extension GroupState {
    /// Applies a command that was logged with `sequencer`. Repeating it changes nothing; one that
    /// comes too late, or from a controller that errs, is refused and changes nothing either.
    public mutating func apply(
        _ command: ShardCommand, sequencer: Sequencer
    ) throws(DatabaseError) -> CommandEffect {
        floor = max(floor, sequencer)
        switch command {
        case .split(let id, let epoch, let key, let right):
            try split(id, epoch, at: key, into: right)
        case .fence(let id, let epoch, let target): return try fence(id, epoch, to: target)
        case .activate(let shard, let partitioning, let source, let floor):
            return try activate(shard, partitioning, from: source, floor: floor)
        case .advance(let id, let epoch, let from, let to):
            try advance(id, epoch, from: from, to: to)
        case .finish(let id, let epoch): return try finish(id, epoch)
        case .release(let id, let epoch): return try release(id, epoch)
        case .decline(let id, let epoch): try decline(id, epoch)
        case .verify(let id, let epoch): return try verify(id, epoch)
        case .merge(let id, let epoch, let neighbour, let other):
            return try merge(id, epoch, with: neighbour, at: other)
        }
        return CommandEffect()
    }

    private mutating func split(
        _ id: ShardID, _ epoch: Epoch, at key: Bytes, into right: ShardID
    ) throws(DatabaseError) {
        var held = try held(id)
        if held.shard.epoch == epoch.next(), held.shard.range.end == key,
            shards[right]?.shard.range.start == key
        {
            return
        }
        guard held.shard.epoch == epoch, held.phase == .owned else { throw outdated(held, epoch) }
        guard held.shard.range.contains(key), held.shard.range.start != key else {
            throw DatabaseError(.refused, "the split key is not inside shard \(id)")
        }
        if case .hash = held.partitioning, key.count != 2 {
            throw DatabaseError(.refused, "shard \(id) can be cut between virtual ranges only")
        }
        guard right != id, shards[right] == nil, released[right] == nil else {
            throw DatabaseError(.fenced, "shard \(right) exists or existed in this group")
        }
        try checkRoom(for: KeyRange(start: key, end: held.shard.range.end))
        var upper = held.shard
        upper.id = right
        upper.epoch = epoch.next()
        upper.range.start = key
        held.shard.epoch = epoch.next()
        held.shard.range.end = key
        held.lowestEpoch = epoch.next()
        shards.set(held, for: id)
        shards.set(OwnedShard(shard: upper, partitioning: held.partitioning), for: right)
    }

    private mutating func fence(
        _ id: ShardID, _ epoch: Epoch, to target: GroupID
    ) throws(DatabaseError) -> CommandEffect {
        var held = try held(id)
        var effect = CommandEffect()
        guard held.shard.epoch == epoch else { throw outdated(held, epoch) }
        switch held.phase {
        case .fenced(target, let floor, _):
            effect.floor = floor
            return effect
        case .fenced(let other, _, _):
            throw DatabaseError(.fenced, "shard \(id) moves to group \(other)")
        case .importing(let source, _, _):
            // Half of its records are in the source: it can go nowhere but back.
            guard target == source else {
                throw DatabaseError(.refused, "shard \(id) is still being copied here")
            }
        case .owned: break
        }
        effect.floor = floor
        held.phase = .fenced(to: target, floor: floor, isWhole: held.phase == .owned)
        shards.set(held, for: id)
        return effect
    }

    private mutating func activate(
        _ shard: Shard, _ partitioning: Partitioning, from source: GroupID, floor given: Sequencer
    ) throws(DatabaseError) -> CommandEffect {
        var effect = CommandEffect()
        if let gone = released[shard.id], shard.epoch <= gone.epoch {
            throw DatabaseError(
                .fenced, "shard \(shard.id) was given up here through epoch \(gone.epoch)")
        }
        let phase: ShardPhase =
            source == .none
            ? .owned : .importing(from: source, floor: given, cursor: shard.range.start)
        if var held = shards[shard.id] {
            if shard.epoch >= held.lowestEpoch, shard.epoch <= held.shard.epoch { return effect }
            // The way back: this group's records are the base of what the other one wrote since.
            guard case .fenced(let target, _, let isWhole) = held.phase,
                source == target || source == .none && isWhole,
                shard.epoch == held.shard.epoch.next().next(), shard.range == held.shard.range
            else { throw outdated(held, shard.epoch) }
            held.shard.epoch = shard.epoch
            held.lowestEpoch = shard.epoch
            held.phase = phase
            shards.set(held, for: shard.id)
        } else {
            guard source != .none else {
                throw DatabaseError(.refused, "shard \(shard.id) is not here to be taken back")
            }
            for other in shards.elements
            where other.shard.table == shard.table && other.shard.range.overlaps(shard.range) {
                throw DatabaseError(
                    .refused, "shard \(other.shard.id) holds keys of shard \(shard.id) here")
            }
            try checkRoom(for: shard.range)
            let activated = OwnedShard(shard: shard, partitioning: partitioning, phase: phase)
            shards.set(activated, for: shard.id)
            effect.cleared = activated
        }
        floor = max(floor, given)
        return effect
    }

    private mutating func advance(
        _ id: ShardID, _ epoch: Epoch, from: Bytes, to: Bytes?
    ) throws(DatabaseError) {
        var held = try held(id)
        guard case .importing(let source, let floor, let cursor) = held.phase,
            held.shard.epoch == epoch
        else { throw outdated(held, epoch) }
        // A chunk that does not begin where the copy stands would leave a gap, or step back.
        guard cursor == from else {
            throw DatabaseError(.fenced, "the copy of shard \(id) stands elsewhere")
        }
        if let to {
            guard compareBytes(from, to) < 0, held.shard.range.contains(to) else {
                throw DatabaseError(.malformed, "a chunk of shard \(id) ends outside it")
            }
        }
        held.phase = .importing(from: source, floor: floor, cursor: to)
        shards.set(held, for: id)
    }

    private mutating func finish(
        _ id: ShardID, _ epoch: Epoch
    ) throws(DatabaseError) -> CommandEffect {
        var effect = CommandEffect()
        var held = try held(id)
        if held.phase == .owned, held.lowestEpoch == epoch, held.shard.epoch == epoch.next() {
            return effect
        }
        guard case .importing(_, _, let cursor) = held.phase, held.shard.epoch == epoch else {
            throw outdated(held, epoch)
        }
        guard cursor == nil else {
            throw DatabaseError(.refused, "shard \(id) is not copied whole")
        }
        held.phase = .owned
        held.lowestEpoch = epoch
        held.shard.epoch = epoch.next()
        shards.set(held, for: id)
        effect.finished = held
        return effect
    }

    private func verify(_ id: ShardID, _ epoch: Epoch) throws(DatabaseError) -> CommandEffect {
        var effect = CommandEffect()
        let held = try held(id)
        guard held.shard.epoch == epoch else { throw outdated(held, epoch) }
        switch held.phase {
        case .owned, .importing(_, _, cursor: nil): effect.verified = held
        case .importing:
            throw DatabaseError(.refused, "shard \(id) is not copied whole")
        case .fenced(let target, _, _):
            throw DatabaseError(.refused, "shard \(id) moves to group \(target)")
        }
        return effect
    }

    private mutating func merge(
        _ id: ShardID, _ epoch: Epoch, with neighbour: ShardID, at other: Epoch
    ) throws(DatabaseError) -> CommandEffect {
        var effect = CommandEffect()
        var left = try held(id)
        let merged = max(epoch, other).next()
        if left.shard.epoch == merged,
            released[neighbour]
                == ReleasedShard(shard: neighbour, epoch: merged, into: id)
        {
            return effect
        }
        guard left.shard.epoch == epoch else { throw outdated(left, epoch) }
        let right = try held(neighbour)
        guard right.shard.epoch == other else { throw outdated(right, other) }
        for held in [left, right] where held.phase != .owned {
            throw DatabaseError(.refused, "shard \(held.shard.id) is on the move")
        }
        guard left.shard.table == right.shard.table, left.partitioning == right.partitioning,
            left.shard.range.end == right.shard.range.start
        else {
            throw DatabaseError(.refused, "shard \(neighbour) does not follow shard \(id)")
        }
        left.shard.range.end = right.shard.range.end
        left.shard.epoch = merged
        left.lowestEpoch = merged
        shards.set(left, for: id)
        shards.remove(neighbour)
        let gone = ReleasedShard(shard: neighbour, epoch: merged, into: id)
        released.set(gone, for: neighbour)
        effect.absorbed = neighbour
        return effect
    }

    private mutating func release(
        _ id: ShardID, _ epoch: Epoch
    ) throws(DatabaseError) -> CommandEffect {
        var effect = CommandEffect()
        // Released already, or an earlier stay was meant.
        guard let held = shards[id], epoch >= held.lowestEpoch else { return effect }
        guard case .fenced = held.phase, epoch == held.shard.epoch.next().next() else {
            throw inUse(held)
        }
        effect.garbage = shards.remove(id)
        bar(id, through: epoch)
        return effect
    }

    private mutating func decline(_ id: ShardID, _ epoch: Epoch) throws(DatabaseError) {
        if let held = shards[id] {
            if epoch < held.lowestEpoch { return }
            throw inUse(held)
        }
        bar(id, through: epoch)
    }

    mutating func bar(_ id: ShardID, through epoch: Epoch) {
        if let known = released[id], known.epoch >= epoch { return }
        released.set(ReleasedShard(shard: id, epoch: epoch), for: id)
    }

    private func inUse(_ held: OwnedShard) -> DatabaseError {
        DatabaseError(
            .refused, "shard \(held.shard.id) is in use here with epoch \(held.shard.epoch)")
    }

    private func held(_ id: ShardID) throws(DatabaseError) -> OwnedShard {
        guard let held = shards[id] else {
            throw DatabaseError(.fenced, "shard \(id) is not in this group")
        }
        return held
    }

    private func outdated(_ held: OwnedShard, _ epoch: Epoch) -> DatabaseError {
        DatabaseError(
            .fenced,
            "shard \(held.shard.id) is here with epoch \(held.shard.epoch), the command is for"
                + " \(epoch)")
    }
}
