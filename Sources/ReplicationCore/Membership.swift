// Who belongs to a group, and what counts as a majority (Ongaro 2014, section 4.3).

import KVBase

/// One replica of a group and the node that hosts it.
public struct Member: Hashable, Sendable {
    public var replica: ReplicaID
    public var node: NodeID

    public init(replica: ReplicaID, node: NodeID) {
        self.replica = replica
        self.node = node
    }
}

/// The replicas of a group. While `outgoing` is not empty the group is in joint consensus:
/// elections and commits need a majority of `voters` and one of `outgoing`.
///
/// Invariants: each list is sorted by replica id without repetition; a learner is in neither voter
/// list; a node appears with at most one replica in the whole group.
public struct Membership: Hashable, Sendable {
    public var voters: [Member]
    public var outgoing: [Member]
    public var learners: [Member]

    public init(voters: [Member], outgoing: [Member] = [], learners: [Member] = []) {
        self.voters = voters.sorted { $0.replica < $1.replica }
        self.outgoing = outgoing.sorted { $0.replica < $1.replica }
        self.learners = learners.sorted { $0.replica < $1.replica }
    }

    public static let empty = Membership(voters: [])

    public var isJoint: Bool { !outgoing.isEmpty }

    /// Every member once, in order of replica id.
    public var all: [Member] {
        var members = voters
        for member in outgoing where !members.contains(member) { members.append(member) }
        for member in learners where !members.contains(member) { members.append(member) }
        return members.sorted { $0.replica < $1.replica }
    }

    public func isVoter(_ replica: ReplicaID) -> Bool {
        voters.contains { $0.replica == replica } || outgoing.contains { $0.replica == replica }
    }

    public func contains(_ replica: ReplicaID) -> Bool {
        isVoter(replica) || learners.contains { $0.replica == replica }
    }

    public func node(of replica: ReplicaID) -> NodeID? {
        all.first { $0.replica == replica }?.node
    }
}

extension Membership {
    /// Most members in each list of a membership that is read.
    static let membersMax = 64

    public func encode(into writer: inout ByteWriter) {
        for list in [voters, outgoing, learners] {
            writer.write(list: list) { writer, member in
                writer.write(member.replica)
                writer.write(member.node)
            }
        }
    }

    public init(from reader: inout ByteReader) throws(DatabaseError) {
        func members(_ reader: inout ByteReader) throws(DatabaseError) -> [Member] {
            let list = try reader.readList(elementBytesMin: 8) { (reader) throws(DatabaseError) in
                Member(replica: try reader.read(), node: try reader.read())
            }
            guard list.count <= Self.membersMax else {
                throw DatabaseError(.malformed, "\(list.count) members of a group")
            }
            return list
        }
        self.init(
            voters: try members(&reader), outgoing: try members(&reader),
            learners: try members(&reader))
    }
}

/// A change of membership that an operator or the controller asks for. One at a time per group.
public enum MembershipChange: Hashable, Sendable {
    /// Adds a replica that receives the log but does not vote.
    case addLearner(Member)
    /// Removes a learner that is not to become a voter after all.
    case removeLearner(ReplicaID)
    /// Makes these the voters, by joint consensus: one entry enters the joint configuration, a
    /// second, proposed by the leader itself once the first is committed, leaves it.
    case replaceVoters([Member])
}
