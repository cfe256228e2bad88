// Who the controllers are: names and addresses, replicated beside the metadata itself.

import KVBase

/// One controller of the metadata group, whether it votes already or not.
public struct ControllerMember: Hashable, Sendable {
    /// Issued once and never again, so that a controller that lost its disk comes back as another.
    public var replica: ReplicaID
    /// Unique among the members.
    public var name: String
    /// `host:port` where the others reach it.
    public var address: String
    /// Its disk knows `replica` durably. From then on no empty controller is given this id.
    public var isJoined: Bool
    /// On its way out of the group.
    public var isLeaving: Bool

    public init(
        replica: ReplicaID, name: String, address: String, isJoined: Bool = false,
        isLeaving: Bool = false
    ) {
        self.replica = replica
        self.name = name
        self.address = address
        self.isJoined = isJoined
        self.isLeaving = isLeaving
    }
}

/// The members, sorted by replica id, and the highest id issued.
public struct ControllerRoster: Hashable, Sendable {
    /// Most controllers of a cluster.
    public static let membersMax = 5

    public private(set) var members: [ControllerMember] = []
    public private(set) var highest: ReplicaID = .none

    public init() {}

    public subscript(replica: ReplicaID) -> ControllerMember? {
        members.first { $0.replica == replica }
    }

    public func member(named name: String) -> ControllerMember? {
        members.first { $0.name == name }
    }

    /// Adds a member under a new id, or answers the id that exactly this member has already.
    public mutating func admit(name: String, address: String) throws(DatabaseError) -> ReplicaID {
        if let known = member(named: name) {
            guard known.address == address, !known.isLeaving else {
                throw DatabaseError(
                    .refused,
                    "a controller named \(name) is a member at \(known.address)"
                        + "; to replace it: kvctl controller remove \(name), then add it again")
            }
            return known.replica
        }
        if let other = members.first(where: { $0.address == address }) {
            throw DatabaseError(
                .refused, "the address \(address) is that of controller \(other.name)")
        }
        guard members.count(where: { !$0.isLeaving }) < Self.membersMax else {
            throw DatabaseError(
                .refused,
                "a cluster has at most \(Self.membersMax) controllers; remove one first")
        }
        highest = ReplicaID(highest.rawValue + 1)
        members.append(ControllerMember(replica: highest, name: name, address: address))
        return highest
    }

    mutating func update(_ replica: ReplicaID, _ body: (inout ControllerMember) -> Void) -> Bool {
        guard let place = members.firstIndex(where: { $0.replica == replica }) else {
            return false
        }
        body(&members[place])
        return true
    }

    mutating func remove(_ replica: ReplicaID) { members.removeAll { $0.replica == replica } }

    public func encode(into writer: inout ByteWriter) {
        writer.write(highest)
        writer.write(list: members) { writer, member in
            writer.write(member.replica)
            writer.write(member.name)
            writer.write(member.address)
            writer.write(member.isJoined)
            writer.write(member.isLeaving)
        }
    }

    public init(from reader: inout ByteReader) throws(DatabaseError) {
        highest = try reader.read()
        members = try reader.readList(elementBytesMin: 14) { (reader) throws(DatabaseError) in
            ControllerMember(
                replica: try reader.read(), name: try reader.readString(),
                address: try reader.readString(), isJoined: try reader.readBool(),
                isLeaving: try reader.readBool())
        }
    }
}

extension ControllerRoster {
    /// The roster of a new group whose first member, which founds it, is `founder`.
    public init(founder: String, address: String, replica: ReplicaID) {
        members = [
            ControllerMember(replica: replica, name: founder, address: address, isJoined: true)
        ]
        highest = replica
    }
}
