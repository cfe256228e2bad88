// A thread that runs an event loop.

import KVBase
import Threads

/// A thread that runs one event loop.
public final class LoopThread: Sendable {
    /// The loop's counters.
    public let progress: LoopProgress
    private let stopMailbox: Mailbox<Void>
    private let thread: NamedThread

    private init(thread: NamedThread, stopMailbox: Mailbox<Void>, progress: LoopProgress) {
        self.thread = thread
        self.stopMailbox = stopMailbox
        self.progress = progress
    }

    /// Starts a thread, makes a loop on it, runs `setup` there and then the loop. Returns when
    /// `setup` has, with its result (the mailboxes by which to reach the loop, as a rule).
    public static func start<Result: Sendable>(
        name: String, _ setup: @escaping @Sendable (EventLoop) throws(DatabaseError) -> Result
    ) throws(DatabaseError) -> (thread: LoopThread, result: Result) {
        let outcome = Latch<Swift.Result<(Result, Mailbox<Void>, LoopProgress), DatabaseError>>()
        let thread = try NamedThread(name: name) {
            do throws(DatabaseError) {
                let loop = try EventLoop()
                let stop = loop.makeMailbox(capacity: 1) { [unowned loop] (_: [Void]) in
                    loop.stop()
                }
                do throws(DatabaseError) {
                    let result = try setup(loop)
                    outcome.open(.success((result, stop, loop.progress)))
                } catch {
                    loop.close()
                    throw error
                }
                loop.run()
            } catch {
                outcome.open(.failure(error))
            }
        }
        switch outcome.wait() {
        case .success(let (result, stop, progress)):
            return (LoopThread(thread: thread, stopMailbox: stop, progress: progress), result)
        case .failure(let error):
            thread.join()
            throw error
        }
    }

    /// Asks the loop to end; from any thread, idempotent.
    public func stop() { _ = stopMailbox.post(()) }

    /// Waits until the loop has ended. At most once.
    public func join() { thread.join() }
}
