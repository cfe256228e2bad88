// What controllers ask of this node.

import KVBase
import NodeCore
import ReplicationCore
import ShardCore
import StorageAPI
import SystemdSupport

extension NodeServer {
    /// Carries out commands unless a newer controller has spoken.
    func receive(_ message: NodeCommands) {
        guard message.controllerTerm >= controllerTerm else {
            for command in message.commands {
                outcomes.append(
                    CommandOutcome(
                        id: command.id, controllerTerm: message.controllerTerm,
                        error: DatabaseError(
                            .fenced, "controller term \(controllerTerm) was seen")))
            }
            return
        }
        controllerTerm = message.controllerTerm
        for command in message.commands {
            perform(
                command.action,
                Waiter(
                    slot: Waiter.commandSlot,
                    generation: UInt32(truncatingIfNeeded: controllerTerm.rawValue),
                    token: command.id))
        }
    }

    func finishCommand(_ waiter: Waiter, error: DatabaseError?, floor: Sequencer = .zero) {
        outcomes.append(
            CommandOutcome(
                id: waiter.token, controllerTerm: Term(UInt64(waiter.generation)), error: error,
                floor: floor))
        isHeartbeatDue = true
    }

    private func perform(_ action: NodeCommand.Action, _ waiter: Waiter) {
        switch action {
        case .createReplica(let group, let replica):
            createReplica(group, replica, waiter)
        case .nominate(let group, let replica, let term):
            step(group, replica, .nominate(term), waiter)
        case .transferLeadership(let group, let target):
            step(group, nil, .transferLeadership(to: target), waiter)
        case .createShard(let shard, let partitioning):
            let owned = OwnedShard(shard: shard, partitioning: partitioning)
            propose(.createShard, shard.id, shard.epoch, in: shard.group, waiter) {
                owned.encode(into: &$0)
            }
        case .dropShard(let shard):
            let owned = OwnedShard(shard: shard, partitioning: .range)
            propose(.dropShard, shard.id, shard.epoch, in: shard.group, waiter) {
                owned.encode(into: &$0)
            }
        case .shard(let group, let command):
            propose(.shardCommand, command.shard, command.epoch, in: group, waiter) {
                command.encode(into: &$0)
            }
        case .holdCopy(let group, let shard):
            holdCopy(of: shard, in: group, waiter)
        case .createLearner(let group, let placement):
            create(group, placement, Membership.empty, waiter)
        case .addLearner(let group, let placement):
            change(group, .addLearner(Member(placement)), waiter)
        case .removeLearner(let group, let replica):
            change(group, .removeLearner(replica), waiter)
        case .replaceVoters(let group, let voters):
            change(group, .replaceVoters(voters.map { Member($0) }), waiter)
        case .removeReplica(let group, let replica, let reason):
            remove(group, replica, because: reason, waiter)
        }
    }

    private func step(_ group: GroupID, _ id: ReplicaID?, _ event: Event, _ waiter: Waiter) {
        guard let replica = replicas[group], !replica.isFailed, id == nil || replica.id == id
        else {
            finishCommand(
                waiter, error: DatabaseError(.refused, "no such replica of group \(group) here"))
            return
        }
        if case .nominate(let term) = event, !replica.isPlausible(term) {
            finishCommand(
                waiter, error: DatabaseError(.refused, "term \(term) is out of all proportion"))
            return
        }
        replica.step(event)
        finishCommand(waiter, error: nil)
    }

    private func change(_ group: GroupID, _ change: MembershipChange, _ waiter: Waiter) {
        guard let replica = replicas[group], !replica.isFailed, replica.isLeader else {
            finishCommand(waiter, error: DatabaseError(.notLeader, "not the leader"))
            return
        }
        replica.changeMembership(change, waiter)
    }

    private func holdCopy(of shard: ShardID, in group: GroupID, _ waiter: Waiter) {
        guard let replica = replicas[group], !replica.isFailed, replica.isLeader else {
            finishCommand(waiter, error: DatabaseError(.notLeader, "not the leader"))
            return
        }
        guard replica.state.shards[shard]?.isImporting == true else {
            finishCommand(
                waiter, error: DatabaseError(.refused, "shard \(shard) is not being copied here"))
            return
        }
        replica.holdCopy(of: shard)
        finishCommand(waiter, error: nil)
    }

