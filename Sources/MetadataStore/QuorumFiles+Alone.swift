// The metadata of a controller that is alone, read while it does not run.

import KVBase
import MetadataCore
import ReplicatedLog
import ReplicationCore

extension QuorumFiles {
    /// What the snapshot and the whole log add up to: in a group of one everything logged is committed.
    /// Nothing is written. Throws `.refused` when there are other members, which may know of more.
    public func stateOfOne(_ identity: QuorumIdentity) throws(DatabaseError) -> RevisionedState {
        let opened = try open(identity, now: .origin)
        defer { opened.log.close() }
        let others = DatabaseError(
            .refused,
            "\(directory) is one of several controllers' metadata, and another may know of more: "
                + "remove the others first (kvctl controller remove), then stop this one")
        guard opened.restored.membership.all.count == 1,
            !opened.restored.entries.contains(where: { $0.kind == .membership })
        else { throw others }
        var replica = MetadataReplica(
            id: identity.replica, image: opened.image, restored: opened.restored,
            tuning: MetadataReplica.tuning, seed: 0, now: .origin)
        // Promises to others have run out: there are none.
        let now = Instant.origin + MetadataReplica.tuning.leaseDuration + .seconds(1)
        var events: [MetadataReplicaEvent] = [
            .replication(.nominate(replica.core.term.next()))
        ]
        while !events.isEmpty {
            var effects = MetadataEffects()
            replica.step(events.removeFirst(), now: now, into: &effects)
            if let failure = effects.failure { throw failure }
            events += effects.persists.map { .replication(.persisted($0.ticket)) }
        }
        guard replica.isServing else {
            throw DatabaseError(.storageFailed, "\(directory): the log cannot be applied")
        }
        guard replica.image.roster.members.count == 1 else { throw others }
        var state = replica.image.state
        for lease in state.leases { state.apply(.leaseEnded(lease.id), now: .origin) }
        return state
    }
}
