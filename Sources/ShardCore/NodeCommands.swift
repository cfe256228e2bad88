// What controllers tell nodes to do. Every command is idempotent and carries the controller's term;
// a node refuses terms older than the newest it saw.

import KVBase

public struct NodeCommand: Hashable, Sendable {
    public enum Action: Hashable, Sendable {
        /// Host a replica of a new group; all its voters start from the same empty state.
        case createReplica(Group, ReplicaID)
        /// Stand for election in `term` (see `Event.nominate` of the replication core).
        case nominate(GroupID, ReplicaID, Term)
        /// Hand the leadership to this replica.
        case transferLeadership(GroupID, to: ReplicaID)
        /// Put a shard into a group, or remove it with its data, through the group's log.
        case createShard(Shard, Partitioning)
        case dropShard(Shard)
        /// Host an empty replica that knows no members yet: the group's leader makes it a learner and
        /// sends it everything.
        case createLearner(Group, Placement)
        /// To the group's leader: give the log to a replica that does not vote, or no longer.
        case addLearner(GroupID, Placement)
        case removeLearner(GroupID, ReplicaID)
        /// To the group's leader: make these the voters, by joint consensus.
        case replaceVoters(GroupID, [Placement])
        /// Delete a replica with its data and never create it again. `reason` is for the node's log.
        case removeReplica(GroupID, ReplicaID, reason: String)
        /// Split or move a shard, through the log of this group.
        case shard(GroupID, ShardCommand)
        /// To the leader of a group that copies this shard: rest for `holdTime`. Not durable and not
        /// replicated, so whoever wants the copy to rest repeats it.
        case holdCopy(GroupID, ShardID)
    }

    /// How long one `holdCopy` holds.
    public static let holdTime = Nanoseconds.seconds(3)

    /// Names the command in its outcome. Unique per controller term.
    public var id: UInt64
    public var action: Action

    public init(id: UInt64, action: Action) {
        self.id = id
        self.action = action
    }
}

/// A controller's answer to a heartbeat, also sent in between when there is something to do.
public struct NodeCommands: Hashable, Sendable {
    public var controllerTerm: Term
    /// The newest heartbeat received.
    public var sequence: UInt64
    public var commands: [NodeCommand]

    public init(controllerTerm: Term, sequence: UInt64, commands: [NodeCommand]) {
        self.controllerTerm = controllerTerm
        self.sequence = sequence
        self.commands = commands
    }

    /// The same in as many messages as it takes for each to fit a frame.
    public func pieces(bytesMax: Int = Limits.pieceBytesMax) -> [NodeCommands] {
        var pieces = [
            NodeCommands(controllerTerm: controllerTerm, sequence: sequence, commands: [])
        ]
        var bytes = 0
        for command in commands {
            let size = command.encodedBytesMax
            if bytes > 0, bytes + size > bytesMax {
                pieces.append(
                    NodeCommands(controllerTerm: controllerTerm, sequence: sequence, commands: []))
                bytes = 0
            }
            pieces[pieces.count - 1].commands.append(command)
            bytes += size
        }
        return pieces
    }

    public func encode(into writer: inout ByteWriter) {
        writer.write(controllerTerm)
        writer.write(sequence)
        writer.write(list: commands) { writer, command in
            writer.write(command.id)
            switch command.action {
            case .createReplica(let group, let replica):
                writer.write(UInt8(1))
                group.encode(into: &writer)
                writer.write(replica)
            case .nominate(let group, let replica, let term):
                writer.write(UInt8(2))
                writer.write(group)
                writer.write(replica)
                writer.write(term)
            case .transferLeadership(let group, let replica):
                writer.write(UInt8(3))
                writer.write(group)
                writer.write(replica)
            case .createShard(let shard, let partitioning):
                writer.write(UInt8(4))
                shard.encode(into: &writer)
                partitioning.encode(into: &writer)
            case .dropShard(let shard):
                writer.write(UInt8(5))
                shard.encode(into: &writer)
            case .createLearner(let group, let placement):
                writer.write(UInt8(6))
                group.encode(into: &writer)
                placement.encode(into: &writer)
            case .addLearner(let group, let placement):
                writer.write(UInt8(7))
                writer.write(group)
                placement.encode(into: &writer)
            case .removeLearner(let group, let replica):
                writer.write(UInt8(8))
                writer.write(group)
                writer.write(replica)
            case .replaceVoters(let group, let voters):
                writer.write(UInt8(9))
                writer.write(group)
                writer.write(list: voters) { writer, voter in voter.encode(into: &writer) }
            case .removeReplica(let group, let replica, let reason):
                writer.write(UInt8(10))
                writer.write(group)
                writer.write(replica)
                writer.write(reason)
            case .shard(let group, let command):
                writer.write(UInt8(16))
                writer.write(group)
                command.encode(into: &writer)
            case .holdCopy(let group, let shard):
                writer.write(UInt8(17))
                writer.write(group)
                writer.write(shard)
            }
        }
    }

