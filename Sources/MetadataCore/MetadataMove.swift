// The move of a cluster's metadata from one store to the other: the record that both hold afterwards.
// See docs/decisions/0013-moving-the-metadata-of-a-live-cluster.md.

import KVBase
import ReplicationCore

/// The two ways to keep metadata.
public enum MetadataForm: UInt8, Sendable, CustomStringConvertible {
    /// Among the controllers.
    case embedded = 1
    case etcd = 2

    public var description: String { self == .etcd ? "etcd" : "embedded" }
}

/// Where the metadata lives since its last move. The old store gets this record by its last mutation, and
/// is closed by it; the new one holds it from the beginning, under the same revision. A store that is
/// named by its own record is open.
public struct MetadataMove: Hashable, Sendable {
    /// A controller of the group that keeps the metadata from now on.
    public struct Member: Hashable, Sendable {
        public var replica: ReplicaID
        public var name: String
        /// `host:port` where the others reach it.
        public var address: String

        public init(replica: ReplicaID, name: String, address: String) {
            self.replica = replica
            self.name = name
            self.address = address
        }
    }

    /// Under which both stores hold it.
    public static let key = Bytes("controller/home".utf8)
    private static let version: UInt8 = 1

    /// Drawn for each attempt, so that what an earlier one left is not taken for this one's.
    public var id: UInt64
    public var to: MetadataForm
    /// Of the record itself: the last one of the old store.
    public var revision: Revision
    public var cluster: UInt64
    /// Wall clock in milliseconds since 1970.
    public var at: UInt64
    /// Who asked for it.
    public var caller: String
    /// Of etcd, the new store or the old one.
    public var endpoints: [String]
    public var prefix: String
    /// To embedded: the controllers that hold a copy; else none.
    public var members: [Member]

    public init(
        id: UInt64, to: MetadataForm, revision: Revision, cluster: UInt64, at: UInt64,
        caller: String, endpoints: [String], prefix: String, members: [Member]
    ) {
        self.id = id
        self.to = to
        self.revision = revision
        self.cluster = cluster
        self.at = at
        self.caller = caller
        self.endpoints = endpoints
        self.prefix = prefix
        self.members = members
    }

    /// Version 1, form 1, id 8, revision 8, cluster 8, at 8, caller, endpoints, prefix, members.
    public func encode() -> Bytes {
        var writer = ByteWriter()
        writer.write(Self.version)
        writer.write(to.rawValue)
        writer.write(id)
        writer.write(revision)
        writer.write(cluster)
        writer.write(at)
        writer.write(caller)
        writer.write(list: endpoints) { $0.write($1) }
        writer.write(prefix)
        writer.write(list: members) { writer, member in
            writer.write(member.replica)
            writer.write(member.name)
            writer.write(member.address)
        }
        return writer.take()
    }

    public init(_ bytes: Bytes) throws(DatabaseError) {
        self = try ByteReader.decode(bytes) { (reader) throws(DatabaseError) in
            let version = try reader.readUInt8()
            guard version == Self.version, let to = MetadataForm(rawValue: try reader.readUInt8())
            else {
                throw DatabaseError(.malformed, "a move of the metadata of version \(version)")
            }
            return MetadataMove(
                id: try reader.readUInt64(), to: to, revision: try reader.read(),
                cluster: try reader.readUInt64(), at: try reader.readUInt64(),
                caller: try reader.readString(),
                endpoints: try reader.readList(elementBytesMin: 4) {
                    (reader) throws(DatabaseError) in try reader.readString()
                }, prefix: try reader.readString(),
                members: try reader.readList(elementBytesMin: 12) {
                    (reader) throws(DatabaseError) in
                    Member(
                        replica: try reader.read(), name: try reader.readString(),
                        address: try reader.readString())
                })
        }
    }
}

extension RevisionedState {
    /// The last move of this metadata; nil when it never moved. Throws when the record cannot be read.
    public func move() throws(DatabaseError) -> MetadataMove? {
        guard let record = get(MetadataMove.key) else { return nil }
        return try MetadataMove(record.value)
    }

    /// Whether the metadata has left a store of this form, so that nothing may change it there.
    func hasLeft(_ form: MetadataForm) -> Bool {
        guard let record = get(MetadataMove.key), record.value.count > 1 else { return false }
        return record.value[1] != form.rawValue
    }
}

