// Commands to nodes, and whom their outcomes concern.

import KVBase
import ShardCore

extension Controller {
    /// What a command is for, to be found by its id when its outcome comes.
    enum CommandTarget: Sendable {
        case createReplica(GroupID, placement: Int)
        case nominate(GroupID, Term)
        case transfer(GroupID)
        case shard(TableID, ShardID)
        case operation(OperationID)
        case hold
        case removal(ReplicaID)
        case former(OperationID)
        case stray(ReplicaID)
    }

    /// Sends a command with this step's batch; returns its id.
    mutating func command(
        _ node: NodeID, _ action: NodeCommand.Action, _ target: CommandTarget
    ) -> UInt64 {
        commandsIssued += 1
        let command = NodeCommand(id: commandsIssued, action: action)
        commands[command.id] = target
        if !outgoing.update(node, { $0.append(command) }) { outgoing.set([command], for: node) }
        return command.id
    }

    mutating func observe(
        _ outcomes: [CommandOutcome], on connection: ConnectionID, now: Instant,
        into effects: inout ControllerEffects
    ) {
        guard isActing, let node = connections[connection] else { return }
        for outcome in outcomes where outcome.controllerTerm == term {
            guard let target = commands.removeValue(forKey: outcome.id) else { continue }
            switch target {
            case .createReplica(let group, let placement):
                replicaOutcome(
                    group, placement, node, outcome.error, now: now, into: &effects)
            case .nominate(let group, let term):
                nominationOutcome(group, term, outcome.error, now: now)
            case .transfer(let group):
                if transfer?.group == group { transfer = nil }
            case .shard(let table, let shard):
                shardOutcome(table, shard, outcome, now: now, into: &effects)
            case .operation(let id):
                operationOutcome(id, outcome, now: now, into: &effects)
            case .removal(let replica):
                removalOutcome(replica, outcome.error, now: now, into: &effects)
            case .former(let id):
                formerOutcome(id, outcome, now: now, into: &effects)
            case .hold, .stray: break
            }
        }
    }
}
