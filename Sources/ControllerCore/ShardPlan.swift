// What an operation on a shard would do, before it is started.

import KVBase
import ShardCore

/// The load and size of a group, as last reported, or as it would be.
public struct GroupForecast: Hashable, Sendable {
    /// `.none`: the group that would be formed.
    public var group: GroupID
    /// Requests per second.
    public var operations: UInt64
    /// Of its records.
    public var bytes: UInt64
    public var shards: Int

    public init(group: GroupID, operations: UInt64, bytes: UInt64, shards: Int) {
        self.group = group
        self.operations = operations
        self.bytes = bytes
        self.shards = shards
    }
}

/// The load and size of a node: of the groups that the plan touches only.
public struct NodeForecast: Hashable, Sendable {
    public var node: NodeID
    /// Requests per second of groups that it leads; a group that would be formed is led by nobody yet.
    public var operations: UInt64
    /// Of the records of its replicas.
    public var bytes: UInt64

    public init(node: NodeID, operations: UInt64, bytes: UInt64) {
        self.node = node
        self.operations = operations
        self.bytes = bytes
    }
}

/// A group that does not take the shard, and why.
public struct SkippedGroup: Hashable, Sendable {
    public var group: GroupID
    public var reason: String

    public init(group: GroupID, reason: String) {
        self.group = group
        self.reason = reason
    }
}

/// What an operation on a shard would do, and on which grounds.
public struct ShardPlan: Hashable, Sendable {
    /// `split`, `move` or `merge`.
    public var kind: OperationRecord.Kind
    /// Ids of the shard and the group that come into being are `.none` until it is started.
    public var work: ShardWork
    /// The half that moves is the new shard, whose id is not known yet.
    public var movesUpper: Bool
    public var table: Table
    /// The record of `work.shard`: its epoch and group are what the plan rests on.
    public var shard: Shard
    /// Of a merge: likewise.
    public var neighbour: Shard?
    /// Nodes and disks of the group to be formed (replica `.none`); empty: none is formed.
    public var formsOn: [Placement]
    /// To copy, as last counted or about so; nil when not known.
    public var bytes: UInt64?
    public var records: UInt64?
    /// Requests per second that go to another group, about; nil when not known.
    public var operations: UInt64?
    /// Of the groups that take part.
    public var groupsBefore: [GroupForecast]
    public var groupsAfter: [GroupForecast]
    public var nodesBefore: [NodeForecast]
    public var nodesAfter: [NodeForecast]
    public var skipped: [SkippedGroup]
    /// `the key halves 4310 requests/s`, and why nothing moves where that was asked for.
    public var grounds: String

    /// Some shard changes its group.
    public var moves: Bool { movesUpper || work.moving != .none }
}

/// What is known of the step of an operation on a shard; lost with the controller.
struct ShardProgress: Sendable {
    /// A command of this step may have been sent, by this controller or one before it.
    var mayHaveSent = true
    /// Commands of this part of the step, the newest last.
    var sent: [UInt64] = []
    /// The part of a step that has several.
    var part = ShardStepPart.first
    /// That the fence was answered with: the floor for the next owner.
    var floor: Sequencer = .zero
    var holdAgainAt: Instant = .origin
    /// Digests count that were made above this place of the log.
    var verifiedAbove: LogIndex?
    var verifyAgainAt: Instant = .origin
    /// How often digests were asked for.
    var verifications: UInt64 = 0

    init(mayHaveSent: Bool = true) { self.mayHaveSent = mayHaveSent }
}

/// Parts of `switching` (fence, activate; finish where the fence came too late) and of `declining`
/// (decline, fence, take back).
enum ShardStepPart: Sendable {
    case first
    case second
    case third
}
