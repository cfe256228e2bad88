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
    /// Etcd's history is not the one that was followed; the head that is there now, if any. The watcher has
    /// ended.
    case replaced(EtcdRecord?)
}

/// The place up to which a history is known.
struct EtcdAnchor: Sendable {
    /// Everything up to this etcd revision was seen.
    var revision: UInt64
    /// The value of the head at that revision, and the revision of its last change.
    var head: Bytes?
    var headModRevision: UInt64 = 0

    mutating func advance(over events: [EtcdEvent], head key: Bytes) {
        guard let last = events.last else { return }
        revision = last.record.modRevision
        guard let written = events.last(where: { $0.record.key == key }) else { return }
        head = written.isDeletion ? nil : written.record.value
        headModRevision = written.isDeletion ? 0 : written.record.modRevision
    }

    func matches(_ record: EtcdRecord?) -> Bool {
        record?.value == head && record?.modRevision ?? 0 == headModRevision
    }
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
    private let layout: EtcdLayout
    private let inbox: EtcdInbox<(UInt64, EtcdWatchNews)>
    private let state = Mutex(State())
    private let worker: EtcdWorker

    /// News come with the number that `start` returned.
    init(
        gateway: EtcdGateway, layout: EtcdLayout, inbox: EtcdInbox<(UInt64, EtcdWatchNews)>
    ) throws(DatabaseError) {
        self.gateway = gateway
        self.layout = layout
        self.inbox = inbox
        worker = try EtcdWorker(name: "etcd-watch")
    }

    /// Follows what comes behind `anchor`, in place of what was followed before.
    func start(behind anchor: EtcdAnchor) -> UInt64 {
        let generation = state.withLock { state in
            state.generation += 1
            state.abort.abort()
            return state.generation
        }
        worker.run { [unowned self] in follow(generation, behind: anchor) }
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

    private func follow(_ generation: UInt64, behind start: EtcdAnchor) {
        let place = Mutex(start)
        while true {
            let abort = HTTPAbort()
            let isOver = state.withLock { state in
                state.abort = abort
                return state.isClosed || state.generation != generation
            }
            if isOver { return }
            var last: EtcdWatchNews?
            let failure = gateway.stream(
                EtcdPath.watch,
                EtcdRequest.watch(
                    prefix: layout.prefix, from: place.withLock { $0.revision + 1 }),
                abort: abort
            ) { [unowned self] json in
                while inbox.count > Self.backlogMax, !abort.isAborted { usleep(1_000) }
                guard let message = try? EtcdWatchMessage(json) else { return false }
                switch message {
                case .created:
                    // Only now: what this connection brings comes from a server that lived when it was
                    // looked at.
                    switch examine(place.withLock { $0 }) {
                    case .following?: inbox.post((generation, .following))
                    case nil: return false
                    case let news?:
                        last = news
                        return false
                    }
                case .events(_, let events):
                    inbox.post((generation, .events(events)))
                    place.withLock { $0.advance(over: events, head: layout.head) }
                case .compacted:
                    last = .compacted
                    return false
                case .ended: return false
                }
                return true
            }
            if let last {
                inbox.post((generation, last))
                return
            }
            inbox.post((generation, .interrupted(failure.message)))
            usleep(Self.pauseMicroseconds)
        }
    }

    /// Whether etcd holds the history that was followed: a server that was restored from an older backup, or
    /// that stands in another's place, knows the head of that time as something else. Nil: no answer.
    private func examine(_ anchor: EtcdAnchor) -> EtcdWatchNews? {
        let request = EtcdRequest.get(key: layout.head, at: anchor.revision)
        do throws(EtcdFailure) {
            let json = try gateway.call(EtcdPath.range, request)
            guard let answer = try? EtcdRangeAnswer(json) else { return nil }
            if anchor.matches(answer.records.first) { return .following }
        } catch {
            guard case .refused(EtcdFailure.outOfRange, let message) = error else { return nil }
            // Else the revision lies ahead of etcd's newest.
            if message.contains("compacted") { return .compacted }
        }
        let look = EtcdTransaction(success: [.get(key: layout.head)])
        guard let answer = try? gateway.transact(look) else { return nil }
        return .replaced(answer.records.first?.first)
    }
}
