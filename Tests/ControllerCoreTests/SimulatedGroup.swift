// The log of a group in the controller's simulation: linearized, with the state machine of real nodes.

import KVBase
import NodeCore
import ReplicationCore
import ShardCore

@testable import ControllerCore

struct SimulatedGroup {
    var state: GroupState
    /// Of the newest entry.
    var index: UInt64 = 0
    /// Copies that rest because a controller asked for it.
    var heldUntil: [ShardID: Instant] = [:]
    /// Of the copies under way.
    var copiedBytes: [ShardID: UInt64] = [:]

    init(_ id: GroupID) {
        state = GroupState(
            membership: Membership(
                voters: [Member(replica: ReplicaID(1), node: NodeID(id.rawValue))]))
    }

    mutating func nextSequencer() -> Sequencer {
        index += 1
        return Sequencer(time: index, counter: 0, node: NodeID(1))
    }
}

extension ClusterSimulation {
    // MARK: Commands

    /// A command about a shard has reached a node: its group's log takes it in, now or late.
    func enqueue(
        _ command: ShardCommand, in group: GroupID, at index: Int, controllerTerm: Term, id: UInt64
    ) {
        let incarnation = nodes[index].incarnation
        guard nodes[index].leads[group] != nil, hasMajority(group) else {
            return answer(
                CommandOutcome(
                    id: id, controllerTerm: controllerTerm,
                    error: DatabaseError(.notLeader, "not leader")), from: index)
        }
        let isLate = random.chance(latePerMille, in: 1_000)
        let delay: Nanoseconds =
            isLate ? .milliseconds(random.below(1_500)) : .microseconds(100 + random.below(2_000))
        schedule(
            delay,
            .shardCommand(
                group, command, at: index, incarnation: incarnation,
                controllerTerm: controllerTerm, id: id))
        if random.chance(repeatedPerMille, in: 1_000) {
            schedule(
                .milliseconds(random.below(5_000)),
                .shardCommand(
                    group, command, at: index, incarnation: incarnation,
                    controllerTerm: controllerTerm, id: nil))
        }
    }

    func answer(_ outcome: CommandOutcome, from index: Int) {
        guard let connection = nodes[index].connection, !random.chance(lostPerMille, in: 1_000)
        else { return }
        schedule(.microseconds(300), .toController(.outcomes(connection, [outcome]), life: life))
    }

    func applyShardCommand(
        _ command: ShardCommand, in group: GroupID
    ) -> (error: DatabaseError?, floor: Sequencer) {
        guard hasMajority(group), leader(of: group) != nil else {
            return (DatabaseError(.unavailable, "the group cannot commit"), .zero)
        }
        var held = states[group] ?? SimulatedGroup(group)
        let sequencer = held.nextSequencer()
        defer {
            states[group] = held
            checkShards()
        }
        do throws(DatabaseError) {
            let effect = try held.state.apply(command, sequencer: sequencer)
            trace("\(group) \(command)")
            if case .activate(_, _, from: let source, floor: _) = command, source != .none {
                held.copiedBytes[command.shard] = 0
                schedule(.milliseconds(1 + random.below(30)), .copyChunk(group))
            }
            if effect.verified != nil { digest(command.shard, command.epoch, held.index, group) }
            return (nil, effect.floor)
        } catch {
            trace("\(group) refused \(command): \(error.message)")
            return (error, .zero)
        }
    }

    func applyControl(
        _ code: OperationCode, _ shard: Shard, _ partitioning: Partitioning
    ) -> DatabaseError? {
        var held = states[shard.group] ?? SimulatedGroup(shard.group)
        _ = held.nextSequencer()
        var writer = ByteWriter()
        OwnedShard(shard: shard, partitioning: partitioning).encode(into: &writer)
        defer { states[shard.group] = held }
        do throws(DatabaseError) {
            try writer.bytes.withRawBytes { (bytes) throws(DatabaseError) in
                _ = try held.state.apply(code, bytes)
            }
            return nil
        } catch {
            return error
        }
    }

    // MARK: The copy

    /// The leader of a group goes on with every copy under way.
    func copyChunk(_ group: GroupID) {
        guard var held = states[group] else { return }
        var isUnderWay = false
        for owned in held.state.shards.elements {
            guard case .importing(let source, _, let cursor?) = owned.phase else { continue }
            isUnderWay = true
            let id = owned.shard.id
            guard !holdsCopies, held.heldUntil[id].map({ now >= $0 }) ?? true,
                hasMajority(group), leader(of: group) != nil, hasMajority(source)
            else { continue }
            guard let from = states[source]?.state.shards[id], case .fenced = from.phase,
                from.shard.epoch.next() == owned.shard.epoch
            else {
                violations.append("group \(source) has nothing to copy of shard \(id)")
                continue
            }
            let next = cursor + [1]
            let isLast = next.count - owned.shard.range.start.count >= options.chunks
            let to = !isLast && owned.shard.range.contains(next) ? next : nil
            let sequencer = held.nextSequencer()
            do throws(DatabaseError) {
                _ = try held.state.apply(
                    .advance(id, owned.shard.epoch, from: cursor, to: to), sequencer: sequencer)
                held.copiedBytes[id, default: 0] += 1_000
            } catch {
                violations.append("a chunk was refused: \(error.message)")
            }
            if to == nil, let leader = leader(of: group),
                let index = nodes.firstIndex(where: { $0.id == leader })
            {
                states[group] = held
                beat(index)
            }
        }
        states[group] = held
        if isUnderWay { schedule(.milliseconds(5 + random.below(30)), .copyChunk(group)) }
    }

