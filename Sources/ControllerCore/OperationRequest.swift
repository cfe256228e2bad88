// What operators ask for, and how it reads in the decision log.

import KVBase
import ShardCore

/// What an operator asks for.
public enum OperationRequest: Hashable, Sendable {
    /// Of one group, or of all groups of the node; `with`: the name of the node that takes over.
    case replace(node: String, group: GroupID?, with: String?)
    /// To a group that has fewer replicas than its tables ask for; `on`: the name of the node.
    case addReplica(GroupID, on: String?)
    case drain(node: String)
    /// The node may hold replicas again.
    case endDrain(node: String)
    case transfer(GroupID, node: String)
    /// Evens out what nodes and groups hold and do, step by step.
    case rebalance
    /// Stores everything, and a snapshot of it, in the backup of the metadata.
    case backup
    /// Reads every object of the backup.
    case verifyBackup
    case split(SplitRequest)
    case move(ShardID, to: MoveTarget)
    /// The shard takes in its right neighbour.
    case merge(ShardID)
    case cancel(OperationID)
    case pause(OperationID)
    case resume(OperationID)
    /// Takes back what the operation did: one under way is cancelled, a move that is done goes back.
    case reverse(OperationID)
    /// Starts what a rule proposed.
    case apply(OperationID)
    /// A setting that can be changed at run time; `default` goes back to its default.
    case configure(name: String, value: String)
    /// How many replicas a node takes in comparison with others; 0 for none.
    case setWeight(node: String, weight: UInt8)
    /// Puts a node that holds nothing into the spare pool, or takes it out.
    case setSpare(node: String, Bool)
    /// Forgets a node that holds nothing and does not run.
    case removeNode(String)
    /// Leaders leave the node and repair leaves its replicas alone, for so long at most.
    case maintenance(node: String, for: Nanoseconds)
    case endMaintenance(node: String)
}

extension OperationRequest {
    /// For the decision log.
    var words: String {
        switch self {
        case .replace(let node, nil, _): "replace \(node)"
        case .replace(let node, let group?, _): "replace \(node) in group \(group)"
        case .addReplica(let group, _): "a further replica of group \(group)"
        case .drain(let node): "drain \(node)"
        case .endDrain(let node): "the end of the drain of \(node)"
        case .transfer(let group, let node): "transfer of group \(group) to \(node)"
        case .rebalance: "rebalance"
        case .backup: "backup"
        case .verifyBackup: "verification of the backup"
        case .split(let split): "split of table \(split.table)"
        case .move(let shard, _): "move of shard \(shard)"
        case .merge(let shard): "merge of shard \(shard)"
        case .cancel(let id): "cancel of operation \(id)"
        case .pause(let id): "pause of operation \(id)"
        case .resume(let id): "resumption of operation \(id)"
        case .reverse(let id): "reversal of operation \(id)"
        case .apply(let id): "application of operation \(id)"
        case .configure(let name, let value): "\(name) = \(value)"
        case .setWeight(let node, let weight): "weight \(weight) of \(node)"
        case .setSpare(let node, let isSpare): "\(node) as \(isSpare ? "a spare" : "no spare")"
        case .removeNode(let node): "removal of \(node)"
        case .maintenance(let node, _): "maintenance of \(node)"
        case .endMaintenance(let node): "the end of the maintenance of \(node)"
        }
    }
}
