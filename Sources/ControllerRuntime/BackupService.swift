// Keeps the backup of the metadata up to date, on a thread of its own: whatever the destination does,
// the controller's loop is not delayed.

import EventLoop
import Glibc
import KVBase
import MetadataBackup
import Metrics
import ObjectStore
import Synchronization
import SystemdSupport
import Threads

/// The loop feeds it with events while the controller acts; it asks the loop for a watch and for
/// snapshots.
final class BackupService: Sendable {
    /// From the thread to the loop. `session` is that of the `begin` it belongs to.
    enum Wish: Sendable {
        /// Events from this revision on; nil: none before a snapshot.
        case watch(session: UInt64, from: Revision?)
        case snapshot(session: UInt64)
        /// What `force` was called for has ended.
        case forced(job: UInt64, DatabaseError?)
    }

    /// What operators see. Times in milliseconds since 1970.
    struct Status: Sendable {
        var isRunning = false
        var writer = BackupWriter.Status()
        /// The oldest change that is not in the backup came then; nil: it holds everything.
        var behindSince: UInt64?
        var lastSuccess: UInt64 = 0
        var problem: String?
        var failures: UInt64 = 0
    }

    private struct Inbox {
        var session: UInt64 = 0
        /// Nil while this controller does not act.
        var cluster: UInt64?
        var events: [BackupEvent] = []
        var changeCount = 0
        /// Events before this revision were dropped since the thread looked.
        var lostBefore: Revision?
        /// The last events of the session before, which the thread had not taken when it ended.
        var rest: (session: UInt64, events: [BackupEvent]) = (0, [])
        var refusal: DatabaseError?
        var snapshot: (@Sendable () -> MetadataSnapshot)?
        var forced: [UInt64] = []
        var isClosing = false
    }

    /// Changes that wait for the thread; beyond it they are dropped, and a snapshot closes the gap.
    private static let changesMax = 100_000
    /// A change waits this long for others to be stored with it: the greater part of the recovery
    /// point of 1 s.
    private static let gatherMillis: UInt64 = 400
    private static let retryMillisMax: UInt64 = 15_000
    /// Between two looks whether the destination still holds what was stored there.
    private static let lookMillis: UInt64 = 30_000

    let destination: any ObjectStore
    private let wanted: Mutex<BackupSettings>
    private let log: ComponentLog
    let metrics: BackupMetrics
    private let mailbox: Mailbox<Wish>
    private let inbox = Mutex(Inbox())
    private let wakeUp = TimedSignal()
    private let published = Mutex(Status())
    private let storing = Mutex<BackupProgress?>(nil)
    private let thread: Mutex<NamedThread?> = Mutex(nil)

    /// `receive` is called on the loop's thread.
    init(
        to destination: any ObjectStore, settings: BackupSettings, loop: EventLoop,
        log: ComponentLog, metrics: BackupMetrics, receive: @escaping (Wish) -> Void
    ) throws(DatabaseError) {
        self.destination = destination
        wanted = Mutex(settings)
        self.log = log
        self.metrics = metrics
        mailbox = loop.makeMailbox(capacity: 64) { for wish in $0 { receive(wish) } }
        let started = try NamedThread(name: "backup") { [self] in run() }
        thread.withLock { $0 = started }
    }

    // MARK: The loop's side

    var status: Status { published.withLock { $0 } }

    /// Of the snapshot that is being stored; nil when none is.
    var progress: BackupProgress? { storing.withLock { $0 } }

    /// Changes take effect with whatever the thread does next.
    var settings: BackupSettings {
        get { wanted.withLock { $0 } }
        set { wanted.withLock { $0 = newValue } }
    }

    /// This controller acts. Answers the session's number.
    func begin(cluster: UInt64) -> UInt64 {
        metrics.keeping.isOn = true
        return tell { inbox in
            inbox = Inbox(
                session: inbox.session + 1, cluster: cluster, rest: inbox.rest,
                forced: inbox.forced)
            return inbox.session
        }
    }

    /// It acts no more. What waits is still stored, if that succeeds at once.
    func end() {
        metrics.keeping.isOn = false
        tell { inbox in
            let events = inbox.lostBefore == nil ? inbox.events : []
            inbox = Inbox(
                session: inbox.session + 1, rest: (inbox.session, events), forced: inbox.forced)
        }
    }

    func append(_ event: BackupEvent) {
        tell { inbox in
            guard inbox.cluster != nil else { return }
            if inbox.changeCount + event.changes.count > Self.changesMax {
                inbox.events = []
                inbox.changeCount = 0
                inbox.lostBefore = event.revision
            }
            inbox.events.append(event)
            inbox.changeCount += event.changes.count
        }
    }

