// Everything the log of the metadata group adds up to at one position.

import KVBase
import ReplicationCore

/// The state machine of the metadata group. Two replicas that applied the same entries hold equal
/// images, except for the deadlines of leases and the history for watches, which are each replica's own.
public struct MetadataImage: Sendable {
    /// Everything up to here is applied.
    public internal(set) var position: LogPosition
    /// As of `position`.
    public internal(set) var membership: Membership
    public internal(set) var roster: ControllerRoster
    public internal(set) var state: RevisionedState

    public init(
        position: LogPosition = LogPosition(), membership: Membership = .empty,
        roster: ControllerRoster = ControllerRoster(), state: RevisionedState = RevisionedState()
    ) {
        self.position = position
        self.membership = membership
        self.roster = roster
        self.state = state
    }

    /// The first image of a group that one controller founds, perhaps upon an older state. `replica` is
    /// its id; the others get those that follow.
    public init(
        founder: String, address: String, state: RevisionedState, replica: ReplicaID = ReplicaID(1)
    ) {
        let first = Member(replica: replica, node: NodeID(replica.rawValue))
        self.init(
            position: LogPosition(index: LogIndex(1), term: Term(1)),
            membership: Membership(voters: [first]),
            roster: ControllerRoster(founder: founder, address: address, replica: replica),
            state: state)
    }

    /// Names a further member of a group that is being founded.
    public mutating func admit(name: String, address: String) throws(DatabaseError) -> ReplicaID {
        try roster.admit(name: name, address: address)
    }

    /// This image with other voters, all of which count as joined: for a group whose members are made
    /// together.
    public func with(voters: [Member]) -> MetadataImage {
        var image = self
        image.membership = Membership(voters: voters)
        for voter in voters { _ = image.roster.update(voter.replica) { $0.isJoined = true } }
        return image
    }

    /// Position, membership, roster, state.
    public func encode(into writer: inout ByteWriter) {
        writer.write(position.index)
        writer.write(position.term)
        membership.encode(into: &writer)
        roster.encode(into: &writer)
        state.encode(into: &writer)
    }

    /// Leases run anew from `now`.
    public init(from reader: inout ByteReader, now: Instant) throws(DatabaseError) {
        position = LogPosition(index: try reader.read(), term: try reader.read())
        membership = try Membership(from: &reader)
        roster = try ControllerRoster(from: &reader)
        state = try RevisionedState(from: &reader, now: now)
    }

    /// Carries a command out: its answer, and the event when it made a revision.
    mutating func apply(_ command: MetadataCommand, now: Instant) -> (
        Result<MetadataAnswer, MetadataError>, MetadataEvent?
    ) {
        switch command {
        // The mark of a move was the last mutation of this store.
        case .transaction, .grantLease, .endLease:
            if state.hasLeft(.embedded) { return (.failure(.failed(Self.moved)), nil) }
        default: break
        }
        switch command {
        case .transaction(let transaction):
            if let objection = state.objection(to: transaction) {
                return (.failure(objection), nil)
            }
            var event: MetadataEvent?
            if !transaction.changes.isEmpty {
                event = state.apply(.changes(transaction.changes), now: now)
            }
            return (.success(.revision(state.revision)), event)
        case .grantLease(let ttl):
            let id = LeaseID(state.leaseHighest.rawValue + 1)
            state.apply(.leaseGranted(id, ttl: ttl), now: now)
            return (.success(.lease(id)), nil)
        case .endLease(let lease):
            guard state.hasLease(lease) else { return (.failure(.leaseNotFound(lease)), nil) }
            return (.success(.done), state.apply(.leaseEnded(lease), now: now))
        case .admit(let name, let address):
            do throws(DatabaseError) {
                return (.success(.replica(try roster.admit(name: name, address: address))), nil)
            } catch {
                return (.failure(.failed(error)), nil)
            }
        case .joined(let replica): return (change(replica) { $0.isJoined = true }, nil)
        case .moved(let replica, let address):
            return (change(replica) { $0.address = address }, nil)
        case .dismiss(let replica): return (change(replica) { $0.isLeaving = true }, nil)
        case .forget(let replica):
            roster.remove(replica)
            return (.success(.done), nil)
        }
    }

    private static let moved = DatabaseError(
        .unavailable, "the metadata was moved to etcd: nothing changes it here any more")

    private mutating func change(
        _ replica: ReplicaID, _ body: (inout ControllerMember) -> Void
    ) -> Result<MetadataAnswer, MetadataError> {
        guard roster.update(replica, body) else {
            return .failure(.failed(DatabaseError(.refused, "no controller \(replica)")))
        }
        return .success(.done)
    }
}
