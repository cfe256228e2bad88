// The controller of the migration simulation, and the copy that the new owner's leader drives.

import KVBase
import NodeCore
import ShardCore

struct MigrationController {
    enum Step {
        case split(at: Bytes, into: ShardID)
        /// `isOutdated`: the neighbour's epoch is an old one, so that the group must refuse.
        case merge(with: ShardID, at: Epoch, isOutdated: Bool)
        case fence
        case activate
        /// Until the copy is whole and both replicas are told to digest it.
        case verify
        case finish
        case decline
        case takeBack
        /// Cancelled after the activation: the same move with the roles swapped.
        case reverse
        /// The fence of the way back was refused: perhaps the move had finished.
        case reverseTooLate
    }

    /// The durable record of the operation under way.
    struct Move {
        var shard: ShardID
        var from: GroupID
        var to: GroupID
        /// Of the shard in `from`.
        var epoch: Epoch
        var step: Step
        var floor = Sequencer.zero
        var isReverse = false
    }

    /// Commands are late and repeated: an outcome counts only in the stage that asked.
    struct Attempt {
        var stage: Int
        var group: GroupID
        var command: ShardCommand
    }

    /// A shard that its group still holds, fenced, after it has moved away.
    struct Former: Equatable {
        var shard: ShardID
        var group: GroupID
        /// Of the finished move.
        var epoch: Epoch
        var range: KeyRange
    }

    var move: Move?
    /// Durable too.
    var former: [Former] = []
    var stage = 0
    var attempts: [Attempt] = []
    var isDraining = false
    var lastShard = ShardID(1)
}

struct MigrationChunkRequest {
    var source: GroupID
    var target: GroupID
    var shard: ShardID
    var epoch: Epoch
    var from: Bytes
}

struct MigrationChunk {
    var request: MigrationChunkRequest
    var to: Bytes?
    var records: [(Bytes, MigrationRecord)]
}

extension MigrationSimulation {
    // MARK: Operations

    mutating func control() {
        heap.push(.controller, at: now + 5 + random.below(20 + 2 * delayMax))
        // A controller that fell and came back, or a network that kept a command for long.
        if isFaulty, !controller.attempts.isEmpty, random.chance(1, in: 2) {
            let old = Int(random.below(UInt64(controller.attempts.count)))
            send(.command(attempt: old))
        }
        if !controller.former.isEmpty, controller.isDraining || random.chance(1, in: 6) {
            release(controller.former[Int(random.below(UInt64(controller.former.count)))])
        }
        guard let move = controller.move else {
            if !controller.isDraining { startMove() }
            return
        }
        if isFaulty, !controller.isDraining, random.chance(1, in: 12) { cancel(move) }
        guard let move = controller.move else { return }
        if isFaulty, case .verify = move.step, random.chance(1, in: 8) {
            groups[groupIndex(move.to)].heldUntil = now + 20 * delayMax
            count { $0.holds += 1 }
        }
        let (group, command) = present(move)
        controller.attempts.append(
            MigrationController.Attempt(stage: controller.stage, group: group, command: command))
        send(.command(attempt: controller.attempts.count - 1))
    }

    private mutating func startMove() {
        let shard = map[Int(random.below(UInt64(map.count)))]
        var move = MigrationController.Move(
            shard: shard.id, from: shard.group, to: shard.group, epoch: shard.epoch, step: .fence)
        let inner = Self.keys.filter { shard.range.contains($0) && $0 != shard.range.start }
        if map.count < 5, inner.count > 2, random.chance(1, in: 3) {
            controller.lastShard = ShardID(controller.lastShard.rawValue + 1)
            move.step = .split(
                at: inner[Int(random.below(UInt64(inner.count)))], into: controller.lastShard)
        } else if let neighbour = map.first(where: {
            $0.group == shard.group && $0.range.start == shard.range.end && !$0.range.start.isEmpty
        }), random.chance(1, in: 2) {
            let isOutdated = random.chance(1, in: 3)
            let epoch = Epoch(neighbour.epoch.rawValue - (isOutdated ? 1 : 0))
            move.step = .merge(with: neighbour.id, at: epoch, isOutdated: isOutdated)
        } else {
            let others = (1...UInt32(Self.groupCount)).filter { $0 != shard.group.rawValue }
            move.to = GroupID(others[Int(random.below(UInt64(others.count)))])
            let inTheWay = controller.former.first {
                $0.group == move.to && $0.range.overlaps(shard.range)
            }
            if let inTheWay {
                count { $0.formerInTheWay += 1 }
                return release(inTheWay)
            }
        }
        enter(move)
    }

