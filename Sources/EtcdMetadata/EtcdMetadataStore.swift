// The metadata store in etcd, behind the same protocol as the other forms.
//
// Owned by one thread, which never waits: requests are carried out by a worker's thread, one at a time,
// in the order of their submission; the watch has a thread of its own. See docs/internals/metadata.md.

import KVBase
import MetadataCore
import MetadataStore

/// Every mutation is one etcd transaction that compares the revision of the head (`EtcdHead`) and writes
/// it anew, so mutations of all stores on a prefix follow each other one by one, each under the next
/// revision of the store's own, and every store's copy applies the same ones.
///
/// A failure `.unavailable` was surely not carried out; `.unknownOutcome` may have been. Neither is
/// final: the store answers again when etcd does.
public final class EtcdMetadataStore: MetadataStore {
    /// Which mutations this store may make.
    public enum Fence: Hashable, Sendable {
        /// All: nobody is elected.
        case open
        /// None.
        case closed
        /// Those that etcd takes while the election key has this create revision.
        case held(UInt64)
    }

    struct Watch {
        var id: WatchID
        var prefix: Bytes
        var handler: Completion<MetadataEvent>
    }

    /// After etcd did not answer.
    static let retryPause = Nanoseconds.milliseconds(250)
    /// How long the watch may be behind what was read before another endpoint is followed.
    static let lagMax = Nanoseconds.seconds(1)

    let layout: EtcdLayout
    let gateway: EtcdGateway
    private let worker: EtcdWorker
    private let watcher: EtcdWatcher
    private let answers: EtcdInbox<Result<EtcdAnswer, EtcdFailure>>
    private let news: EtcdInbox<(UInt64, EtcdWatchNews)>
    private let clock: () -> Instant

    /// Something below changed: `isLoaded`, `outage`, `controllers`, `election`, `fence`.
    public var onChange: () -> Void = {}
    public var fence: Fence
    /// Set once the store has failed for good: the metadata in etcd cannot be read, or went back.
    public private(set) var failure: DatabaseError?
    /// The failure is that etcd holds another history than the one that was seen: an older one, or none.
    public private(set) var isHistoryLost = false
    /// Why etcd does not answer; nil while it does.
    public private(set) var outage: String?
    public private(set) var isLoaded = false
    var mirror: EtcdMirror
    private var cluster: UInt64 = 0

    var waiting: [EtcdWork.Request] = []
    var work: EtcdWork?
    /// The one request on its way.
    var calling: EtcdCall?
    /// The newest mutation that was known when it was sent.
    private(set) var sequenceAtCall: UInt64 = 0
    /// The mutation that the copy must reach before anything goes on.
    var awaited: UInt64 = 0
    /// The newest mutation that somebody else has seen.
    private var polled: UInt64 = 0
    private var lagsSince: Instant?
    private var needsLoad = false
    /// Somebody saw an older head than this copy has.
    var isDoubted = false
    /// Not before then is etcd asked anew on nobody's behalf.
    private(set) var retryAt = Instant.origin
    private var following: UInt64 = 0
    /// Leases whose end is on its way.
    var ending: Set<LeaseID> = []
    private var isChanged = false
    private var isClosed = false

    /// Answers and events on their way out, in order.
    private var ready: [() -> Void] = []
    private var watches: [Watch] = []
    private var watchesIssued: UInt64 = 0
    private var isDelivering = false
    public internal(set) var statistics = EtcdStatistics()

    /// `wake` is called on any thread when there is something for `flush` to take. `clock` is monotonic.
    public init(
        settings: EtcdSettings, fence: Fence, clock: @escaping () -> Instant,
        wake: @escaping @Sendable () -> Void
    ) throws(DatabaseError) {
        layout = EtcdLayout(prefix: settings.prefix)
        mirror = EtcdMirror(layout: layout, writer: UInt64.random(in: 1...UInt64.max))
        gateway = try EtcdGateway(settings)
        worker = try EtcdWorker(name: "etcd-requests")
        answers = EtcdInbox(wake: wake)
        news = EtcdInbox(wake: wake)
        // Its own, so that a member that is slow for one kind of request stays in use for the other.
        watcher = try EtcdWatcher(
            gateway: try EtcdGateway(settings), layout: layout, inbox: news)
        self.fence = fence
        self.clock = clock
    }

