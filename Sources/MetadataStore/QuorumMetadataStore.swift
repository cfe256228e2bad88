// The replicated form of the metadata store: one replica of the controllers' group behind the same
// protocol. No I/O of its own: disk and network are the outlet's.

import KVBase
import MetadataCore
import ReplicationCore

/// Where a replicated store's effects go. Called on the thread that owns the store.
public protocol QuorumOutlet: AnyObject {
    /// To the disk; `QuorumMetadataStore.handle(.replication(.persisted(...)))` answers.
    func persist(_ persist: Persist)
    func send(_ message: Message, to replica: ReplicaID)
    /// The follower needs the image: send it, then `.snapshotSent`.
    func sendImage(to replica: ReplicaID)
    /// Tell a new controller which replica it is.
    func welcome(_ member: ControllerMember)
    /// Role, leader or readiness changed.
    func roleChanged()
    /// The store failed for good.
    func storeFailed(_ error: DatabaseError)
}

/// Answers what the leader may answer. On any other replica every request fails as unavailable, but
/// watches go on: they show what this copy has applied.
///
/// A request that was under way when the leadership ended fails with the code `.unknownOutcome`: it may
/// or may not have been carried out. Unlike a failed disk that is not final: the store answers again
/// once this replica leads again.
public final class QuorumMetadataStore: MetadataStore {
    public private(set) var replica: MetadataReplica
    public private(set) var failure: DatabaseError?
    private let clock: () -> Instant
    private unowned let outlet: any QuorumOutlet
    private var tokensIssued: UInt64 = 0
    /// Requests since the last flush.
    private var submitted: [(token: UInt64, command: MetadataCommand)] = []
    /// For look-up only.
    private var completions: [UInt64: (Result<MetadataAnswer, MetadataError>) -> Void] = [:]
    /// Answers and events on their way out, in order.
    private var ready: [() -> Void] = []
    private let watches = WatchList()
    private var isDelivering = false

    /// `clock` is monotonic.
    public init(
        replica: MetadataReplica, outlet: any QuorumOutlet, clock: @escaping () -> Instant
    ) {
        self.replica = replica
        self.outlet = outlet
        self.clock = clock
    }

    /// The state as far as this copy has applied it.
    public var state: RevisionedState { replica.image.state }

    // MARK: Events

    /// Feeds what happened to the replica and answers whoever can be answered.
    public func handle(_ event: MetadataReplicaEvent) {
        guard failure == nil else { return }
        step(event)
        deliver()
    }

    /// The disk failed, or the log cannot be read: everything ends.
    public func fail(_ error: DatabaseError) {
        guard failure == nil else { return }
        failure = error
        submitted.removeAll()
        for token in completions.keys.sorted() {
            guard let completion = completions.removeValue(forKey: token) else { continue }
            ready.append { completion(.failure(.failed(error))) }
        }
        endWatches(.failed(error))
        deliver()
        outlet.storeFailed(error)
    }

    private func step(_ event: MetadataReplicaEvent) {
        var effects = MetadataEffects()
        replica.step(event, now: clock(), into: &effects)
        for persist in effects.persists { outlet.persist(persist) }
        for (to, message) in effects.messages { outlet.send(message, to: to) }
        for follower in effects.snapshotsNeeded { outlet.sendImage(to: follower) }
        if effects.isStateReplaced {
            endWatches(.compacted(oldest: replica.image.state.historyStart))
        }
        for event in effects.events {
            for (id, own) in watches.parts(of: event) { deliver(own, to: id) }
        }
        for (token, result) in effects.answers {
            guard let completion = completions.removeValue(forKey: token) else { continue }
            ready.append { completion(result) }
        }
        for member in effects.welcomes { outlet.welcome(member) }
        if effects.roleChanged { outlet.roleChanged() }
        if let error = effects.failure { fail(error) }
    }