    /// Events before `revision`, from which on they come now, cannot be had any more.
    func loseEvents(before revision: Revision) {
        tell { inbox in
            inbox.events = []
            inbox.changeCount = 0
            inbox.lostBefore = revision
        }
    }

    /// The backup cannot be continued by this cluster.
    func refuse(_ error: DatabaseError) { tell { $0.refusal = error } }

    /// The answer to a wish for a snapshot; `make` is called on the thread.
    func take(snapshot make: @escaping @Sendable () -> MetadataSnapshot) {
        tell { $0.snapshot = make }
    }

    /// Stores everything and a snapshot now; `.forced` follows.
    func force(job: UInt64) { tell { $0.forced.append(job) } }

    /// Ends the thread.
    func close() {
        tell { $0.isClosing = true }
        destination.abort()
        let ending = thread.withLock { thread in
            defer { thread = nil }
            return thread
        }
        ending?.join()
    }

    private func tell<Answer>(_ body: (inout Inbox) -> Answer) -> Answer {
        let answer = inbox.withLock { body(&$0) }
        wakeUp.signal()
        return answer
    }

    // MARK: The thread's side

    /// What the thread knows besides the writer.
    private struct Work {
        var session: UInt64 = 0
        var writer: BackupWriter?
        var hasBegun = false
        var isSnapshotAsked = false
        var snapshot: (@Sendable () -> MetadataSnapshot)?
        var refusal: DatabaseError?
        var forced: [UInt64] = []
        /// To be told when the status that they led to is published.
        var ended: [(job: UInt64, error: DatabaseError?)] = []
        var behindSince: UInt64?
        var lookAt: UInt64 = 0
        /// What was stored and is not there any more; nil when all is.
        var loss: String?
        var retryAt: UInt64 = 0
        var retryMillis: UInt64 = 250
        var lastSuccess: UInt64 = 0
        var problem: String?
        var failures: UInt64 = 0
        /// Already in the counters.
        var bytes: UInt64 = 0
        var objects: UInt64 = 0
    }

    private static var now: UInt64 { EventLoop.wallClockNanoseconds() / 1_000_000 }

    private func run() {
        var work = Work()
        while true {
            let isBusy = work.writer?.hasEvents == true || work.retryAt > 0
            let isMerging = work.writer?.isMerging == true && work.retryAt == 0
            if !isMerging { wakeUp.wait(.milliseconds(isBusy ? 100 : 1_000)) }
            guard receive(&work) else { return }
            let now = Self.now
            if work.writer == nil {
                end(&work, DatabaseError(.notLeader, "this controller stands by"))
            } else if now >= work.retryAt {
                attempt(&work, now: now)
                if isMerging { merge(&work) }
            }
            publish(&work)
            for ended in work.ended { post(.forced(job: ended.job, ended.error)) }
            work.ended = []
        }
    }

    private func end(_ work: inout Work, _ error: DatabaseError?) {
        work.ended += work.forced.map { ($0, error) }
        work.forced = []
    }

    /// Takes over what the loop has told; false at the end.
    private func receive(_ work: inout Work) -> Bool {
        let told = inbox.withLock { inbox in
            let told = inbox
            inbox.events = []
            inbox.changeCount = 0
            inbox.lostBefore = nil
            inbox.rest = (0, [])
            inbox.snapshot = nil
            inbox.refusal = nil
            inbox.forced = []
            return told
        }
        if told.session != work.session { finish(&work, told.rest) }
        guard !told.isClosing else { return false }
        if told.session != work.session {
            let (forced, lastSuccess) = (work.forced, work.lastSuccess)
            let failures = work.failures
            work = Work(session: told.session, forced: forced, lastSuccess: lastSuccess)
            work.failures = failures
            work.writer = told.cluster.map {
                BackupWriter(BackupArchive(destination), cluster: $0, settings: settings)
            }
        }
        work.writer?.settings = settings
        work.forced += told.forced
        if let refusal = told.refusal { work.refusal = refusal }
        if let revision = told.lostBefore { work.writer?.loseEvents(before: revision) }
        for event in told.events { work.writer?.append(event) }
        if let snapshot = told.snapshot { work.snapshot = snapshot }
        if let writer = work.writer, writer.isBehind {
            work.behindSince = work.behindSince ?? told.events.first?.at ?? Self.now
        }
        return true
    }

