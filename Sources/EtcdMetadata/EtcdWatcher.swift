// Follows all keys of a prefix on a thread of its own, over broken connections and failing members.

import Glibc
import HTTPClient
import KVBase
import Synchronization

/// What a watcher has to say.
enum EtcdWatchNews: Sendable {
    case following
    /// All events of one or more whole revisions, in order.
    case events([EtcdEvent])
    /// Revisions that were not seen yet are forgotten. The watcher waits until it is told where to go on.
    case compacted
    case interrupted(String)
}

final class EtcdWatcher: Sendable {
    private static let pauseMicroseconds: useconds_t = 100_000
    /// Lines that the owner has not taken yet before the watcher waits for it.
    private static let backlogMax = 4_096

    private struct State {
        var isClosed = false
        var abort = HTTPAbort()
        /// Rises with every start, so that what an earlier one says is not taken for a later one's.
        var generation: UInt64 = 0
    }

    private let gateway: EtcdGateway
    private let prefix: Bytes
    private let inbox: EtcdInbox<(UInt64, EtcdWatchNews)>
    private let state = Mutex(State())
    private let worker: EtcdWorker

    /// News come with the number that `start` returned.
    init(
        gateway: EtcdGateway, prefix: Bytes, inbox: EtcdInbox<(UInt64, EtcdWatchNews)>
    ) throws(DatabaseError) {
        self.gateway = gateway
        self.prefix = prefix
        self.inbox = inbox
        worker = try EtcdWorker(name: "etcd-watch")
    }

    /// Follows from `revision` on, in place of what was followed before.
    func start(from revision: UInt64) -> UInt64 {
        let generation = state.withLock { state in
            state.generation += 1
            state.abort.abort()
            return state.generation
        }
        worker.run { [unowned self] in follow(generation, from: revision) }
        return generation
    }

    /// Goes on at another endpoint from where it stands.
    func reconnect() {
        gateway.moveOn()
        state.withLock { $0.abort.abort() }
    }

    func close() {
        state.withLock { state in
            state.isClosed = true
            state.abort.abort()
        }
        worker.close()
    }

    // MARK: The thread

    private func follow(_ generation: UInt64, from revision: UInt64) {
        var next = revision
        while true {
            let abort = HTTPAbort()
            let isOver = state.withLock { state in
                state.abort = abort
                return state.isClosed || state.generation != generation
            }
            if isOver { return }
            var isCompacted = false
            let position = Mutex(next)
            let failure = gateway.stream(
                EtcdPath.watch, EtcdRequest.watch(prefix: prefix, from: next), abort: abort
            ) { [unowned self] json in
                while inbox.count > Self.backlogMax, !abort.isAborted { usleep(1_000) }
                guard let message = try? EtcdWatchMessage(json) else { return false }
                switch message {
                case .created: inbox.post((generation, .following))
                case .events(_, let events):
                    inbox.post((generation, .events(events)))
                    if let last = events.last {
                        position.withLock { $0 = last.record.modRevision + 1 }
                    }
                case .compacted:
                    isCompacted = true
                    return false
                case .ended: return false
                }
                return true
            }
            next = position.withLock { $0 }
            if isCompacted {
                inbox.post((generation, .compacted))
                return
            }
            inbox.post((generation, .interrupted(failure.message)))
            usleep(Self.pauseMicroseconds)
        }
    }
}
