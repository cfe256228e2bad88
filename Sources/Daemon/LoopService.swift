// What a daemon does, on an event loop of its own thread.

import Configuration
import EventLoop
import KVBase
import Threads

/// The part of a daemon that lives on its event loop. Touched by that thread only.
public protocol LoopService: AnyObject {
    /// The settings were read again: those that follow a reload are to take effect. They may be the
    /// same as before.
    func reload(_ settings: Settings)
    /// Begins an orderly stop, whose end is `EventLoop.stop`. May be called more than once.
    func stop()
    /// Lets go of everything, after the loop has ended.
    func close()
}

extension DaemonContext {
    /// Starts a thread with an event loop, makes the service there and runs the loop until the
    /// daemon stops. Returns when the service is made; its error is thrown here.
    public func serve(
        _ make: @escaping @Sendable (EventLoop) throws(DatabaseError) -> any LoopService
    ) throws(DatabaseError) {
        typealias Started = (
            stop: Mailbox<Void>, reload: Mailbox<Void>, progress: LoopProgress, thread: Int?
        )
        let started = Latch<Result<Started, DatabaseError>>()
        let ended = Latch<Void>()
        _ = try NamedThread(name: "loop") {
            do throws(DatabaseError) {
                let loop = try EventLoop()
                let service = try make(loop)
                let stop = loop.makeMailbox(capacity: 4) { (_: [Void]) in service.stop() }
                // One is enough: whoever looks sees the newest settings.
                let reload = loop.makeMailbox(capacity: 1) { (_: [Void]) in
                    service.reload(self.settings)
                }
                started.open(.success((stop, reload, loop.progress, ThreadState.currentID())))
                loop.run()
                service.close()
            } catch {
                started.open(.failure(error))
            }
            ended.open(())
        }
        let (stop, reload, progress, thread) = try started.wait().get()
        registerLoop(progress)
        setLoopThread(thread)
        watchOnLoop("loop") { progress.turns }
        onReload { _ = reload.post(()) }
        onStop {
            _ = stop.post(())
            ended.wait()
        }
    }
}
