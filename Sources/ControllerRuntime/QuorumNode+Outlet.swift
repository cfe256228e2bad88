// What the replica of the metadata group wants done: records to the disk, messages to the others.

import KVBase
import MetadataCore
import MetadataStore
import ReplicatedLog
import ReplicationCore
import WireProtocol

extension QuorumNode: QuorumOutlet {
    func persist(_ persist: Persist) {
        guard let replicated, let identity else { return }
        replicated.stage(
            group: MetadataReplica.group, replica: identity.replica, persist: persist)
        for entry in persist.entries { bytesSinceSnapshot += entry.payload.count + 64 }
        staged.append(persist.ticket)
    }

    func send(_ message: Message, to replica: ReplicaID) {
        guard let identity else { return }
        links[replica]?.send(.peerMessages) {
            PeerMessage(
                group: MetadataReplica.group, from: identity.replica, to: replica,
                message: message
            ).encode(into: &$0)
        }
    }

    func welcome(_ member: ControllerMember) {
        guard let link = links[member.replica], let identity,
            let introduction = introduction(to: link.place, mayAdopt: true),
            identity.replica != member.replica
        else { return }
        if link.isIntroduced {
            store?.handle(.welcomed(member.replica))
        } else {
            link.send(.introduction) { introduction.encode(into: &$0) }
        }
    }

    func roleChanged() { isChanged = true }

    func storeFailed(_ error: DatabaseError) { onFailure(error) }
}
