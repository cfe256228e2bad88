// The backup of the metadata as the acting controller feeds it, and as operators see it.

import Configuration
import ControllerCore
import EventLoop
import KVBase
import MetadataBackup
import MetadataCore
import MetadataStore
import ObjectStore

struct BackupStatusView: Encodable {
    var destination: String
    var revision: UInt64
    /// Milliseconds since 1970, here and below; 0 for never.
    var revisionAt: UInt64
    var snapshot: UInt64
    var snapshotAt: UInt64
    var lastSuccess: UInt64
    var lagSeconds: UInt64
    /// Written by this process since it acts.
    var objects: UInt64
    var bytes: UInt64
    var failures: UInt64
    /// Why the newest attempt failed; empty when it did not.
    var problem: String
    var snapshotEverySeconds: UInt64
    var keepSeconds: UInt64
}

/// Everything about the backup that lives on the loop's thread.
final class BackupKeeper {
    let service: BackupService
    let jobs = BackupJobs()
    let threads: BackgroundJobs
    /// One after the other; a long one delays no list.
    let verifications: BackgroundJobs
    /// The one under way, or the last.
    var verification: Verification?

    struct Verification {
        var operation: OperationID
        var progress = JobProgress()
        var result: BackupVerificationView?
    }

    /// Of the service; 0 while this controller does not act.
    var session: UInt64 = 0
    var watch: WatchID?

    init(_ service: BackupService, _ loop: EventLoop) {
        self.service = service
        threads = BackgroundJobs(loop)
        verifications = BackgroundJobs(loop)
    }

    func close() {
        verification?.progress.stop()
        service.close()
        threads.close()
        verifications.close()
    }
}

extension ControllerServer {
    static let backupVerbs = [
        "backup.status", "backup.now", "backup.list", "backup.show", "backup.verify",
        "backup.verified", "backup.job",
    ]
    /// A backup that is behind for longer is worth a finding.
    static let backupLagMillis: UInt64 = 10_000
    /// And for longer, or with no backup ever, a critical one.
    static let backupLagCriticalMillis: UInt64 = 600_000

    // MARK: Reload

    /// Of what is here, the times of the backup follow.
    func reload(_ settings: Settings) {
        backup?.service.settings = BackupSettings(settings)
    }

    // MARK: Feeding

    func startBackup() {
        guard let backup, let controller else { return }
        backup.session = backup.service.begin(cluster: controller.cluster)
    }

    func stopBackup() {
        guard let backup, backup.session != 0 else { return }
        backup.session = 0
        backup.service.end()
        backup.verification?.progress.stop()
        if let watch = backup.watch { home.metadata?.cancel(watch) }
        backup.watch = nil
    }

    func receive(_ wish: BackupService.Wish) {
        guard let backup else { return }
        switch wish {
        case .watch(let session, let from):
            guard session == backup.session else { return }
            watchForBackup(backup, from: from)
        case .snapshot(let session):
            guard session == backup.session, let state = home.state else { return }
            // A copy shares its memory: the records are gathered on the backup's thread.
            backup.service.take {
                MetadataSnapshot(revision: state.revision, records: state.range(prefix: []))
            }
        case .forced(let job, let error):
            let id = OperationID(UInt32(job))
            if let error {
                // The next controller to act asks for it anew; that may be this one.
                guard error.code != .notLeader else { return }
                step(.backupEnded(id, .failure(error)))
            } else {
                let written = backup.service.status.writer
                step(
                    .backupEnded(
                        id,
                        .success(
                            "a snapshot of revision \(written.snapshot) is in "
                                + "\(backup.service.destination.description), read back")))
            }
        }
    }

    /// An operator asked for a backup.
    func backUp(_ id: OperationID) {
        guard let backup else { return endWithoutBackup(id) }
        backup.service.force(job: UInt64(id.rawValue))
    }

