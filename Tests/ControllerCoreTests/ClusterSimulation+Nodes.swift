// What simulated nodes do: they register, and carry out the commands of the controller.

import KVBase
import ShardCore

@testable import ControllerCore

extension ClusterSimulation {
    func connect(_ index: Int) -> Happening {
        .connect(index, incarnation: nodes[index].incarnation)
    }

    func register(_ index: Int) {
        guard controller != nil else {
            schedule(.milliseconds(50), connect(index))
            return
        }
        connectionsIssued += 1
        let connection = ConnectionID(connectionsIssued)
        nodes[index].connection = connection
        let node = nodes[index]
        let registration = NodeRegistration(
            node: node.id, cluster: node.cluster, incarnation: node.incarnation, name: node.name,
            rpcAddress: "\(node.name):7000", adminAddress: "\(node.name):7001", zone: node.zone,
            isSpare: node.isSpare, diskPaths: ["/a", "/b"])
        schedule(
            .microseconds(300), .toController(.register(connection, registration), life: life))
    }

    func receive(_ effect: ControllerEffect, at index: Int) {
        switch effect {
        case .admit(let connection, let admission):
            guard nodes[index].connection == connection else { return }
            if nodes[index].id != .none, nodes[index].id != admission.node {
                violations.append("\(nodes[index].name) got a second identity")
            }
            nodes[index].id = admission.node
            nodes[index].cluster = admission.cluster
            nodes[index].isAdmitted = true
            schedule(.milliseconds(1), .beat(index, incarnation: nodes[index].incarnation))
        case .reject(let connection, _):
            guard nodes[index].connection == connection else { return }
            nodes[index].connection = nil
            nodes[index].isAdmitted = false
            schedule(
                .microseconds(200), .toController(.connectionClosed(connection), life: life))
            schedule(.milliseconds(100), connect(index))
        case .send(_, let batch):
            guard batch.controllerTerm >= nodes[index].seenControllerTerm else { return }
            nodes[index].seenControllerTerm = batch.controllerTerm
            var outcomes: [CommandOutcome] = []
            for command in batch.commands {
                if case .shard(let group, let shardCommand) = command.action {
                    enqueue(
                        shardCommand, in: group, at: index, controllerTerm: batch.controllerTerm,
                        id: command.id)
                } else {
                    outcomes.append(
                        CommandOutcome(
                            id: command.id, controllerTerm: batch.controllerTerm,
                            error: carryOut(command.action, at: index)))
                }
            }
            guard !outcomes.isEmpty, let connection = nodes[index].connection else { return }
            if !random.chance(lostPerMille, in: 1_000) {
                schedule(
                    .microseconds(300),
                    .toController(.outcomes(connection, outcomes), life: life))
            }
            beat(index)
        default: break
        }
    }

    private func carryOut(_ action: NodeCommand.Action, at index: Int) -> DatabaseError? {
        switch action {
        case .createReplica(let group, let replica):
            if store.durable.nodes.first(where: { $0.id == nodes[index].id })?.isSpare != false {
                violations.append("spare told to host a replica")
            }
            if memberships[group.id] == nil {
                memberships[group.id] = Members(voters: group.placements.map(\.replica))
            }
            return create(replica, of: group, at: index)
        case .createLearner(let group, let placement):
            return create(placement.replica, of: group, at: index)
        case .addLearner(let group, let placement):
            guard nodes[index].leads[group] != nil, hasMajority(group) else {
                return DatabaseError(.notLeader, "not leader")
            }
            guard memberships[group]?.voters.contains(placement.replica) != true else {
                return DatabaseError(.refused, "is a voter")
            }
            if memberships[group]?.learners.contains(placement.replica) == false {
                memberships[group]?.learners.append(placement.replica)
            }
            return nil
        case .removeLearner(let group, let replica):
            guard nodes[index].leads[group] != nil, hasMajority(group) else {
                return DatabaseError(.notLeader, "not leader")
            }
            guard memberships[group]?.voters.contains(replica) != true else {
                return DatabaseError(.refused, "is a voter")
            }
            memberships[group]?.learners.removeAll { $0 == replica }
            return nil
        case .replaceVoters(let group, let voters):
            return swap(group, to: voters.map(\.replica), at: index)
        case .removeReplica(let group, let replica, _):
            let voters = memberships[group]?.voters ?? []
            let isDissolved = !store.durable.groups.contains { $0.group.id == group }
            if voters.contains(replica), !isDissolved {
                violations.append("voter \(replica) of group \(group) was removed")
            }
            guard nodes[index].leads[group] == nil || voters.count == 1 || !hasMajority(group)
            else { return DatabaseError(.refused, "it still leads") }
            if nodes[index].replicas.contains(where: { $0.replica.id == replica }) {
                nodes[index].leads[group] = nil
            }
            nodes[index].replicas.removeAll { $0.replica.id == replica }
            nodes[index].buried.insert(replica)
            return nil
        case .nominate(let group, let replica, let term):
            return elect(group, replica, term, at: index)
        case .transferLeadership(let group, let to):
            guard let term = nodes[index].leads[group],
                let target = nodes.firstIndex(where: {
                    $0.isRunning && $0.replicas.contains { $0.replica.id == to }
                })
            else { return DatabaseError(.notLeader, "not leader") }
            return elect(group, to, term.next(), at: target)
        case .createShard(let shard, let partitioning):
            guard nodes[index].leads[shard.group] != nil else {
                return DatabaseError(.notLeader, "not leader")
            }
            return applyControl(.createShard, shard, partitioning)
        case .dropShard(let shard):
            guard nodes[index].leads[shard.group] != nil else {
                return DatabaseError(.notLeader, "not leader")
            }
            return applyControl(.dropShard, shard, .range)
        case .holdCopy(let group, let shard):
            holdCount += 1
            states[group]?.heldUntil[shard] = now + .seconds(3)
            return nil
        case .shard: preconditionFailure("goes through the log")
        }
    }
}