    /// Stores what a session that has ended left. Whoever acts next stores what this does not.
    private func finish(_ work: inout Work, _ rest: (session: UInt64, events: [BackupEvent])) {
        guard rest.session == work.session, work.problem == nil, work.refusal == nil else { return }
        for event in rest.events { work.writer?.append(event) }
        try? work.writer?.flush()
    }

    /// Does what is due; after a failure nothing for a while.
    private func attempt(_ work: inout Work, now: UInt64) {
        do throws(DatabaseError) {
            try proceed(&work, now: now)
            if work.problem != nil { log.notice("the backup goes on") }
            work.problem = nil
            work.retryAt = 0
            work.retryMillis = 250
        } catch {
            metrics.failed(error)
            work.failures += 1
            if work.problem != error.message {
                log.warning(
                    "the backup fails",
                    [
                        LogField("destination", destination.description),
                        LogField("reason", error.message),
                    ])
            }
            work.problem = error.message
            work.retryAt = Self.now + work.retryMillis
            work.retryMillis = min(work.retryMillis * 2, Self.retryMillisMax)
            work.snapshot = nil
            work.isSnapshotAsked = false
            end(&work, error)
        }
    }

    /// Nothing hangs on it: what cannot be put together stays as it is.
    private func merge(_ work: inout Work) {
        do throws(DatabaseError) {
            try work.writer?.mergeStep()
        } catch {
            log.warning(
                "logs of the backup are not put together",
                [
                    LogField("destination", destination.description),
                    LogField("reason", error.message),
                ])
        }
    }

    private func proceed(_ work: inout Work, now: UInt64) throws(DatabaseError) {
        guard work.writer != nil else { return }
        if let refusal = work.refusal { throw refusal }
        if !work.hasBegun {
            let from = try work.writer?.begin() ?? nil
            work.hasBegun = true
            work.lookAt = now + Self.lookMillis
            post(.watch(session: work.session, from: from))
        }
        if let make = work.snapshot {
            defer { storing.withLock { $0 = nil } }
            try work.writer?.store(make(), at: Self.now) { step in storing.withLock { $0 = step } }
            work.snapshot = nil
            work.isSnapshotAsked = false
            end(&work, nil)
            try work.writer?.prune(now: Self.now)
        } else if work.writer?.wantsPruning(now: now) == true {
            try work.writer?.prune(now: now)
        }
        if now >= work.lookAt {
            if try work.writer?.look() == false { note(lossIn: &work) }
            work.lookAt = now + Self.lookMillis
        }
        let isDue = work.behindSince.map { now >= $0 + Self.gatherMillis } ?? true
        if isDue || !work.forced.isEmpty { try work.writer?.flush() }
        let isWanted = work.writer?.wantsSnapshot(now: now) == true || !work.forced.isEmpty
        if isWanted, !work.isSnapshotAsked {
            work.isSnapshotAsked = true
            post(.snapshot(session: work.session))
        }
        if work.writer?.isBehind == false {
            work.behindSince = nil
            work.loss = nil
            work.lastSuccess = Self.now
        }
    }

    private func note(lossIn work: inout Work) {
        let loss = DatabaseError(
            .storageFailed,
            "what was stored in \(destination.description) is not there any more: it was deleted, or "
                + "something else is mounted there; a new snapshot is stored")
        metrics.failed(loss)
        work.failures += 1
        work.loss = loss.message
        log.warning("the backup lost objects", [LogField("reason", loss.message)])
    }

    private func post(_ wish: Wish) {
        // Full only while the loop stands still for long, or when it has ended.
        while !mailbox.post(wish), !inbox.withLock({ $0.isClosing }) { usleep(10_000) }
    }

    private func publish(_ work: inout Work) {
        var status = Status()
        status.isRunning = work.writer != nil
        status.writer = work.writer?.status ?? BackupWriter.Status()
        status.behindSince = work.writer == nil ? nil : work.behindSince
        status.lastSuccess = work.lastSuccess
        status.problem = work.problem ?? work.loss
        status.failures = work.failures
        let final = status
        published.withLock { $0 = final }
        let now = Self.now
        let lag = status.behindSince.map { now - min(now, $0) } ?? 0
        metrics.lag.set(Int64((lag + 500) / 1_000))
        metrics.lastSuccess.set(Int64(work.lastSuccess / 1_000))
        metrics.revision.set(Int64(status.writer.revision.rawValue))
        metrics.bytes.increment(by: status.writer.bytes - work.bytes)
        metrics.objects.increment(by: status.writer.objects - work.objects)
        work.bytes = status.writer.bytes
        work.objects = status.writer.objects
    }
}