    /// Ends the threads. What waits is not answered.
    public func close() {
        guard !isClosed else { return }
        isClosed = true
        gateway.close()
        watcher.close()
        worker.close()
    }

    // MARK: The copy

    /// As far as this store has seen it.
    public var state: RevisionedState { mirror.state }
    /// Controllers with a session, by name.
    public var controllers: [EtcdPlace] { mirror.controllers }
    /// Who may act, and the create revision of the election key.
    public var election: (place: EtcdPlace, createRevision: UInt64)? {
        mirror.election.map { ($0.place, $0.createRevision) }
    }

    /// Tells of a mutation that was seen to be there: the watch has to come to it.
    public func expect(sequence: UInt64) { polled = max(polled, sequence) }

    /// The newest mutation of the copy.
    public var sequence: UInt64 { mirror.head.sequence }

    /// Somebody saw that etcd holds less than this copy: it is looked at.
    public func doubt() { isDoubted = true }

    /// The metadata in etcd is not the one that it should be: nothing is answered any more but this.
    public func abandon(_ reason: String) {
        isHistoryLost = true
        fence = .closed
        fail(DatabaseError(.storageFailed, reason))
    }

    // MARK: The protocol

    public func commit(
        _ transaction: MetadataTransaction, _ completion: @escaping Completion<Revision>
    ) { submit(.commit(transaction, completion)) }

    public func get(_ key: Bytes, _ completion: @escaping Completion<MetadataRecord?>) {
        submit(
            .read { [unowned self] result in
                completion(result.map { _ in mirror.state.get(key) })
            })
    }

    public func range(prefix: Bytes, _ completion: @escaping Completion<MetadataSnapshot>) {
        submit(
            .read { [unowned self] result in
                completion(
                    result.map { _ in
                        MetadataSnapshot(
                            revision: mirror.state.revision,
                            records: mirror.state.range(prefix: prefix))
                    })
            })
    }

    public func watch(
        prefix: Bytes, from: Revision, _ handler: @escaping Completion<MetadataEvent>
    ) throws(MetadataError) -> WatchID {
        if let failure { throw .failed(failure) }
        let past = try mirror.state.events(prefix: prefix, from: from)
        watchesIssued += 1
        let id = WatchID(watchesIssued)
        watches.append(Watch(id: id, prefix: prefix, handler: handler))
        for event in past { deliver(event, to: id) }
        return id
    }

    /// Everything submitted has been answered.
    public var isIdle: Bool { work == nil && waiting.isEmpty && calling == nil }

    public func cancel(_ watch: WatchID) { watches.removeAll { $0.id == watch } }

    /// The history is this copy's own; etcd's is not touched.
    public func compact(below revision: Revision) { mirror.compact(below: revision) }

    /// `now` plays no part: the lease is etcd's, which keeps it by its own clock.
    public func grantLease(
        ttl: Nanoseconds, now: Instant, _ completion: @escaping Completion<LeaseID>
    ) { submit(.grant(ttl, completion)) }

    public func keepAlive(
        _ lease: LeaseID, now: Instant, _ completion: @escaping Completion<Void>
    ) { submit(.keepAlive(lease, completion)) }

    public func revoke(_ lease: LeaseID, _ completion: @escaping Completion<Void>) {
        submit(.revoke(lease, completion))
    }

