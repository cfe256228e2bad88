// Operations as the metadata store holds them.

import KVBase
import ShardCore

/// Names an operation for operators. Never reused.
public struct OperationID: IntegerIdentity {
    public let rawValue: UInt32
    public init(rawValue: UInt32) { self.rawValue = rawValue }
}

/// Something that takes several steps, each stored before it is acted on, so that the next controller
/// goes on where the last one ended.
public struct OperationRecord: Hashable, Sendable {
    /// Raw values are in the store.
    public enum Kind: UInt8, CaseIterable, Sendable {
        /// One replica of one group gives its place to a new one on another node.
        case replaceReplica = 1
        /// All replicas of a node, one after the other, to a spare.
        case replaceNode = 2
        /// All replicas of a node, one after the other, to wherever is room.
        case drain = 3
        /// A group's leadership goes to another of its nodes.
        case transfer = 4
        /// A shard is cut in two; then one half moves, where the plan says so.
        case split = 5
        /// A shard goes to another group.
        case move = 6
        /// A shard takes in its right neighbour; first that one moves, where it is in another group.
        case merge = 7
        /// A group that has fewer replicas than it was formed for gets one more.
        case addReplica = 8
        /// Replicas, shards and leaders move, one after the other, until nothing is a gain.
        case rebalance = 9
        /// Everything, and a snapshot of it, goes into the backup of the metadata.
        case backup = 10
        /// Every object of that backup is read.
        case verifyBackup = 11
        /// The metadata was made anew from a backup or from the nodes: ended from the beginning.
        case restore = 12

        /// Whether it brings one new replica into a group.
        var bringsReplica: Bool { self == .replaceReplica || self == .addReplica }
    }

    /// Raw values are in the store. `replaceReplica` and `addReplica` go from `creating` to `swapping`,
    /// operations on shards from `forming` to `merging` as far as their work asks for it; a backup has the
    /// one step `writing`, its verification `reading`, every other kind `moving`.
    public enum Step: UInt8, CaseIterable, Sendable {
        /// The new replica is being created, empty.
        case creating = 1
        /// The leader is told to give it the log.
        case adding = 2
        /// It receives the group: a snapshot, then the log.
        case catchingUp = 3
        /// The group exchanges the replicas, or takes the new one in as voter.
        case swapping = 4
        /// The new replica is taken out again, after a cancellation or because its node failed.
        case retracting = 5
        case moving = 6
        case done = 10
        case cancelled = 11
        case failed = 12
        /// A rule would do it, and waits for an operator to apply it.
        case proposed = 20
        /// Waits for its turn, and for its target group where that is being formed.
        case forming = 21
        /// The owner cuts the shard.
        case splitting = 22
        /// The owner is fenced, the target activated: the one moment when clients wait.
        case switching = 23
        /// Cancelled in `switching`: the target is asked to decline, then the owner takes the shard back.
        case declining = 24
        /// The target copies, and answers everything with the owner's help.
        case copying = 25
        /// The target's replicas digest what they hold.
        case verifying = 26
        /// The target is told that it owns the shard alone.
        case finishing = 27
        /// The group joins the two neighbours.
        case merging = 29
        /// The backup is written and read back.
        case writing = 30
        /// The backup's objects are read, one after the other.
        case reading = 31
    }

    public var id: OperationID
    public var kind: Kind
    public var step: Step
    /// `operator`, or the rule that asked.
    public var origin: String
    public var reason: String
    /// The operation on a node that this one is part of; `.none` for none.
    public var parent: OperationID
    /// `.none` for operations on a node.
    public var group: GroupID
    /// What gives its place; nothing for an added replica. Operations on a node have only its node; a
    /// transfer the leader.
    public var old: Placement
    /// What takes it; node `.none` when the controller chooses. For a transfer: the next leader.
    public var new: Placement
    /// The node of `new` was a spare before.
    public var wasSpare: Bool
    /// Nodes that were tried and failed.
    public var avoided: [NodeID]
    public var isCancelled: Bool
    /// An operator asked for the cancellation.
    public var isStopped: Bool
    /// It goes no further until an operator resumes it: an operator holds it, or replicas were found
    /// to differ.
    public var isPaused: Bool
    /// Of operations on shards.
    public var work: ShardWork?
    /// How it ended, or what the newest step rests on.
    public var outcome: String
    /// Wall clock in milliseconds since 1970; 0 for not yet.
    public var startedAt: UInt64
    public var changedAt: UInt64
    public var endedAt: UInt64

    /// What operations have as origin and reason that an operator asked for.
    static let operatorOrigin = "operator"
    static let operatorReason = "asked for by the operator"

    init(
        id: OperationID, kind: Kind, step: Step, origin: String = operatorOrigin,
        reason: String = operatorReason,
        parent: OperationID = .none, group: GroupID, old: Placement, new: Placement,
        wasSpare: Bool = false, work: ShardWork? = nil
    ) {
        self.id = id
        self.kind = kind
        self.step = step
        self.origin = origin
        self.reason = reason
        self.parent = parent
        self.group = group
        self.old = old
        self.new = new
        self.wasSpare = wasSpare
        avoided = []
        isCancelled = false
        isStopped = false
        isPaused = false
        self.work = work
        outcome = ""
        startedAt = 0
        changedAt = 0
        endedAt = 0
    }