    private func deliver() {
        guard !isDelivering else { return }
        isDelivering = true
        defer { isDelivering = false }
        while !ready.isEmpty {
            let batch = ready
            ready.removeAll()
            for call in batch { call() }
        }
    }

    private func deliver(_ event: MetadataEvent, to id: WatchID) {
        ready.append { [watches] in watches.tell(event, to: id) }
    }

    private func endWatches(_ error: MetadataError) {
        for handler in watches.end() { ready.append { handler(.failure(error)) } }
    }

    // MARK: The protocol

    public func flush() {
        submit()
        deliver()
        // What the answers led to.
        while !submitted.isEmpty, !isDelivering {
            submit()
            deliver()
        }
    }

    private func submit() {
        guard !submitted.isEmpty, failure == nil else { return }
        let batch = submitted
        submitted.removeAll()
        step(.submit(batch))
    }

    /// Submits any command; see `MetadataReplicaEvent.submit`.
    public func submit(
        _ command: MetadataCommand, _ completion: @escaping Completion<MetadataAnswer>
    ) {
        guard let token = register(completion) else { return }
        submitted.append((token, command))
    }

    private func register(
        _ completion: @escaping (Result<MetadataAnswer, MetadataError>) -> Void
    ) -> UInt64? {
        if let failure {
            completion(.failure(.failed(failure)))
            return nil
        }
        tokensIssued += 1
        completions[tokensIssued] = completion
        return tokensIssued
    }

    public func commit(
        _ transaction: MetadataTransaction, _ completion: @escaping Completion<Revision>
    ) {
        submit(.transaction(transaction)) { result in
            completion(
                result.map { answer in
                    guard case .revision(let revision) = answer else {
                        preconditionFailure("a transaction answers its revision")
                    }
                    return revision
                })
        }
    }

    public func get(_ key: Bytes, _ completion: @escaping Completion<MetadataRecord?>) {
        read { [unowned self] result in
            completion(result.map { _ in replica.image.state.get(key) })
        }
    }

    public func range(prefix: Bytes, _ completion: @escaping Completion<MetadataSnapshot>) {
        read { [unowned self] result in
            completion(
                result.map { _ in
                    MetadataSnapshot(
                        revision: replica.image.state.revision,
                        records: replica.image.state.range(prefix: prefix))
                })
        }
    }

    /// Reads take their place behind what was submitted before.
    private func read(_ completion: @escaping Completion<MetadataAnswer>) {
        guard let token = register(completion) else { return }
        submit()
        step(.read(token: token))
    }

    public func watch(
        prefix: Bytes, from: Revision, _ handler: @escaping Completion<MetadataEvent>
    ) throws(MetadataError) -> WatchID {
        if let failure { throw .failed(failure) }
        let past = try replica.image.state.events(prefix: prefix, from: from)
        let id = watches.add(prefix: prefix, handler)
        for event in past { deliver(event, to: id) }
        return id
    }

    public func cancel(_ watch: WatchID) { watches.cancel(watch) }

    public func compact(below revision: Revision) { replica.compactHistory(below: revision) }

    public func grantLease(
        ttl: Nanoseconds, now: Instant, _ completion: @escaping Completion<LeaseID>
    ) {
        submit(.grantLease(ttl: ttl)) { result in
            completion(
                result.map { answer in
                    guard case .lease(let lease) = answer else {
                        preconditionFailure("a grant answers a lease")
                    }
                    return lease
                })
        }
    }

    public func keepAlive(
        _ lease: LeaseID, now: Instant, _ completion: @escaping Completion<Void>
    ) {
        guard let token = register({ completion($0.map { _ in }) }) else { return }
        submit()
        step(.keepAlive(token: token, lease))
    }

    public func revoke(_ lease: LeaseID, _ completion: @escaping Completion<Void>) {
        submit(.endLease(lease)) { completion($0.map { _ in }) }
    }

    /// Leases end with the replica's own ticks.
    public func tick(now: Instant) { handle(.replication(.tick)) }
}
