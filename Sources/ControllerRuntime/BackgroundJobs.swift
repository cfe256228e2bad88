// Work that may block, off the loop: reading, writing and encoding snapshots.

import EventLoop
import KVBase
import Threads

/// Runs jobs one after the other, each on a thread of its own, and calls back on the loop. Made and
/// used on the loop's thread. Snapshots are rare and at most a few wait, so no thread is kept. A job
/// whose thread does not start fails like any other, and the next one is tried.
final class BackgroundJobs {
    typealias Outcome = Result<any Sendable, DatabaseError>

    private struct Job {
        var name: String
        var work: @Sendable () -> Outcome
        var completion: (Outcome) -> Void
    }

    typealias StartThread =
        (String, sending @escaping () -> Void) throws(DatabaseError) -> NamedThread

    private var queue: [Job] = []
    /// The first of the queue is under way.
    private var isRunning = false
    private var thread: NamedThread?
    private let startThread: StartThread
    private let mailbox: Mailbox<Outcome>

    init(
        _ loop: EventLoop,
        startThread: @escaping StartThread = { (name, body) throws(DatabaseError) in
            try NamedThread(name: name, body)
        }
    ) {
        self.startThread = startThread
        var finish: (Outcome) -> Void = { _ in }
        mailbox = loop.makeMailbox(capacity: 1) { for outcome in $0 { finish(outcome) } }
        finish = { [unowned self] in ended($0) }
    }

    /// `completion` is called on the loop, unless the loop ends before.
    func run<Value: Sendable>(
        _ name: String, _ work: @escaping @Sendable () throws(DatabaseError) -> Value,
        _ completion: @escaping (Result<Value, DatabaseError>) -> Void
    ) {
        queue.append(
            Job(
                name: name,
                work: {
                    do throws(DatabaseError) { return .success(try work()) } catch {
                        return .failure(error)
                    }
                },
                completion: { outcome in
                    switch outcome {
                    case .failure(let error): completion(.failure(error))
                    case .success(let value):
                        guard let typed = value as? Value else {
                            preconditionFailure("a job's outcome is its own")
                        }
                        completion(.success(typed))
                    }
                }))
        start()
    }

    /// Waits for the job under way; the others are dropped.
    func close() {
        queue.removeAll()
        isRunning = false
        thread?.join()
        thread = nil
    }

    private func start() {
        guard !isRunning, let job = queue.first else { return }
        isRunning = true
        let mailbox = mailbox
        let work = job.work
        do throws(DatabaseError) {
            thread = try startThread(job.name) { _ = mailbox.post(work()) }
        } catch {
            _ = mailbox.post(.failure(error))
        }
    }

    private func ended(_ outcome: Outcome) {
        guard isRunning else { return }
        isRunning = false
        thread?.join()
        thread = nil
        let job = queue.removeFirst()
        job.completion(outcome)
        start()
    }
}
