// Work on the backup that operators ask for and that takes its time: a tool starts a job and asks for
// it until it has ended.

import EventLoop
import KVBase
import Synchronization

/// How far a job has come, in objects; written by its thread, read by the loop.
final class JobProgress: Sendable {
    private let state = Mutex((done: 0, total: 0, isStopped: false))

    var value: (done: Int, total: Int) { state.withLock { ($0.done, $0.total) } }

    func set(done: Int, total: Int) {
        state.withLock { ($0.done, $0.total) = (done, total) }
    }

    /// Throws when nobody wants its result any more.
    func goOn(done: Int, total: Int) throws(DatabaseError) {
        set(done: done, total: total)
        guard !state.withLock({ $0.isStopped }) else {
            throw DatabaseError(.notLeader, "nobody waits for it any more")
        }
    }

    func stop() { state.withLock { $0.isStopped = true } }
}

/// A view of any kind, as a part of another.
struct AnyView: Encodable {
    let value: any Encodable & Sendable
    func encode(to encoder: any Encoder) throws { try value.encode(to: encoder) }
}

struct BackupJobView: Encodable {
    var job: UInt64
    var verb: String
    /// `running`, `done` or `failed`.
    var state: String
    var done: Int
    var total: Int
    /// Of a job that failed.
    var code: String?
    var message: String?
    /// Of a job that is done.
    var result: AnyView?
}

/// The newest jobs. On the loop's thread.
final class BackupJobs {
    private struct Job {
        var id: UInt64
        var verb: String
        var progress = JobProgress()
        var outcome: Result<any Encodable & Sendable, DatabaseError>?
    }

    private static let keptMax = 32
    private static let runningMax = 4

    private var jobs: [Job] = []
    private var issued: UInt64 = 0

    /// Throws when too many run.
    func add(_ verb: String) throws(DatabaseError) -> (id: UInt64, progress: JobProgress) {
        guard jobs.count(where: { $0.outcome == nil }) < Self.runningMax else {
            throw DatabaseError(
                .overloaded, "\(Self.runningMax) jobs on the backup run already; wait for one")
        }
        if jobs.count >= Self.keptMax,
            let oldest = jobs.firstIndex(where: { $0.outcome != nil })
        {
            jobs.remove(at: oldest)
        }
        issued += 1
        let job = Job(id: issued, verb: verb)
        jobs.append(job)
        return (issued, job.progress)
    }

    func end(_ id: UInt64, _ outcome: Result<any Encodable & Sendable, DatabaseError>) {
        guard let place = jobs.firstIndex(where: { $0.id == id }) else { return }
        jobs[place].outcome = outcome
    }

    func view(_ id: UInt64) -> BackupJobView? {
        guard let job = jobs.first(where: { $0.id == id }) else { return nil }
        let progress = job.progress.value
        var view = BackupJobView(
            job: id, verb: job.verb, state: "running", done: progress.done, total: progress.total)
        switch job.outcome {
        case nil: break
        case .success(let result):
            view.state = "done"
            view.result = AnyView(value: result)
        case .failure(let error):
            view.state = "failed"
            view.code = "\(error.code)"
            view.message = error.message
        }
        return view
    }
}
