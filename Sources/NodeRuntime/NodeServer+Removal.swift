// Removing a replica whose place in its group was taken by another, or whose group is dissolved.
//
// Order: tombstone instead of catalog entry, in one batch -> engine durable -> removal in the log
// -> records deleted piece by piece. A crash before the engine was durable leaves the replica whole, and
// the controller repeats; a crash behind it leaves a log without catalog entry, which recovery removes.

import KVBase
import NodeCore
import ReplicatedLog
import ReplicationCore
import ShardCore
import StorageAPI
import SystemdSupport

/// What is left of a replica: records to delete.
final class RemovedReplica {
    let disk: Disk
    let engineKind: EngineKind
    let group: GroupID
    let replica: ReplicaID
    var garbage: [KeyRange]

    init(
        disk: Disk, engineKind: EngineKind, group: GroupID, replica: ReplicaID,
        garbage: [KeyRange]
    ) {
        self.disk = disk
        self.engineKind = engineKind
        self.group = group
        self.replica = replica
        self.garbage = garbage
    }

    func putTombstone(_ scratch: ApplyScratch) {
        var writer = ByteWriter()
        writer.write(list: garbage) { writer, range in writer.write(range) }
        let value = writer.bytes
        StorageLayout.tombstoneKey(group, replica).withUnsafeBytes { key in
            value.withUnsafeBytes { value in scratch.batch.put(key: key, value: value) }
        }
    }
}

extension NodeServer {
    func remove(
        _ group: GroupID, _ id: ReplicaID, because reason: String, _ waiter: Waiter
    ) {
        // Its repetition is answered when it is through.
        guard !creating.contains(group) else { return }
        guard let replica = replicas[group], replica.id == id else {
            // Never created, or removed before: that stays so.
            bury(group, id, waiter)
            return
        }
        guard !replica.isFailed else {
            finishCommand(
                waiter, error: DatabaseError(.storageFailed, "its disk \(replica.disk.path) failed")
            )
            return
        }
        // It is about to hand over, or to lose the majority of a group that is dissolved: what it took
        // is still to be answered. The controller repeats. One that is alone has nobody to wait for.
        guard !replica.isLeader || replica.core.membership.all.count == 1 else {
            finishCommand(waiter, error: DatabaseError(.refused, "it still leads"))
            return
        }
        creating.append(group)
        replicas.remove(group)
        var ranges = [StorageLayout.range(replica.store)] + replica.garbage
        if let receiver = replica.snapshotReceiver {
            ranges.append(StorageLayout.range(receiver.store))
        }
        replica.end(DatabaseError(.unavailable, "this replica of group \(group) was replaced"))
        withGarbage.removeAll { $0 === replica }
        let rest = RemovedReplica(
            disk: replica.disk, engineKind: replica.engineKind, group: group, replica: id,
            garbage: ranges)
        applyScratch.reset()
        StorageLayout.catalogKey(group, id).withUnsafeBytes { applyScratch.batch.delete(key: $0) }
        rest.putTombstone(applyScratch)
        do throws(DatabaseError) {
            try replica.engine.apply(applyScratch.batch)
        } catch {
            return replica.disk.fail(error)
        }
        replica.disk.checkpoint(replica.engine) { [unowned self] in
            replica.disk.log.stageRemoval(group: group)
            creating.removeAll { $0 == group }
            removed.append(rest)
            log.notice(
                "replica removed",
                [
                    LogField("group", group), LogField("replica", id),
                    LogField("reason", reason),
                ])
            finishCommand(waiter, error: nil)
        }
        isHeartbeatDue = true
    }

    /// Puts a tombstone for a replica that is not here, so that a late command does not create it.
    private func bury(_ group: GroupID, _ id: ReplicaID, _ waiter: Waiter) {
        guard !wasRemoved(group, id) else { return finishCommand(waiter, error: nil) }
        guard let disk = disks.first(where: { $0.failure == nil }) else {
            return finishCommand(
                waiter, error: DatabaseError(.storageFailed, "every disk of the node failed"))
        }
        let engine = disk.engine(.lsm)
        applyScratch.reset()
        RemovedReplica(disk: disk, engineKind: .lsm, group: group, replica: id, garbage: [])
            .putTombstone(applyScratch)
        do throws(DatabaseError) {
            try engine.apply(applyScratch.batch)
        } catch {
            return disk.fail(error)
        }
        disk.checkpoint(engine) { [unowned self] in finishCommand(waiter, error: nil) }
    }

    /// Whether a tombstone of the replica stands on any disk.
    func wasRemoved(_ group: GroupID, _ id: ReplicaID) -> Bool {
        let key = StorageLayout.tombstoneKey(group, id)
        for disk in disks where disk.failure == nil {
            for engine in disk.allEngines where (try? engine.value(of: key)) ?? nil != nil {
                return true
            }
        }
        return false
    }

    /// Takes up deletions that an earlier process did not finish.
    func recoverRemoved(on disk: Disk) throws(DatabaseError) {
        for kind in EngineKind.allCases {
            var found: [(GroupID, ReplicaID, Bytes)] = []
            try disk.engine(kind).scan(StorageLayout.tombstoneRange) { key, value in
                if let (group, replica) = StorageLayout.parseCatalogKey(key) {
                    found.append((group, replica, Bytes(value)))
                }
                return true
            }
            for (group, replica, value) in found {
                let garbage = try ByteReader.decode(value) { (reader) throws(DatabaseError) in
                    try reader.readList(elementBytesMin: 5) { (reader) throws(DatabaseError) in
                        try reader.readKeyRange()
                    }
                }
                guard !garbage.isEmpty else { continue }
                for range in garbage { disk.reserveStores(of: range) }
                removed.append(
                    RemovedReplica(
                        disk: disk, engineKind: kind, group: group, replica: replica,
                        garbage: garbage))
            }
        }
    }

    /// Deletes a bounded piece of one removed replica's records.
    func collectRemoved() {
        guard let rest = removed.first else { return }
        guard rest.disk.failure == nil, let range = rest.garbage.first, let end = range.end else {
            removed.removeFirst()
            return
        }
        let engine = rest.disk.engine(rest.engineKind)
        do throws(DatabaseError) {
            let piece =
                rest.engineKind == .lsm ? range : try firstPiece(of: range, end: end, engine)
            let reached = piece.end ?? end
            applyScratch.reset()
            piece.start.withUnsafeBytes { from in
                reached.withUnsafeBytes { to in
                    applyScratch.batch.deleteRange(from: from, to: to)
                }
            }
            if reached == end {
                rest.garbage.removeFirst()
                rest.putTombstone(applyScratch)
            } else {
                rest.garbage[0].start = reached
            }
            try engine.apply(applyScratch.batch)
            if reached == end {
                rest.disk.reclaim(KeyRange(start: piece.start, end: end), of: engine)
            }
        } catch {
            rest.disk.fail(error)
        }
    }
}

extension Disk {
    /// The store of a range that waits for its deletion is not handed out again.
    func reserveStores(of range: KeyRange) {
        guard range.start.count >= 4 else { return }
        let store = range.start[..<4].reduce(UInt32(0)) { $0 << 8 | UInt32($1) }
        reserveStores(through: StoreID(store))
    }
}
