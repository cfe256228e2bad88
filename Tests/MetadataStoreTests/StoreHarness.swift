// Stores under test, and answers taken out of their completions.

import EtcdMetadata
import Glibc
import KVBase
import MetadataStore
import TestKit

enum StoreForm: CaseIterable, Sendable {
    case memory
    case file
    /// On disk with a snapshot after nearly every transaction.
    case fileWithSnapshots
    /// The replicated form, with simulated disks and network.
    case quorumOfOne
    case quorumOfThree
    /// Against a process of its own.
    case etcd

    /// All that can be tried here; see `EtcdStoreTests.etcdIsInstalled`.
    static let allCases: [StoreForm] =
        [.memory, .file, .fileWithSnapshots, .quorumOfOne, .quorumOfThree]
        + (EtcdServer.isInstalled ? [.etcd] : [])

    var isDurable: Bool { self != .memory }
    /// Its clock is another process's.
    var isOutside: Bool { self == .etcd }
    var members: Int? {
        switch self {
        case .quorumOfOne: 1
        case .quorumOfThree: 3
        default: nil
        }
    }
}

/// One form of the store with answers in place of completions.
final class StoreHarness {
    let form: StoreForm
    let directory = TemporaryDirectory()
    private(set) var store: any MetadataStore
    private var ownNow = Instant(nanoseconds: 1)
    private let world: QuorumWorld?
    private var others: [any MetadataStore] = []
    /// Below which the keys in etcd stand.
    private let prefix: String

    var now: Instant { world?.now ?? ownNow }

    init(_ form: StoreForm) throws {
        self.form = form
        world = form.members.map { QuorumWorld(members: $0, seed: 7) }
        prefix = form == .etcd ? EtcdServer.shared.newPrefix() : ""
        store = try Self.open(form, directory.path, prefix, ownNow)
        if let world { store = try Self.leader(of: world) }
    }

    private static func leader(of world: QuorumWorld) throws -> any MetadataStore {
        guard world.wait(until: { world.leader != nil }), let store = world.leader?.store else {
            throw DatabaseError(.unavailable, "nobody leads")
        }
        return store
    }

    deinit { for store in others + [store] { (store as? WaitingEtcdStore)?.close() } }

    /// Sends on what was submitted, and lets the answers come.
    func flush() {
        store.flush()
        world?.settle()
    }

    /// Sends on what was submitted to one of several stores, without waiting for others' processes.
    func sendOn(_ store: any MetadataStore) {
        guard let store = store as? WaitingEtcdStore else { return flush() }
        store.inner.flush()
        usleep(100)
    }

    /// Another store on the same records, as another process would open it; the same one where a form has
    /// only one.
    func another() throws -> any MetadataStore {
        guard form == .etcd else { return store }
        let other = try Self.open(form, directory.path, prefix, ownNow)
        others.append(other)
        return other
    }

    /// Closes and opens again; a memory store only goes on.
    func reopen() throws {
        guard form != .memory else { return }
        if let world {
            for controller in world.controllers { controller.crash() }
            for controller in world.controllers { controller.start() }
            store = try Self.leader(of: world)
            return
        }
        (store as? WaitingEtcdStore)?.close()
        store = MemoryMetadataStore(now: now)
        store = try Self.open(form, directory.path, prefix, now)
    }

    private static func open(
        _ form: StoreForm, _ path: String, _ prefix: String, _ now: Instant
    ) throws -> any MetadataStore {
        switch form {
        case .memory, .quorumOfOne, .quorumOfThree: return MemoryMetadataStore(now: now)
        case .file: return try FileMetadataStore(directory: path, now: now)
        case .fileWithSnapshots:
            var options = FileMetadataStore.Options()
            options.snapshotAfterLogBytes = 100
            return try FileMetadataStore(directory: path, now: now, options: options)
        case .etcd:
            return try WaitingEtcdStore(
                EtcdSettings(endpoints: [EtcdServer.shared.endpoint], prefix: prefix))
        }
    }

    @discardableResult
    func commit(_ transaction: MetadataTransaction) -> Result<Revision, MetadataError> {
        answer { store.commit(transaction, $0) }
    }

    @discardableResult
    func put(_ key: String, _ value: String, lease: LeaseID = .none)
        -> Result<Revision, MetadataError>
    {
        commit(MetadataTransaction(changes: [.put(key, value, lease: lease)]))
    }

    @discardableResult
    func delete(_ key: String) -> Result<Revision, MetadataError> {
        commit(MetadataTransaction(changes: [.delete(key: Bytes(key.utf8))]))
    }

    func get(_ key: String) -> MetadataRecord? {
        try? answer { store.get(Bytes(key.utf8), $0) }.get()
    }

    func value(_ key: String) -> String? {
        get(key).map { String(decoding: $0.value, as: UTF8.self) }
    }

    func range(_ prefix: String) -> MetadataSnapshot? {
        try? answer { store.range(prefix: Bytes(prefix.utf8), $0) }.get()
    }

    func grant(_ ttl: Nanoseconds) -> LeaseID {
        (try? answer { store.grantLease(ttl: ttl, now: now, $0) }.get()) ?? .none
    }

    func keepAlive(_ lease: LeaseID) -> Result<Void, MetadataError> {
        answer { store.keepAlive(lease, now: now, $0) }
    }

    /// Lets at least `time` pass, and more where the clock is not ours, until `condition` holds.
    func pass(_ time: Nanoseconds, until condition: () -> Bool) {
        pass(time)
        guard form.isOutside else { return }
        let end = monotonicNow() + .seconds(20)
        while !condition(), monotonicNow() < end { pass(.milliseconds(50)) }
    }

    func pass(_ time: Nanoseconds) {
        if let world { return world.pass(time) }
        if form.isOutside {
            let end = monotonicNow() + time
            while monotonicNow() < end {
                usleep(10_000)
                store.tick(now: monotonicNow())
            }
            return
        }
        ownNow = ownNow + time
        store.tick(now: now)
        store.flush()
    }

    func answer<Value>(
        _ submit: (@escaping (Result<Value, MetadataError>) -> Void) -> Void
    ) -> Result<Value, MetadataError> {
        var result: Result<Value, MetadataError>?
        submit { result = $0 }
        flush()
        return result ?? .failure(.failed(DatabaseError(.unavailable, "no answer came")))
    }
}

extension MetadataChange {
    static func put(_ key: String, _ value: String, lease: LeaseID = .none) -> MetadataChange {
        .put(key: Bytes(key.utf8), value: Bytes(value.utf8), lease: lease)
    }
}

extension MetadataTransaction.Comparison {
    init(_ key: String, at revision: Revision) {
        self.init(key: Bytes(key.utf8), modRevision: revision)
    }
}

func monotonicNow() -> Instant {
    var time = timespec()
    clock_gettime(CLOCK_MONOTONIC, &time)
    return Instant(nanoseconds: UInt64(time.tv_sec) * 1_000_000_000 + UInt64(time.tv_nsec))
}