    private func propose(
        _ code: OperationCode, _ shard: ShardID, _ epoch: Epoch, in group: GroupID,
        _ waiter: Waiter, encode: (inout ByteWriter) -> Void
    ) {
        guard let replica = replicas[group], !replica.isFailed,
            replica.core.canPropose
        else {
            answer(waiter, error: DatabaseError(.notLeader, "not the leader"))
            return
        }
        var value = ByteWriter()
        encode(&value)
        var writer = ByteWriter()
        value.bytes.withUnsafeBytes {
            writer.writeOperation(
                group: group, shard: shard, epoch: epoch, code: code,
                key: UnsafeRawBufferPointer(start: nil, count: 0), value: $0)
        }
        do throws(DatabaseError) {
            try writer.bytes.withRawBytes { (bytes) throws(DatabaseError) in
                try replica.enqueue(bytes, keyHash: nil, waiter: waiter)
            }
        } catch {
            answer(waiter, error: error)
        }
    }

    // MARK: Creating replicas

    /// A replica of a new group, whose members are known from the start.
    private func createReplica(_ group: Group, _ id: ReplicaID, _ waiter: Waiter) {
        guard let placement = group.placements.first(where: { $0.replica == id }) else {
            finishCommand(
                waiter, error: DatabaseError(.refused, "replica \(id) is not placed here"))
            return
        }
        create(group, placement, Membership(voters: group.placements.map { Member($0) }), waiter)
    }

    /// Engine first, then log, each durable, then the replica exists. A crash in between leaves
    /// something that recovery discards and the controller's repetition replaces.
    private func create(
        _ group: Group, _ placement: Placement, _ membership: Membership, _ waiter: Waiter
    ) {
        let id = placement.replica
        if let present = replicas[group.id] {
            finishCommand(
                waiter,
                error: present.id == id
                    ? nil
                    : DatabaseError(
                        .refused, "group \(group.id) has replica \(present.id) here"))
            return
        }
        guard !creating.contains(group.id) else { return }
        guard placement.node == identity.node, Int(placement.disk) < disks.count else {
            finishCommand(
                waiter, error: DatabaseError(.refused, "replica \(id) is not placed here"))
            return
        }
        let disk = disks[Int(placement.disk)]
        guard disk.failure == nil else {
            finishCommand(
                waiter, error: DatabaseError(.storageFailed, "disk \(disk.path) failed"))
            return
        }
        guard !wasRemoved(group.id, id) else {
            finishCommand(
                waiter,
                error: DatabaseError(
                    .fenced, "replica \(id) of group \(group.id) was removed from this node"))
            return
        }
        creating.append(group.id)
        let replica = GroupReplica(
            node: self, disk: disk, group: group.id, id: id, engineKind: group.engine,
            store: disk.allocateStore(), state: GroupState(membership: membership),
            restored: RestoredState(
                hardState: HardState(), applied: LogPosition(), membership: membership,
                entries: [], compacted: LogPosition()),
            seed: random.next(), now: now)
        applyScratch.reset()
        applyScratch.clear(replica.store)
        replica.putState(applyScratch)
        replica.putCatalog(applyScratch)
        do throws(DatabaseError) {
            try replica.engine.apply(applyScratch.batch)
        } catch {
            disk.fail(error)
            return
        }
        disk.checkpoint(replica.engine) { [unowned self] in
            disk.stageCreation(group.id, id) { [unowned self] in
                creating.removeAll { $0 == group.id }
                add(replica)
                log.notice(
                    "replica created", [LogField("group", group.id), LogField("replica", id)])
                finishCommand(waiter, error: nil)
            }
        }
    }
}

extension Member {
    init(_ placement: Placement) {
        self.init(replica: placement.replica, node: placement.node)
    }
}

extension GroupReplica {
    /// The follower that is furthest, to hand the leadership to; nil when none follows closely. One
    /// that does not answer would only keep the group from working.
    func bestSuccessor(at now: Instant) -> ReplicaID? {
        core.progress
            .filter { $0.state == .replicate && isAnswering($0, at: now) }
            .max { ($0.match, $1.member.replica) < ($1.match, $0.member.replica) }?
            .member.replica
    }

    /// Whether a voter answers, which follows closely or may come to.
    func hasSuccessor(at now: Instant) -> Bool {
        core.progress.contains { isAnswering($0, at: now) }
    }

    private func isAnswering(_ follower: FollowerProgress, at now: Instant) -> Bool {
        core.membership.isVoter(follower.member.replica)
            && follower.acknowledgedAt.map { now - $0 < Self.answersWithin } ?? false
    }

    /// Followers answer each heartbeat.
    private static let answersWithin = Nanoseconds.milliseconds(500)
}