    /// Looks after the connection to etcd. Call a few times per second.
    public func tick(now: Instant) {
        if isLoaded, mirror.head.sequence < max(awaited, polled) {
            if let since = lagsSince {
                if now - since > Self.lagMax {
                    lagsSince = now
                    watcher.reconnect()
                }
            } else {
                lagsSince = now
            }
        } else {
            lagsSince = nil
        }
        flush()
    }

    public func flush() {
        guard !isDelivering, !isClosed else { return }
        isDelivering = true
        defer { isDelivering = false }
        repeat {
            for answer in answers.take() { take(answer) }
            for (generation, item) in news.take() where generation == following { take(item) }
            advance()
            let batch = ready
            ready.removeAll()
            for call in batch { call() }
            if isChanged {
                isChanged = false
                onChange()
            }
        } while !ready.isEmpty || isChanged || (calling == nil && canAdvance)
    }

    private func submit(_ request: EtcdWork.Request) {
        if let failure { return request.fail(.failed(failure)) }
        waiting.append(request)
    }

    // MARK: One request after the other

    private var canAdvance: Bool {
        failure == nil && isLoaded && !needsLoad && mirror.head.sequence >= awaited
            && (work != nil || !waiting.isEmpty)
    }

    private func advance() {
        guard failure == nil, calling == nil else { return }
        guard isLoaded, !needsLoad else {
            guard clock() >= retryAt else { return }
            return call(.load(known: isLoaded ? mirror.head.sequence : nil))
        }
        while calling == nil, failure == nil, mirror.head.sequence >= awaited {
            if work == nil {
                endLeases()
                guard !waiting.isEmpty else { return tidy(now: clock()) }
                work = EtcdWork(waiting.removeFirst())
            }
            proceed()
        }
    }

    func call(_ call: EtcdCall) {
        precondition(calling == nil)
        calling = call
        sequenceAtCall = mirror.head.sequence
        statistics.requests += 1
        worker.run { [gateway, layout, answers] in
            do throws(EtcdFailure) {
                answers.post(.success(try call.carryOut(gateway, layout)))
            } catch {
                answers.post(.failure(error))
            }
        }
    }

    private func take(_ result: Result<EtcdAnswer, EtcdFailure>) {
        guard let call = calling else { return }
        calling = nil
        switch result {
        case .success(let answer):
            if outage != nil {
                outage = nil
                isChanged = true
            }
            if case .image(let image) = answer { install(image) } else { answered(call, answer) }
        case .failure(.refused(let code, let message)):
            // A compaction overtook the reading: it begins anew.
            if case .load = call, code == EtcdFailure.outOfRange { return }
            if case .load = call { return unreachable(message) }
            refused(code, message)
        case .failure(.unavailable(let message)): unreachable(message)
        }
    }

    /// Etcd does not answer: whoever waits is told.
    private func unreachable(_ message: String) {
        statistics.failures += 1
        retryAt = clock() + Self.retryPause
        if outage == nil { isChanged = true }
        outage = message
        if let work {
            self.work = nil
            let error =
                work.sent == nil
                ? DatabaseError(.unavailable, "etcd does not answer: \(message)")
                : DatabaseError(
                    .unknownOutcome, "etcd did not answer whether it was stored: \(message)")
            finish(work.request, .failed(error))
        }
        let error = DatabaseError(.unavailable, "etcd does not answer: \(message)")
        for request in waiting { finish(request, .failed(error)) }
        waiting.removeAll()
        // Nothing is to be caught up with for nobody.
        awaited = 0
    }