extension MetadataImage {
    /// The first image, the same at each of them, of a group of `members` that all hold it from the beginning.
    public init(
        members: [MetadataMove.Member], state: RevisionedState
    ) throws(DatabaseError) {
        guard let first = members.first, members.count <= ControllerRoster.membersMax else {
            throw DatabaseError(
                .refused, "a group has 1 to \(ControllerRoster.membersMax) controllers")
        }
        var image = MetadataImage(
            founder: first.name, address: first.address, state: state, replica: first.replica)
        for member in members.dropFirst() {
            guard try image.admit(name: member.name, address: member.address) == member.replica
            else { throw DatabaseError(.invalidRequest, "replica ids follow each other") }
        }
        self = image.with(
            voters: members.map { Member(replica: $0.replica, node: NodeID($0.replica.rawValue)) })
    }
}

/// What a controller that starts does about the last move that it knows of.
public enum MetadataPlace: Hashable, Sendable {
    /// Nothing ever moved: as the settings say.
    case configured
    /// The metadata is in etcd below the move's prefix.
    case etcd(MetadataMove)
    /// This controller's copy of the group that the move made is, or is to be made, its own.
    case embedded(MetadataMove, adopts: Bool)

    /// `hasGroup`: there is a copy of a group in use; `hasIncoming`: one that was made ready for this move.
    /// Throws what to change when the settings name another place, or there is no copy.
    public static func find(
        _ move: MetadataMove?, configured: MetadataForm, prefix: String, name: String,
        hasGroup: Bool, hasIncoming: Bool
    ) throws(DatabaseError) -> MetadataPlace {
        guard let move else { return .configured }
        switch move.to {
        case .etcd:
            guard !contradicts(move.prefix, configured: configured, prefix: prefix) else {
                throw DatabaseError(
                    .invalidRequest,
                    "the metadata was moved to etcd.prefix = \(move.prefix), and the settings say "
                        + "\(prefix): set etcd.prefix = \(move.prefix)")
            }
            return .etcd(move)
        case .embedded:
            if hasIncoming { return .embedded(move, adopts: true) }
            if hasGroup { return .embedded(move, adopts: false) }
            let members = move.members.map { "\($0.name)=\($0.address)" }.joined(separator: ",")
            guard move.members.contains(where: { $0.name == name }) else {
                throw DatabaseError(
                    .invalidRequest,
                    "the metadata was moved out of etcd to the controllers \(members), of which \(name) "
                        + "is none: set metadata = embedded and peers to them and this one, empty the "
                        + "data directory, start \(name), and: kvctl controller add \(name) HOST:PORT"
                )
            }
            throw DatabaseError(
                .invalidRequest,
                "the metadata was moved out of etcd to the controllers \(members), and the copy of "
                    + "\(name) is gone: kvctl controller remove \(name); set metadata = embedded and "
                    + "peers = \(members), empty the data directory, start \(name), and: kvctl "
                    + "controller add \(name) HOST:PORT")
        }
    }

    /// Whether the settings name metadata in etcd below another prefix than that which it moves to. Settings that do
    /// not name etcd contradict nothing: what the move says is followed.
    private static func contradicts(
        _ target: String, configured: MetadataForm, prefix: String
    ) -> Bool {
        func whole(_ prefix: String) -> String { prefix.hasSuffix("/") ? prefix : prefix + "/" }
        return configured == .etcd && whole(prefix) != whole(target)
    }

    /// Why a controller could not follow a move to etcd: its settings name another place there, and it would
    /// look where they say. Nil when it can. The endpoints of one etcd may be told in part, so one in common will do.
    public static func objection(
        toMoveTo endpoints: [String], _ target: String, configured: MetadataForm,
        endpoints own: [String], prefix: String
    ) -> String? {
        let advice = "move there, or change the settings first"
        if contradicts(target, configured: configured, prefix: prefix) {
            return "its settings say etcd.prefix = \(prefix); \(advice)"
        }
        func whole(_ url: String) -> String { url.hasSuffix("/") ? String(url.dropLast()) : url }
        let targets = endpoints.map(whole)
        guard configured == .etcd, !own.contains(where: { targets.contains(whole($0)) }) else {
            return nil
        }
        return "its settings say etcd.endpoints = \(own.joined(separator: ",")); \(advice)"
    }

    /// What to change in the settings so that they name the place that the move left; nil when they do.
    public static func objection(
        to configured: MetadataForm, after move: MetadataMove?
    ) -> String? {
        guard let move, move.to != configured else { return nil }
        switch move.to {
        case .etcd:
            return "the metadata was moved to etcd: set metadata = etcd, etcd.endpoints = "
                + move.endpoints.joined(separator: ",")
                + ", etcd.prefix = \(move.prefix), and no peers"
        case .embedded:
            return
                "the metadata was moved out of etcd: set metadata = embedded, and no etcd.endpoints"
        }
    }
}