    public var isFinished: Bool { step == .done || step == .cancelled || step == .failed }

    func encode(into writer: inout ByteWriter) {
        writer.write(id)
        writer.write(kind.rawValue)
        writer.write(step.rawValue)
        writer.write(origin)
        writer.write(reason)
        writer.write(parent)
        writer.write(group)
        old.encode(into: &writer)
        new.encode(into: &writer)
        writer.write(wasSpare)
        writer.write(list: avoided) { writer, node in writer.write(node) }
        writer.write(isCancelled)
        writer.write(isStopped)
        writer.write(isPaused)
        writer.write(work != nil)
        work?.encode(into: &writer)
        writer.write(outcome)
        writer.write(startedAt)
        writer.write(changedAt)
        writer.write(endedAt)
    }

    init(from reader: inout ByteReader) throws(DatabaseError) {
        id = try reader.read()
        kind = try reader.readEnum()
        step = try reader.readEnum()
        origin = try reader.readString()
        reason = try reader.readString()
        parent = try reader.read()
        group = try reader.read()
        old = try Placement(from: &reader)
        new = try Placement(from: &reader)
        wasSpare = try reader.readBool()
        avoided = try reader.readList(elementBytesMin: 4) { (reader) throws(DatabaseError) in
            try reader.read()
        }
        isCancelled = try reader.readBool()
        isStopped = try reader.readBool()
        isPaused = try reader.readBool()
        work = try reader.readBool() ? try ShardWork(from: &reader) : nil
        outcome = try reader.readString()
        startedAt = try reader.readUInt64()
        changedAt = try reader.readUInt64()
        endedAt = try reader.readUInt64()
    }
}

/// A replica that has no place in its group any more and is to be deleted when its node answers.
public struct RetiredReplica: Hashable, Sendable {
    public var group: GroupID
    public var replica: ReplicaID
    public var node: NodeID
    /// For the log of the node.
    public var reason: String

    func encode(into writer: inout ByteWriter) {
        writer.write(group)
        writer.write(replica)
        writer.write(node)
        writer.write(reason)
    }

    init(group: GroupID, replica: ReplicaID, node: NodeID, reason: String) {
        self.group = group
        self.replica = replica
        self.node = node
        self.reason = reason
    }

    init(from reader: inout ByteReader) throws(DatabaseError) {
        group = try reader.read()
        replica = try reader.read()
        node = try reader.read()
        reason = try reader.readString()
    }
}

/// Something that was decided or refused, and on which grounds. Kept for operators.
public struct Decision: Hashable, Sendable {
    public var number: UInt64
    /// Wall clock in milliseconds since 1970.
    public var at: UInt64
    public var nodes: [NodeID]
    /// `.none` for no group, and so on.
    public var group: GroupID
    public var operation: OperationID
    public var shard: ShardID
    public var text: String

    func encode(into writer: inout ByteWriter) {
        writer.write(number)
        writer.write(at)
        writer.write(list: nodes) { writer, node in writer.write(node) }
        writer.write(group)
        writer.write(operation)
        writer.write(shard)
        writer.write(text)
    }

    init(
        number: UInt64, at: UInt64, nodes: [NodeID], group: GroupID, operation: OperationID,
        shard: ShardID = .none, text: String
    ) {
        self.number = number
        self.at = at
        self.nodes = nodes
        self.group = group
        self.operation = operation
        self.shard = shard
        self.text = text
    }

    init(from reader: inout ByteReader) throws(DatabaseError) {
        number = try reader.readUInt64()
        at = try reader.readUInt64()
        nodes = try reader.readList(elementBytesMin: 4) { (reader) throws(DatabaseError) in
            try reader.read()
        }
        group = try reader.read()
        operation = try reader.read()
        shard = try reader.read()
        text = try reader.readString()
    }
}

/// An operation as the acting controller drives it.
public struct OperationStatus: Sendable {
    public internal(set) var record: OperationRecord
    /// A newer record is on its way to the store: nothing is done before it is there.
    var isStoring = true
    /// Some record of it is in the store.
    var isStored = false
    /// The step of that newer record.
    var storing = OperationRecord.Step.forming
    /// The newest command; 0 for none.
    var command: UInt64 = 0
    var sendAgainAt: Instant = .origin
    /// The command of this step was answered with success.
    var isConfirmed = false
    /// Why the newest command was refused, or what is waited for.
    public internal(set) var note = ""
    /// The furthest point reached in this step, and when that was. Of a copy: bytes, as the leader
    /// that copies now counts them.
    public internal(set) var reached: UInt64 = 0
    public internal(set) var reachedAt: Instant
    /// Of the step's copy, if it makes one.
    public internal(set) var copied = CopyProgress()
    /// Who waits until the record is stored.
    var requests: [RequestID] = []
    /// Cancellations that wait until nothing is on its way to the store.
    var cancellations: [RequestID] = []
    /// Wishes to pause (true) or resume, likewise.
    var pauses: [(request: RequestID, isPaused: Bool)] = []
    /// What is known of the step of an operation on a shard.
    var progress = ShardProgress()
}
