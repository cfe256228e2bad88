// What the node reports: heartbeats, and the sizes of the shards it leads.

import EventLoop
import KVBase
import NodeCore
import ReplicationCore
import ShardCore
import StorageAPI
import Synchronization
import Threads

extension NodeServer {
    /// `withLoad`: the newest report of the load was not sent there yet.
    func heartbeat(sequence: UInt64, shards: [ShardReport], withLoad: Bool) -> NodeHeartbeat {
        NodeHeartbeat(
            node: identity.node, incarnation: incarnation, sequence: sequence,
            mapRevision: map.revision, loopDelay: loop.progress.takeDelayMax(),
            disks: disks.map {
                DiskReport(
                    path: $0.path,
                    state: $0.failure != nil ? .failed : $0.probes.isSlow ? .slow : .healthy,
                    fileSystem: $0.size.fileSystem, totalBytes: $0.size.totalBytes,
                    freeBytes: $0.size.freeBytes, dataBytes: $0.size.dataBytes,
                    logDelay: $0.probes.logDelay,
                    engineDelay: $0.probes.engineDelay)
            },
            replicas: replicas.elements.map { $0.report() }, shards: shards,
            load: withLoad ? loadReport : nil,
            copies: replicas.elements.flatMap { $0.copyReports() }, digests: digestReports())
    }

    // MARK: Load

    /// Of the groups that are led here, in order of their ids.
    var groupTotals: [LoadMeter.GroupTotals] {
        replicas.elements.filter { $0.isLeader && !$0.isFailed }.map {
            LoadMeter.GroupTotals(
                group: $0.group, reads: $0.admittedReads, writes: $0.admittedWrites)
        }
    }

    /// The load of the groups that are led here.
    func measureLoad() -> LoadReport {
        load.report(groupTotals, now: now) { group, shard in
            guard let replica = replicas[group], replica.isLeader,
                let owned = replica.state.shards[shard]
            else { return nil }
            if case .fenced = owned.phase { return nil }
            return owned
        }
    }

    // MARK: Shard sizes

    /// How much of the time the counting of shards may take, as one part in so many.
    private static let surveyShare: UInt64 = 25

    /// Counts the shards of led groups that changed, off the loop, one group at a time.
    func surveyShards() {
        let due = replicas.elements.filter { $0.isLeader && $0.changedShards && !$0.isFailed }
        // In turn: a group that is always written to must not keep the others waiting.
        guard now >= surveyNotBefore,
            let replica = due.first(where: { $0.group > surveyedLast }) ?? due.first
        else { return }
        surveyedLast = replica.group
        replica.changedShards = false
        surveyNotBefore = .distantFuture
        // A shard on the move keeps the figure that it left with until its new group has all of it.
        let shards = replica.state.shards.elements.filter { $0.phase == .owned }
        let store = replica.store
        let started = now
        do throws(DatabaseError) {
            let view = try replica.engine.snapshot()
            let results = SurveyResults()
            let number = surveys.add { [unowned self] in
                surveyNotBefore = now + max(.seconds(1), (now - started) * Self.surveyShare)
                for report in results.take()
                where shardReports[report.shard] != report
                    && replica.state.shards[report.shard] != nil
                {
                    shardReports.set(report, for: report.shard)
                    changedReports.append(report.shard)
                }
            }
            let mailbox = surveys.mailbox
            replica.disk.surveyor.submit {
                for owned in shards {
                    if let report = Self.count(owned, store, view) { results.add(report) }
                }
                view.release()
                _ = mailbox.post((number, nil))
            }
        } catch {
            surveyNotBefore = now
            replica.disk.fail(error)
        }
    }

    /// The shard is not here any more. It may be here in another group, with a later epoch than this.
    func forgetReport(of shard: ShardID, through epoch: Epoch) {
        if let known = shardReports[shard], known.epoch <= epoch { shardReports.remove(shard) }
    }

    /// Nil when the shard cannot be read to its end: no figure rather than a wrong one.
    private static func count(
        _ owned: OwnedShard, _ store: StoreID, _ view: any EngineSnapshot
    ) -> ShardReport? {
        var report = ShardReport(
            shard: owned.shard.id, epoch: owned.shard.epoch, bytes: 0, records: 0)
        var middle = MiddleKey(owned.partitioning)
        let range = StorageLayout.range(store, owned.shard.table, owned.shard.range)
        do throws(DatabaseError) {
            try view.scan(range) { key, value in
                report.records += 1
                let bytes = UInt64(key.count + value.count)
                report.bytes += bytes
                middle.add(
                    UnsafeRawBufferPointer(
                        rebasing: key[StorageLayout.keyPrefixByteCount...]), bytes: bytes)
                return true
            }
        } catch {
            return nil
        }
        report.middle = middle.key
        report.spread = middle.spread
        return report
    }
}

/// Carries the figures from the counting thread to the loop.
private final class SurveyResults: Sendable {
    private let reports = Mutex<[ShardReport]>([])
    func add(_ report: ShardReport) { reports.withLock { $0.append(report) } }
    func take() -> [ShardReport] { reports.withLock { $0 } }
}

extension GroupReplica {
    func report() -> ReplicaReport {
        let role: ReplicaReport.Role =
            switch core.role {
            case .follower: .follower
            case .preCandidate, .candidate: .candidate
            case .leader: .leader
            case .learner: .learner
            }
        return ReplicaReport(
            group: group, replica: id, role: role,
            state: isFailed ? .failed : snapshotReceiver != nil ? .restoring : .active,
            term: core.term, lastTerm: core.lastPosition.term,
            lastIndex: core.lastPosition.index, commit: core.commit,
            applied: state.applied.index, leader: core.leader,
            isServing: isLeader && core.canPropose, members: isLeader ? memberReports() : [])
    }

    private func memberReports() -> [MemberReport] {
        let membership = state.membership
        let progress = core.progress
        return membership.all.map { member in
            let replica = member.replica
            let role: MemberReport.Role =
                membership.voters.contains(member)
                ? .voter : membership.outgoing.contains(member) ? .outgoing : .learner
            let match =
                replica == id
                ? core.lastPosition.index
                : progress.first { $0.member.replica == replica }?.match ?? .none
            return MemberReport(
                replica: replica, role: role, match: match,
                snapshotBytes: snapshotSenders[replica].map { UInt64($0.sentBytes) })
        }
    }
}
