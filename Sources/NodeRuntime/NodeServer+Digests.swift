// Digests of shards for the comparison of replicas, made off the loop on a view of the engine.

import EventLoop
import KVBase
import NodeCore
import ReplicationCore
import ShardCore
import StorageAPI
import Synchronization
import SystemdSupport
import Threads

/// One shard as a replica held it behind one entry of the log, digested piece by piece. The view
/// ends with the last reference, which may be the surveyor's.
final class ShardDigestion: Sendable {
    static let sliceBytes = 4 << 20

    struct Progress: Sendable {
        var digest = RecordDigest()
        /// The storage key to go on from; nil at the end.
        var next: Bytes?
        var failure: DatabaseError?
    }

    let group: GroupID
    let replica: ReplicaID
    let owned: OwnedShard
    let index: LogIndex
    private let view: any EngineSnapshot
    private let end: Bytes?
    private let progress: Mutex<Progress>

    init(
        group: GroupID, replica: ReplicaID, owned: OwnedShard, index: LogIndex, store: StoreID,
        view: any EngineSnapshot
    ) {
        self.group = group
        self.replica = replica
        self.owned = owned
        self.index = index
        self.view = view
        let range = StorageLayout.range(store, owned.shard.table, owned.shard.range)
        end = range.end
        progress = Mutex(Progress(next: range.start))
    }

    var current: Progress { progress.withLock { $0 } }

    /// Takes in the next records, up to a few megabytes.
    func digestSlice() {
        var progress = current
        guard let start = progress.next else { return }
        progress.next = nil
        var bytes = 0
        let prefix = StorageLayout.keyPrefixByteCount
        do throws(DatabaseError) {
            try view.scan(KeyRange(start: start, end: end)) { key, value in
                guard bytes < Self.sliceBytes else {
                    progress.next = Bytes(key)
                    return false
                }
                guard let record = StoredRecord(value) else {
                    progress.failure = DatabaseError(
                        .storageFailed, "a record of shard \(owned.shard.id) is damaged")
                    return false
                }
                bytes += key.count + value.count
                let version = RecordVersion(
                    sequencer: record.sequencer, isTombstone: record.isTombstone)
                if owned.isCompared(version) {
                    progress.digest.add(
                        UnsafeRawBufferPointer(rebasing: key[prefix...]), record.sequencer,
                        isTombstone: record.isTombstone, record.value)
                }
                return true
            }
        } catch {
            progress.failure = error
        }
        self.progress.withLock { $0 = progress }
    }
}

extension NodeServer {
    /// Digests under way and waiting; each holds a view of an engine.
    static let digestionsMax = 16
    /// Between two slices when requests take too long.
    private static let digestRest = Nanoseconds.milliseconds(50)

    /// Called when the engine holds exactly what the entry that asked has left. A digest of the same
    /// shard that is not reported yet is given up.
    func digest(_ owned: OwnedShard, of replica: GroupReplica) throws(DatabaseError) {
        let shard = owned.shard.id
        digests.removeAll { $0.group == replica.group && $0.shard == shard }
        let running = digestions.first
        digestions.removeAll {
            $0 !== running && $0.group == replica.group && $0.owned.shard.id == shard
        }
        guard digestions.count < Self.digestionsMax else {
            log.warning(
                "a shard is not digested: too many digests are under way",
                [LogField("shard", shard), LogField("group", replica.group)])
            return
        }
        digestions.append(
            ShardDigestion(
                group: replica.group, replica: replica.id, owned: owned,
                index: replica.state.applied.index, store: replica.store,
                view: try replica.engine.snapshot()))
        if !isDigesting { continueDigest() }
    }

    /// One slice of the oldest digest; its end calls again.
    private func continueDigest() {
        isDigesting = false
        guard let digestion = digestions.first else { return }
        guard let replica = replicas[digestion.group], isWanted(digestion) else {
            digestions.removeFirst()
            return continueDigest()
        }
        isDigesting = true
        let disk = replica.disk
        let number = surveys.add { [unowned self] in
            let progress = digestion.current
            if let failure = progress.failure {
                digestions.removeFirst()
                disk.fail(failure)
            } else if progress.next == nil {
                digestions.removeFirst()
                finish(digestion, progress.digest)
            }
            guard foreground.strain > 100 else { return continueDigest() }
            loop.schedule(after: Self.digestRest) { [weak self] in self?.continueDigest() }
        }
        let mailbox = surveys.mailbox
        disk.surveyor.submit {
            digestion.digestSlice()
            _ = mailbox.post((number, nil))
        }
    }

    private func finish(_ digestion: ShardDigestion, _ digest: RecordDigest) {
        guard isWanted(digestion) else { return }
        digests.append(
            ShardDigest(
                group: digestion.group, replica: digestion.replica,
                shard: digestion.owned.shard.id, epoch: digestion.owned.shard.epoch,
                index: digestion.index, digest: digest.value, records: digest.records))
        reportSoon()
    }

    /// The replica is still here with the shard of that epoch, and nothing newer was asked for.
    private func isWanted(_ digestion: ShardDigestion) -> Bool {
        guard let replica = replicas[digestion.group], !replica.isFailed,
            replica.id == digestion.replica
        else { return false }
        let isNewest = !digestions.contains {
            $0.group == digestion.group && $0.owned.shard.id == digestion.owned.shard.id
                && $0.index > digestion.index
        }
        return isNewest
            && replica.state.shards[digestion.owned.shard.id]?.shard.epoch
                == digestion.owned.shard.epoch
    }

    /// The digests that still say something of what is here.
    func digestReports() -> [ShardDigest] {
        digests.removeAll { digest in
            guard let replica = replicas[digest.group], replica.id == digest.replica else {
                return true
            }
            return replica.state.shards[digest.shard]?.shard.epoch != digest.epoch
        }
        return digests
    }
}