    public init(from reader: inout ByteReader) throws(DatabaseError) {
        controllerTerm = try reader.read()
        sequence = try reader.readUInt64()
        commands = try reader.readList(elementBytesMin: 17) { (reader) throws(DatabaseError) in
            let id = try reader.readUInt64()
            let action: NodeCommand.Action
            switch try reader.readUInt8() {
            case 1: action = .createReplica(try Group(from: &reader), try reader.read())
            case 2: action = .nominate(try reader.read(), try reader.read(), try reader.read())
            case 3: action = .transferLeadership(try reader.read(), to: try reader.read())
            case 4:
                action = .createShard(try Shard(from: &reader), try Partitioning(from: &reader))
            case 5: action = .dropShard(try Shard(from: &reader))
            case 6:
                action = .createLearner(try Group(from: &reader), try Placement(from: &reader))
            case 7: action = .addLearner(try reader.read(), try Placement(from: &reader))
            case 8: action = .removeLearner(try reader.read(), try reader.read())
            case 9:
                let group: GroupID = try reader.read()
                action = .replaceVoters(
                    group,
                    try reader.readList(elementBytesMin: 9) { (reader) throws(DatabaseError) in
                        try Placement(from: &reader)
                    })
            case 10:
                action = .removeReplica(
                    try reader.read(), try reader.read(), reason: try reader.readString())
            case 16: action = .shard(try reader.read(), try ShardCommand(from: &reader))
            case 17: action = .holdCopy(try reader.read(), try reader.read())
            case let kind: throw DatabaseError(.malformed, "node command of kind \(kind)")
            }
            return NodeCommand(id: id, action: action)
        }
    }
}

/// How commands ended. A `.notLeader` outcome means: ask the group's present leader.
public struct CommandOutcome: Hashable, Sendable {
    public var id: UInt64
    public var controllerTerm: Term
    /// Nil: done, durably.
    public var error: DatabaseError?
    /// After a fence: the highest sequencer that the group issued for the shard.
    public var floor: Sequencer

    public init(
        id: UInt64, controllerTerm: Term, error: DatabaseError?, floor: Sequencer = .zero
    ) {
        self.floor = floor
        self.id = id
        self.controllerTerm = controllerTerm
        self.error = error
    }

    public func encode(into writer: inout ByteWriter) {
        writer.write(id)
        writer.write(controllerTerm)
        writer.write(error)
        writer.write(floor)
    }

    public init(from reader: inout ByteReader) throws(DatabaseError) {
        id = try reader.readUInt64()
        controllerTerm = try reader.read()
        error = try reader.readError()
        floor = try reader.readSequencer()
    }
}

extension NodeCommand {
    /// At least the bytes that it takes in a message.
    var encodedBytesMax: Int {
        func bytes(_ range: KeyRange) -> Int { range.start.count + (range.end?.count ?? 0) }
        func bytes(_ placements: Int) -> Int { 64 + 9 * placements }
        return switch action {
        case .createShard(let shard, _), .dropShard(let shard): 64 + bytes(shard.range)
        case .shard(_, .activate(let shard, _, _, _)): 96 + bytes(shard.range)
        case .shard(_, .split(_, _, let key, _)): 64 + key.count
        case .shard(_, .advance(_, _, let from, let to)): 64 + from.count + (to?.count ?? 0)
        case .createReplica(let group, _), .createLearner(let group, _):
            bytes(group.placements.count)
        case .replaceVoters(_, let voters): bytes(voters.count)
        case .removeReplica(_, _, let reason): 64 + reason.utf8.count
        case .nominate, .transferLeadership, .addLearner, .removeLearner, .shard, .holdCopy: 64
        }
    }
}