    private func install(_ image: EtcdImage) {
        let isFirst = !isLoaded
        guard isFirst || image.head.sequence >= sequenceAtCall else {
            return wentBack(image.head, isThere: image.headModRevision != 0)
        }
        guard isFirst || image.cluster == cluster else {
            return abandon(
                "etcd is another cluster than before, or the endpoints belong to different ones")
        }
        // The watch was faster: it is read anew.
        guard isFirst || image.head.sequence >= mirror.head.sequence else { return }
        cluster = image.cluster
        needsLoad = false
        isLoaded = true
        isChanged = true
        statistics.images += 1
        let isReplaced = mirror.take(image)
        if isReplaced, !isFirst {
            endWatches(.compacted(oldest: mirror.state.historyStart))
            if let sent = work?.sent, image.head.sequence > sent, let lost = work {
                // Whose the mutation of that number was cannot be seen any more.
                work = nil
                finish(
                    lost.request,
                    .failed(
                        DatabaseError(
                            .unknownOutcome,
                            "etcd was compacted before it could be seen whether it was stored")))
            }
        }
        following = watcher.start(
            behind: EtcdAnchor(
                revision: image.revision,
                head: image.headModRevision == 0 ? nil : image.head.encode(),
                headModRevision: image.headModRevision))
    }

    /// `isThere`: etcd has a head at all.
    func wentBack(_ head: EtcdHead, isThere: Bool) {
        abandon(isThere ? mirror.wentBack(to: head) : mirror.deleted)
    }

    /// Nothing is answered from now on but this.
    func fail(_ error: DatabaseError) {
        guard failure == nil else { return }
        failure = error
        if let work { finish(work.request, .failed(error)) }
        work = nil
        for request in waiting { finish(request, .failed(error)) }
        waiting.removeAll()
        endWatches(.failed(error))
        isChanged = true
    }

    // MARK: The watch

    private func take(_ item: EtcdWatchNews) {
        guard failure == nil else { return }
        switch item {
        case .following: break
        case .interrupted: statistics.interruptions += 1
        case .compacted: needsLoad = true
        case .replaced(let record):
            // Of a prefix that was empty, nothing can be lost.
            guard mirror.head.sequence != 0 else {
                needsLoad = true
                return
            }
            let head = record.flatMap { try? EtcdHead($0.value) }
            wentBack(head ?? EtcdHead(), isThere: head != nil)
        case .events(let events):
            guard !needsLoad else { return }
            let (controllers, election) = (mirror.controllers, mirror.election)
            do throws(DatabaseError) {
                for event in try mirror.take(events) { publish(event) }
            } catch {
                guard error.code == .unavailable else { return fail(error) }
                needsLoad = true
            }
            if let loss = mirror.loss { return abandon(loss) }
            if controllers != mirror.controllers || election != mirror.election { isChanged = true }
        }
    }

    func publish(_ event: MetadataEvent) {
        for watch in watches {
            if let own = event.cut(to: watch.prefix) { deliver(own, to: watch.id) }
        }
    }

    private func deliver(_ event: MetadataEvent, to id: WatchID) {
        ready.append { [unowned self] in
            watches.first { $0.id == id }?.handler(.success(event))
        }
    }

    private func endWatches(_ error: MetadataError) {
        let ended = watches
        watches.removeAll()
        for watch in ended { ready.append { watch.handler(.failure(error)) } }
    }

    // MARK: Answers

    /// Lets an etcd lease go that stands for nothing any more. If that fails it ends by itself.
    func forget(_ lease: UInt64) {
        worker.run { [gateway] in try? gateway.revoke(lease) }
    }

    func answer(_ call: @escaping () -> Void) { ready.append(call) }

    func finish(_ request: EtcdWork.Request, _ error: MetadataError) {
        if case .revoke(let lease, nil) = request { ending.remove(lease) }
        ready.append { request.fail(error) }
    }
}

/// Counters since the store was opened.
public struct EtcdStatistics: Hashable, Sendable {
    public var requests: UInt64 = 0
    /// Requests that no endpoint answered in time.
    public var failures: UInt64 = 0
    /// Whole images read: one at the start, and one whenever etcd was compacted before the watch came on.
    public var images: UInt64 = 0
    /// Watches that broke and were taken up again.
    public var interruptions: UInt64 = 0
    /// Transactions that another store's came before.
    public var conflicts: UInt64 = 0
}