    private mutating func release(_ former: MigrationController.Former) {
        controller.attempts.append(
            MigrationController.Attempt(
                stage: 0, group: former.group, command: .release(former.shard, former.epoch)))
        send(.command(attempt: controller.attempts.count - 1))
    }

    private mutating func enter(_ move: MigrationController.Move?) {
        controller.move = move
        controller.stage += 1
    }

    private mutating func cancel(_ move: MigrationController.Move) {
        var move = move
        switch move.step {
        // The way back is not declined: the group that it comes from holds only what it wrote.
        case .activate where !move.isReverse: move.step = .decline
        case .verify, .finish: move.step = .reverse
        default: return
        }
        enter(move)
    }

    /// The command of the present step, and the group it is for.
    private func present(_ move: MigrationController.Move) -> (GroupID, ShardCommand) {
        let next = move.epoch.next()
        var shard = map.first { $0.id == move.shard }!
        switch move.step {
        case .split(let key, let right):
            return (move.from, .split(move.shard, move.epoch, at: key, into: right))
        case .merge(let neighbour, let epoch, _):
            return (move.from, .merge(move.shard, move.epoch, with: neighbour, at: epoch))
        case .verify: return (move.to, .verify(move.shard, next))
        case .fence: return (move.from, .fence(move.shard, move.epoch, to: move.to))
        case .activate:
            shard.group = move.to
            shard.epoch = next
            return (move.to, .activate(shard, .range, from: move.from, floor: move.floor))
        case .finish, .reverseTooLate: return (move.to, .finish(move.shard, next))
        case .decline: return (move.to, .decline(move.shard, next))
        case .takeBack:
            shard.group = move.from
            shard.epoch = next.next()
            return (move.from, .activate(shard, .range, from: .none, floor: move.floor))
        case .reverse: return (move.to, .fence(move.shard, next, to: move.from))
        }
    }

    mutating func deliver(_ attempt: Int) {
        let command = controller.attempts[attempt].command
        var value = ByteWriter()
        command.encode(into: &value)
        propose(
            groupIndex(controller.attempts[attempt].group),
            [
                (
                    Self.operation(
                        .shardCommand, shard: command.shard, epoch: command.epoch,
                        value: value.bytes), .controller(attempt: attempt)
                )
            ])
    }

    mutating func learn(_ attempt: Int, _ outcome: MigrationOutcome) {
        if outcome.error != nil { count { $0.refusedCommands += 1 } }
        if case .release(let shard, let epoch) = controller.attempts[attempt].command {
            // Of one that was released before, or comes late, nothing is known any more.
            if outcome.error == nil {
                controller.former.removeAll { $0.shard == shard && $0.epoch == epoch }
            }
            return
        }
        guard var move = controller.move, controller.attempts[attempt].stage == controller.stage
        else { return }
        guard outcome.error == nil else {
            switch move.step {
            case .decline, .reverseTooLate: move.step = .reverse
            case .reverse: move.step = .reverseTooLate
            case .merge(_, _, isOutdated: true):
                count { $0.refusedMerges += 1 }
                return enter(nil)
            default: return
            }
            return enter(move)
        }
        let next = move.epoch.next()
        switch move.step {
        case .split(let key, let right):
            publishSplit(move.shard, next, at: key, into: right)
            count { $0.splits += 1 }
            return enter(nil)
        case .merge(let neighbour, let epoch, let isOutdated):
            // Of a merge that should have been refused the map learns nothing.
            if !isOutdated { publishMerge(move.shard, max(move.epoch, epoch).next(), neighbour) }
            count { $0.merges += 1 }
            return enter(nil)
        case .verify:
            count { $0.verifications += 1 }
            move.step = .finish
        case .fence:
            move.floor = outcome.sequencer
            move.step = .activate
            if random.chance(1, in: 2) { publish(move.shard, move.to, next) }
        case .activate:
            publish(move.shard, move.to, next)
            move.step = .verify
        case .finish, .reverseTooLate:
            publish(move.shard, move.to, next.next())
            controller.former.append(
                MigrationController.Former(
                    shard: move.shard, group: move.from, epoch: next.next(),
                    range: map.first { $0.id == move.shard }!.range))
            count { $0.moves += 1 }
            return enter(nil)
        case .decline: move.step = .takeBack
        case .takeBack:
            publish(move.shard, move.from, next.next())
            count { $0.givenUp += 1 }
            return enter(nil)
        case .reverse:
            count { $0.reversals += 1 }
            move = MigrationController.Move(
                shard: move.shard, from: move.to, to: move.from, epoch: next, step: .activate,
                floor: outcome.sequencer, isReverse: true)
        }
        enter(move)
    }

