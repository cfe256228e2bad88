// What a node shows of its inside: replicas and queues, as the loop published them last.

import AdminHTTP
import Daemon
import KVBase
import NodeCore
import ReplicatedLog
import ReplicationCore
import ShardCore
import StorageAPI

extension NodeStatus {
    /// Adds `/debug/groups` (`?group=N` for one) and `/debug/queues`.
    func addPages(to daemon: DaemonContext) {
        daemon.addDebugPage("groups") { [self] in groupsPage($0) }
        daemon.addDebugPage("queues") { [self] _ in queuesPage() }
    }

    private func groupsPage(_ request: AdminRequest) -> AdminResponse {
        let wanted = request.parameter("group")
        if let wanted, UInt32(wanted) == nil {
            return .text("group is the number of a group\n", status: 400)
        }
        let replicas = read().replicas.filter { wanted == nil || "\($0.group)" == wanted }
        return .json("{\"groups\":[\(replicas.map(\.json).joined(separator: ","))]}\n")
    }

    private func queuesPage() -> AdminResponse {
        let snapshot = read()
        let disks = snapshot.disks.map { disk in
            let writing = disk.log.writeStartedAt.map { (snapshot.time - $0).count / 1_000_000 }
            return "{\"path\":\(JSONText.quoted(disk.path))"
                + ",\"log_queued_bytes\":\(disk.log.queuedBytes)"
                + ",\"log_writing_ms\":\(writing.map(String.init) ?? "null")"
                + ",\"unflushed_bytes\":\(disk.engines.unflushedBytes)"
                + ",\"compaction_pending_bytes\":\(disk.engines.compactionPendingBytes)"
                + ",\"failed\":\(disk.isFailed),\"slow\":\(disk.isSlow)}"
        }
        let peers = snapshot.peers.map {
            "{\"node\":\"\($0.node)\",\"connected\":\($0.isOpen)"
                + ",\"unsent_bytes\":\($0.pendingBytes),\"dropped\":\($0.sendFailures)}"
        }
        // Only what waits: with many groups most have nothing.
        let busy = snapshot.replicas.filter {
            $0.writesWaiting > 0 || $0.readsWaiting > 0 || $0.commit > $0.applied
        }
        return .json(
            "{\"requests_in_flight\":\(snapshot.requestsInFlight)"
                + ",\"proposals_pending\":\(snapshot.proposalsPending)"
                + ",\"routers\":\(snapshot.routers)"
                + ",\"controllers_connected\":\(snapshot.controllersConnected)"
                + ",\"snapshots_in_flight\":\(snapshot.snapshotsInFlight)"
                + ",\"disks\":[\(disks.joined(separator: ","))]"
                + ",\"peers\":[\(peers.joined(separator: ","))]"
                + ",\"busy_groups\":[\(busy.map(\.json).joined(separator: ","))]}\n")
    }
}

extension NodeStatus.ReplicaPicture {
    var json: String {
        "{\"group\":\"\(group)\",\"replica\":\"\(replica)\",\"role\":\"\(role)\""
            + ",\"leader\":\"\(leader)\",\"term\":\(term.rawValue)"
            + ",\"last\":\(last.rawValue),\"commit\":\(commit.rawValue)"
            + ",\"applied\":\(applied.rawValue),\"disk\":\(disk),\"shards\":\(shards)"
            + ",\"writes_waiting\":\(writesWaiting),\"reads_waiting\":\(readsWaiting)"
            + ",\"pending_bytes\":\(pendingBytes),\"retained_bytes\":\(retainedBytes)"
            + ",\"snapshots_sending\":\(snapshotsSending)"
            + ",\"receiving_snapshot\":\(isReceivingSnapshot)}"
    }
}

extension GroupReplica {
    var picture: NodeStatus.ReplicaPicture {
        NodeStatus.ReplicaPicture(
            group: group, replica: id, role: isFailed ? "failed" : "\(core.role)",
            leader: core.leader, term: core.term, last: core.lastPosition.index,
            commit: core.commit, applied: state.applied.index, disk: disk.index,
            shards: state.shards.count, writesWaiting: logged.waiterCount + proposals.waiterCount,
            readsWaiting: waitingReads.count, pendingBytes: proposals.bytes,
            retainedBytes: core.retainedBytes, snapshotsSending: snapshotSenders.count,
            isReceivingSnapshot: snapshotReceiver != nil)
    }
}
