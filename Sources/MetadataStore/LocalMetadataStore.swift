// What the forms that live in one process share: order of answers, watches, leases. Where the
// mutations go before they count is the journal's matter.

import KVBase
import MetadataCore

/// Where mutations are kept. Called by one store, on its thread.
protocol MetadataJournal: AnyObject {
    /// Takes mutations in order; they count as kept after the next `sync`.
    func append(_ mutation: MetadataMutation)
    /// Makes everything appended durable. An error is final: the store fails for good.
    func sync(_ state: RevisionedState) throws(DatabaseError)
}

/// A metadata store of one process over a journal.
///
/// A mutation is applied to memory when it is submitted, and everything that depends on it (its
/// answer, events, reads) leaves only after the journal has it durably. After a failed sync memory
/// is ahead of the disk, so nothing but the failure is ever answered again.
public class LocalMetadataStore: MetadataStore {
    private var state: RevisionedState
    private let journal: any MetadataJournal
    /// Answers and events that wait for the next sync, in order; told why when it fails.
    private var waiting: [(MetadataError?) -> Void] = []
    private let watches = WatchList()
    private var failure: MetadataError?
    private var isDirty = false
    private var isDelivering = false
    /// The time last passed in; leases count from there.
    private var now: Instant

    init(state: RevisionedState, journal: any MetadataJournal, now: Instant) {
        self.state = state
        self.journal = journal
        self.now = now
    }

    /// The newest revision, submitted or durable.
    public var revision: Revision { state.revision }
    /// Set once the store has failed for good.
    public var failed: MetadataError? { failure }
    /// Memory that keys and values take, in bytes; an estimate.
    public var memoryBytes: Int { state.records.memoryBytes }
    public var recordCount: Int { state.records.count }

    public func commit(
        _ transaction: MetadataTransaction, _ completion: @escaping Completion<Revision>
    ) {
        if let failure { return completion(.failure(failure)) }
        if let objection = state.objection(to: transaction) {
            return answer(completion) { .failure(objection) }
        }
        if !transaction.changes.isEmpty { mutate(.changes(transaction.changes)) }
        let revision = state.revision
        answer(completion) { .success(revision) }
    }

    public func get(_ key: Bytes, _ completion: @escaping Completion<MetadataRecord?>) {
        if let failure { return completion(.failure(failure)) }
        let record = state.get(key)
        answer(completion) { .success(record) }
    }

    public func range(prefix: Bytes, _ completion: @escaping Completion<MetadataSnapshot>) {
        if let failure { return completion(.failure(failure)) }
        let snapshot = MetadataSnapshot(
            revision: state.revision, records: state.range(prefix: prefix))
        answer(completion) { .success(snapshot) }
    }

    public func watch(
        prefix: Bytes, from: Revision, _ handler: @escaping Completion<MetadataEvent>
    ) throws(MetadataError) -> WatchID {
        if let failure { throw failure }
        let past = try state.events(prefix: prefix, from: from)
        let id = watches.add(prefix: prefix, handler)
        for event in past { deliver(event, to: id) }
        return id
    }

    public func cancel(_ watch: WatchID) { watches.cancel(watch) }

    public func compact(below revision: Revision) { state.compact(below: revision) }

    public func grantLease(
        ttl: Nanoseconds, now: Instant, _ completion: @escaping Completion<LeaseID>
    ) {
        if let failure { return completion(.failure(failure)) }
        self.now = max(self.now, now)
        let id = LeaseID(state.leaseHighest.rawValue + 1)
        mutate(.leaseGranted(id, ttl: ttl))
        answer(completion) { .success(id) }
    }

    public func keepAlive(
        _ lease: LeaseID, now: Instant, _ completion: @escaping Completion<Void>
    ) {
        if let failure { return completion(.failure(failure)) }
        self.now = max(self.now, now)
        let known = state.keepAlive(lease, now: self.now)
        answer(completion) { known ? .success(()) : .failure(.leaseNotFound(lease)) }
    }

    public func revoke(_ lease: LeaseID, _ completion: @escaping Completion<Void>) {
        if let failure { return completion(.failure(failure)) }
        guard state.leases.contains(where: { $0.id == lease }) else {
            return answer(completion) { .failure(.leaseNotFound(lease)) }
        }
        mutate(.leaseEnded(lease))
        answer(completion) { .success(()) }
    }

    public func tick(now: Instant) {
        self.now = max(self.now, now)
        guard failure == nil else { return }
        for lease in state.expiredLeases(now: self.now) { mutate(.leaseEnded(lease)) }
    }

    public func flush() {
        // A completion that flushes again is served by the loop that called it.
        guard !isDelivering else { return }
        isDelivering = true
        defer { isDelivering = false }
        while isDirty || !waiting.isEmpty {
            if isDirty, failure == nil {
                isDirty = false
                do { try journal.sync(state) } catch { failure = .failed(error) }
            }
            let batch = waiting
            waiting.removeAll()
            let outcome = failure
            for call in batch { call(outcome) }
            if let outcome {
                isDirty = false
                for handler in watches.end() { handler(.failure(outcome)) }
            }
        }
    }

    // MARK: Helpers

    private func mutate(_ mutation: MetadataMutation) {
        journal.append(mutation)
        isDirty = true
        guard let event = state.apply(mutation, now: now) else { return }
        for (id, own) in watches.parts(of: event) { deliver(own, to: id) }
    }

    private func answer<Value>(
        _ completion: @escaping Completion<Value>,
        _ result: @escaping () -> Result<Value, MetadataError>
    ) {
        waiting.append { failure in
            if let failure { completion(.failure(failure)) } else { completion(result()) }
        }
    }

    private func deliver(_ event: MetadataEvent, to id: WatchID) {
        waiting.append { [watches] failure in
            if failure == nil { watches.tell(event, to: id) }
        }
    }
}

/// Keeps nothing: for tests and for clusters that may forget.
private final class NoJournal: MetadataJournal {
    func append(_ mutation: MetadataMutation) {}
    func sync(_ state: RevisionedState) throws(DatabaseError) {}
}

/// The memory form: what it holds ends with the process.
public final class MemoryMetadataStore: LocalMetadataStore {
    public init(now: Instant) {
        super.init(state: RevisionedState(), journal: NoJournal(), now: now)
    }
}