    private mutating func publish(
        _ shard: ShardID, _ group: GroupID, _ epoch: Epoch
    ) {
        let position = map.firstIndex { $0.id == shard }!
        map[position].group = group
        map[position].epoch = epoch
    }

    private mutating func publishSplit(
        _ shard: ShardID, _ epoch: Epoch, at key: Bytes, into right: ShardID
    ) {
        let position = map.firstIndex { $0.id == shard }!
        var upper = map[position]
        map[position].epoch = epoch
        map[position].range.end = key
        upper.id = right
        upper.epoch = epoch
        upper.range.start = key
        map.append(upper)
    }

    private mutating func publishMerge(
        _ shard: ShardID, _ epoch: Epoch, _ neighbour: ShardID
    ) {
        let right = map.remove(at: map.firstIndex { $0.id == neighbour }!)
        let position = map.firstIndex { $0.id == shard }!
        map[position].epoch = epoch
        map[position].range.end = right.range.end
    }

    // MARK: The copy

    /// The new owner's leader asks for what comes after the cursor.
    mutating func pull(_ group: Int) {
        heap.push(.pull(group), at: now + 5 + random.below(2 * delayMax))
        guard now >= groups[group].heldUntil else { return }
        for held in groups[group].state.shards.elements {
            guard case .importing(let source, _, let cursor?) = held.phase else { continue }
            send(
                .chunkRequest(
                    MigrationChunkRequest(
                        source: source, target: groups[group].id, shard: held.shard.id,
                        epoch: held.shard.epoch, from: cursor)))
        }
    }

    mutating func serve(_ request: MigrationChunkRequest) {
        let group = groups[groupIndex(request.source)]
        guard let held = try? group.state.readable(request.shard, request.epoch),
            case .fenced = held.phase
        else { return }
        let keys = group.sortedKeys(in: KeyRange(start: request.from, end: held.shard.range.end))
        let limit = 1 + Int(random.below(3))
        let taken = keys.prefix(limit)
        send(
            .chunk(
                MigrationChunk(
                    request: request, to: keys.count > limit ? keys[limit] : nil,
                    records: taken.map { ($0, group.records[$0]!) })))
    }

    mutating func install(_ chunk: MigrationChunk) {
        let request = chunk.request
        var operations: [(Bytes, MigrationWaiter)] = []
        for (key, record) in chunk.records {
            let bytes = Self.importOperation(request.shard, request.epoch, key, record)
            operations.append((bytes, .none))
        }
        var value = ByteWriter()
        ShardCommand.advance(request.shard, request.epoch, from: request.from, to: chunk.to)
            .encode(into: &value)
        operations.append(
            (
                Self.operation(
                    .shardCommand, shard: request.shard, epoch: request.epoch, value: value.bytes),
                .none
            ))
        propose(groupIndex(request.target), operations)
        // Ahead of what is applied, as a leader in a hurry would.
        if let to = chunk.to, random.chance(1, in: 2) {
            var next = request
            next.from = to
            send(.chunkRequest(next))
        }
    }
}