    /// An operator asked what the backup is worth.
    func verifyBackup(_ id: OperationID) {
        guard let backup else { return endWithoutBackup(id) }
        let verification = BackupKeeper.Verification(operation: id)
        backup.verification = verification
        let (destination, progress) = (backup.service.destination, verification.progress)
        backup.verifications.run("backup-verify") { () throws(DatabaseError) in
            try BackupArchive(destination).verify { (done, total) throws(DatabaseError) in
                try progress.goOn(done: done, total: total)
            }
        } _: { [unowned self] result in
            switch result {
            case .success(let found):
                backup.service.metrics.verified(found)
                if backup.verification?.operation == id {
                    backup.verification?.result = BackupVerificationView(
                        found, destination: destination.description)
                }
            // Cancelled, or the next controller to act asks for it anew; that may be this one.
            case .failure(let error): guard error.code != .notLeader else { return }
            }
            step(.backupEnded(id, result.flatMap(\.summary)))
        }
    }

    func verifyNoMore(_ id: OperationID) {
        guard backup?.verification?.operation == id else { return }
        backup?.verification?.progress.stop()
    }

    private func endWithoutBackup(_ id: OperationID) {
        loop.schedule(after: .zero) { [unowned self] in
            step(.backupEnded(id, .failure(Self.hasNoBackup)))
        }
    }

    private static let hasNoBackup = DatabaseError(
        .refused,
        "this cluster has no backup: set backup.to of every controller to a directory or s3://...")

    private func watchForBackup(_ backup: BackupKeeper, from: Revision?) {
        guard let store = home.metadata, let state = home.state else { return }
        if let watch = backup.watch { store.cancel(watch) }
        backup.watch = nil
        let next = state.revision.next()
        if let from, from > next {
            return backup.service.refuse(
                DatabaseError(
                    .refused,
                    "the backup holds revision \(from.rawValue - 1) and the metadata is at "
                        + "\(state.revision): it was written by another history of this "
                        + "cluster; give the backup another destination"))
        }
        let session = backup.session
        let handler: (Result<MetadataEvent, MetadataError>) -> Void = { [unowned self] result in
            guard session == backup.session else { return }
            switch result {
            case .success(let event):
                backup.service.append(
                    BackupEvent(
                        revision: event.revision,
                        at: EventLoop.wallClockNanoseconds() / 1_000_000, changes: event.changes))
            case .failure:
                backup.watch = nil
                // A store ends what follows it when the metadata leaves it.
                guard !moves.isFrozen else { return }
                watchForBackup(backup, from: nil)
            }
        }
        if let from, let watch = try? store.watch(prefix: [], from: from, handler) {
            backup.watch = watch
            return
        }
        // What lies between is forgotten: a snapshot takes its place.
        backup.service.loseEvents(before: next)
        backup.watch = try? store.watch(prefix: [], from: next, handler)
    }

    // MARK: Moves of the metadata

    /// Why the backup fails; nil when it does not, or there is none.
    var backupProblem: String? {
        guard let backup, let problem = backup.service.status.problem else { return nil }
        return "the backup in \(backup.service.destination.description) fails: \(problem)"
    }

    /// What the backup lacks below `revision`; nil for nothing, or when there is no backup.
    func backupObstacle(before revision: Revision) -> String? {
        guard let backup else { return nil }
        let held = backup.service.status.writer.revision
        guard held.next() < revision else { return nil }
        return backupProblem
            ?? "the backup in \(backup.service.destination.description) holds revision \(held) and is "
            + "late with \(revision.rawValue - 1)"
    }

    // MARK: What operators see

    func backupStatus(_ backup: BackupKeeper) -> BackupStatusView {
        let status = backup.service.status
        let writer = status.writer
        let now = EventLoop.wallClockNanoseconds() / 1_000_000
        return BackupStatusView(
            destination: backup.service.destination.description,
            revision: writer.revision.rawValue, revisionAt: writer.revisionAt,
            snapshot: writer.snapshot.rawValue, snapshotAt: writer.snapshotAt,
            lastSuccess: status.lastSuccess,
            lagSeconds: (status.behindSince.map { now - min(now, $0) } ?? 0) / 1_000,
            objects: writer.objects, bytes: writer.bytes, failures: status.failures,
            problem: status.problem ?? "",
            snapshotEverySeconds: backup.service.settings.snapshotEvery / 1_000,
            keepSeconds: backup.service.settings.keep / 1_000)
    }

