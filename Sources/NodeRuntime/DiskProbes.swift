// How long a disk takes to answer: every write of its log, or a probe when there is none, and a read
// through its engines.

import EventLoop
import KVBase
import NodeCore
import ReplicatedLog
import ReplicationCore
import ShardCore
import StorageAPI
import Synchronization
import SystemdSupport
import Threads

/// Looks at one disk. Owned by the loop, which calls `look` with every tick and never waits for the
/// disk here: the log has a thread of its own and so have the reads.
final class DiskProbes {
    /// How often an idle disk is asked.
    static let interval = Nanoseconds.seconds(1)
    /// A disk that takes longer is slow. Twice a leader's lease: a sync on a healthy disk takes some
    /// 10 ms, and within this time and the next heartbeat a controller has a whole second left to
    /// move the leaders elsewhere.
    static let slowBound = Nanoseconds.milliseconds(500)
    /// A write of the log that is older makes this node hand its leaders over by itself: no
    /// controller did.
    static let handOverAfter = Nanoseconds.seconds(2)
    /// And one older than this makes it give them up without a successor.
    static let stepDownAfter = Nanoseconds.seconds(4)

    /// As of the last look.
    private(set) var logDelay = Nanoseconds.zero
    private(set) var engineDelay = Nanoseconds.zero

    private let worker: WorkerThread
    private let read = ReadProbe()
    private var readAt = Instant.origin
    private var turn = 0

    init(disk index: Int) throws(DatabaseError) {
        worker = try WorkerThread(name: "disk\(index)-probe")
    }

    var isSlow: Bool { logDelay > Self.slowBound || engineDelay > Self.slowBound }

    /// Measures, and asks again what was not asked for a while. `target` names what a read would read;
    /// nil when there is nothing.
    func look(
        at log: ReplicatedLog, now: Instant,
        target: (_ turn: Int) throws(DatabaseError) -> (any EngineSnapshot, KeyRange)?
    ) throws(DatabaseError) {
        let pace = log.pace
        logDelay = pace.delay(at: now)
        if pace.startedAt == nil, now > pace.endedAt, now - pace.endedAt >= Self.interval {
            log.probe()
        }
        engineDelay = read.delay(at: now)
        guard !read.isUnderWay, now >= readAt + Self.interval else { return }
        readAt = now
        turn += 1
        guard let (view, range) = try target(turn) else { return }
        let read = read
        read.begin(at: now)
        worker.submit {
            // What cannot be read is found by whoever needs it.
            try? view.scan(range) { _, _ in false }
            view.release()
            read.end()
        }
    }

    func close() { worker.finish() }
}

/// One read at a time; begun by the loop, ended by the worker.
private final class ReadProbe: Sendable {
    private struct State {
        var startedAt: Instant?
        var newest = Nanoseconds.zero
    }

    private let state = Mutex(State())

    var isUnderWay: Bool { state.withLock { $0.startedAt != nil } }

    func begin(at now: Instant) { state.withLock { $0.startedAt = now } }

    func end() {
        let now = EventLoop.monotonicNow()
        state.withLock { state in
            if let startedAt = state.startedAt { state.newest = now - min(startedAt, now) }
            state.startedAt = nil
        }
    }

    func delay(at now: Instant) -> Nanoseconds {
        state.withLock { state in
            guard let startedAt = state.startedAt, startedAt < now else { return state.newest }
            return max(state.newest, now - startedAt)
        }
    }
}

extension NodeServer {
    /// One look at every disk. Leaders whose disk does not answer are given up here when no controller
    /// moves them.
    func lookAtDisks() {
        for disk in disks where disk.failure == nil {
            let wasSlow = disk.probes.isSlow
            let now = now
            do throws(DatabaseError) {
                try disk.probes.look(at: disk.log, now: now) { (turn) throws(DatabaseError) in
                    try probeTarget(on: disk, turn: turn)
                }
            } catch {
                disk.fail(error)
                continue
            }
            if disk.probes.isSlow != wasSlow {
                log.warning(
                    wasSlow ? "disk answers in time again" : "disk is slow",
                    [
                        LogField("path", disk.path),
                        LogField("log_ms", disk.probes.logDelay.count / 1_000_000),
                        LogField("engine_ms", disk.probes.engineDelay.count / 1_000_000),
                    ])
                reportSoon()
            }
            if disk.probes.logDelay >= DiskProbes.handOverAfter { fence(disk) }
        }
    }

    /// A write of the disk's log has been under way for very long: whatever this node leads from it
    /// goes to others, if they can make a majority without it.
    private func fence(_ disk: Disk) {
        guard let startedAt = disk.log.pace.startedAt else { return }
        let age = now - min(startedAt, now)
        guard age >= DiskProbes.handOverAfter else { return }
        for replica in replicas.elements
        where replica.disk === disk && replica.isLeader && replica.othersCanLead {
            if age >= DiskProbes.stepDownAfter {
                log.error(
                    "gives up a leadership: its disk does not answer",
                    [
                        LogField("group", replica.group), LogField("path", disk.path),
                        LogField("log_ms", age.count / 1_000_000),
                    ])
                replica.step(.stepDown)
            } else if let target = replica.bestSuccessor(at: now) {
                replica.step(.transferLeadership(to: target))
            }
        }
    }

    /// A view of one of the disk's engines and somewhere in the records of a replica there: reads
    /// that always met the same block would only measure memory.
    private func probeTarget(
        on disk: Disk, turn: Int
    ) throws(DatabaseError) -> (any EngineSnapshot, KeyRange)? {
        let hosted = replicas.elements.filter { $0.disk === disk && !$0.isFailed }
        guard !hosted.isEmpty else { return nil }
        let replica = hosted[turn % hosted.count]
        let shards = replica.state.shards.elements
        var range = StorageLayout.range(replica.store)
        let place = shards.isEmpty ? 0 : Int(random.below(UInt64(shards.count)))
        if let owned = shards.dropFirst(place).first {
            range = StorageLayout.range(replica.store, owned.shard.table, owned.shard.range)
            let deeper = range.start + [UInt8(truncatingIfNeeded: random.next())]
            if range.contains(deeper) { range.start = deeper }
        }
        return (try replica.engine.snapshot(), range)
    }
}

extension GroupReplica {
    /// Whether the other voters can elect and commit without this one: enough of them answer its
    /// appends.
    var othersCanLead: Bool {
        let answering = core.progress.filter { $0.state == .replicate }.map(\.member.replica)
        func isMajority(of voters: [Member]) -> Bool {
            voters.count { answering.contains($0.replica) } > voters.count / 2
        }
        let membership = core.membership
        return isMajority(of: membership.voters)
            && (!membership.isJoint || isMajority(of: membership.outgoing))
    }
}