    func copies(of node: SimNode) -> [CopyReport] {
        guard !isSilentAboutMoves else { return [] }
        var reports: [CopyReport] = []
        for group in node.leads.keys.sorted() {
            for owned in states[group]?.state.shards.elements ?? [] {
                guard case .importing(_, _, let cursor) = owned.phase else { continue }
                reports.append(
                    CopyReport(
                        shard: owned.shard.id, epoch: owned.shard.epoch, isWhole: cursor == nil,
                        bytes: states[group]?.copiedBytes[owned.shard.id] ?? 0, records: 1,
                        isThrottled: false))
            }
        }
        return reports
    }

    func load(of node: SimNode) -> LoadReport? {
        if let traffic { return traffic.load(of: node, states) }
        var report = LoadReport(groups: [], shards: [])
        for group in node.leads.keys.sorted() {
            guard let load = loads[group] else { continue }
            report.groups += load.groups
            report.shards += load.shards
        }
        return report.groups.isEmpty ? nil : report
    }

    private func digest(_ shard: ShardID, _ epoch: Epoch, _ index: UInt64, _ group: GroupID) {
        for (position, node) in nodes.enumerated() where node.isRunning {
            guard let replica = node.replicas.first(where: { $0.group.id == group })?.replica.id
            else { continue }
            let digest = ShardDigest(
                group: group, replica: replica, shard: shard, epoch: epoch,
                index: LogIndex(index), digest: replica == corruptReplica ? 13 : 7, records: 100)
            schedule(
                .milliseconds(1 + random.below(80)),
                .digested(position, incarnation: node.incarnation, digest))
        }
    }

    // MARK: Checks

    private func trace(_ text: String) {
        log.append("\(now.nanoseconds / 1_000_000) [group] \(text)")
    }

    /// Holds after every event: one group at most takes writes of a key, and the map points only to
    /// groups that hold the shard or have just joined it to its neighbour.
    func checkShards() {
        var writable: [(group: GroupID, shard: Shard)] = []
        for group in states.keys.sorted() {
            for owned in states[group]?.state.shards.elements ?? [] {
                if case .fenced = owned.phase { continue }
                writable.append((group, owned.shard))
            }
        }
        for (position, one) in writable.enumerated() {
            for other in writable[..<position]
            where one.shard.table == other.shard.table
                && one.shard.range.overlaps(other.shard.range)
            {
                violations.append(
                    "shard \(one.shard.id) in group \(one.group) and shard \(other.shard.id) in group "
                        + "\(other.group) take the same keys at \(now.nanoseconds / 1_000_000)")
            }
        }
        var shown: [Shard] = []
        for named in follower.activeTables {
            named.index.forEachRange { location, range in
                shown.append(
                    Shard(
                        id: location.shard, table: named.table.id, range: range,
                        group: location.group, epoch: location.epoch, state: .active))
            }
        }
        for shard in shown {
            let here = states[shard.group]?.state.shards
            guard here?[shard.id] == nil else { continue }
            let isCovered =
                here?.elements.contains {
                    $0.shard.table == shard.table && $0.shard.range.overlaps(shard.range)
                } ?? false
            if !isCovered {
                violations.append(
                    "the map shows shard \(shard.id) in group \(shard.group), which does not hold "
                        + "it, at \(now.nanoseconds / 1_000_000)")
            }
        }
    }

    /// Holds once everything runs and no operation is under way.
    var shardDifferences: [String] {
        var found: [String] = []
        let stored = store.durable.shards
        for shard in stored {
            let owned = states[shard.group]?.state.shards[shard.id]
            guard let owned, owned.phase == .owned, owned.shard.range == shard.range,
                owned.shard.epoch == shard.epoch
            else {
                found.append("stored: \(shard); in its group: \(String(describing: owned))")
                continue
            }
        }
        for group in states.keys.sorted() {
            for owned in states[group]?.state.shards.elements ?? []
            where !stored.contains(where: { $0.id == owned.shard.id && $0.group == group }) {
                found.append("left in group \(group): \(owned)")
            }
        }
        return found
    }
}