    /// What is wrong with the backup.
    func backupFinding() -> FindingView? {
        guard let backup else { return nil }
        let status = backup.service.status
        let now = EventLoop.wallClockNanoseconds() / 1_000_000
        let lag = status.behindSince.map { now - min(now, $0) } ?? 0
        guard lag >= Self.backupLagMillis || status.problem != nil && lag > 1_000 else {
            return nil
        }
        let place = backup.service.destination.description
        return FindingView(
            code: "RK060",
            severity: lag >= Self.backupLagCriticalMillis ? "critical" : "warning",
            text: "the backup of the metadata in \(place) is \(lag / 1_000) s behind"
                + (status.problem.map { ": \($0)" } ?? ""),
            advice: "kvctl backup status; see to the destination: the backup catches up by itself")
    }

    // MARK: Verbs

    func serveBackup(
        _ request: AdminRequest, _ token: UInt32, _ session: ControllerSession
    ) throws(DatabaseError) {
        guard let backup else { throw Self.hasNoBackup }
        let arguments = request.arguments ?? AdminRequest.Arguments()
        let destination = backup.service.destination
        let archive = BackupArchive(destination)
        let moment: BackupMoment
        if let text = arguments.at {
            guard let named = BackupMoment(text) else {
                throw DatabaseError(
                    .invalidRequest, "at is newest, revision:N or time:MILLISECONDS, not '\(text)'")
            }
            moment = named
        } else {
            moment = .newest
        }
        switch request.verb {
        case "backup.status": session.adminSuccess(token, backupStatus(backup))
        case "backup.job":
            let id = try required(arguments.job, "job")
            guard let view = backup.jobs.view(id) else {
                throw DatabaseError(
                    .refused, "there is no job \(id) on the backup; the controller changed, perhaps"
                )
            }
            session.adminSuccess(token, view)
        case "backup.now": submit(.backup, token, session)
        case "backup.verify": submit(.verifyBackup, token, session)
        case "backup.verified":
            let id = try required(arguments.operation, "operation")
            guard let verification = backup.verification, verification.operation.rawValue == id,
                let result = verification.result
            else {
                throw DatabaseError(
                    .refused,
                    "this controller has no result of operation \(id): another one acted, or a later "
                        + "verification was started; kvctl ops show \(id) tells how it ended")
            }
            session.adminSuccess(token, result)
        case "backup.list":
            try start(request.verb, backup, token, session) { (_) throws(DatabaseError) in
                BackupListView(try archive.catalog(), destination: destination.description)
            }
        default:
            try start(request.verb, backup, token, session) { (progress) throws(DatabaseError) in
                let state = try archive.state(at: moment) { progress.set(done: $0, total: $1) }
                return MetadataSummary.InBackup(
                    destination: destination.description, revision: state.revision.rawValue,
                    at: state.at, damaged: state.findings.map(\.text),
                    summary: try MetadataSummary(state.records))
            }
        }
    }

    private func start<View: Encodable & Sendable>(
        _ verb: String, _ backup: BackupKeeper, _ token: UInt32, _ session: ControllerSession,
        _ work: @escaping @Sendable (JobProgress) throws(DatabaseError) -> View
    ) throws(DatabaseError) {
        let (id, progress) = try backup.jobs.add(verb)
        backup.threads.run("backup-job") { () throws(DatabaseError) -> View in
            try work(progress)
        } _: { result in
            backup.jobs.end(id, result.map { $0 as any Encodable & Sendable })
        }
        session.adminSuccess(token, backup.jobs.view(id))
    }
}
