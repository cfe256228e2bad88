// Stores under test, and answers taken out of their completions.

import Glibc
import KVBase
import MetadataStore

enum StoreForm: CaseIterable, Sendable {
    case memory
    case file
    /// On disk with a snapshot after nearly every transaction.
    case fileWithSnapshots
    /// The replicated form, with simulated disks and network.
    case quorumOfOne
    case quorumOfThree

    var isDurable: Bool { self != .memory }
    var members: Int? {
        switch self {
        case .quorumOfOne: 1
        case .quorumOfThree: 3
        default: nil
        }
    }
}

/// A directory that is removed at the end.
final class TemporaryDirectory {
    let path: String

    init() {
        var template = Array("/tmp/rangekeeper-metadata-XXXXXX".utf8CString)
        guard mkdtemp(&template) != nil else { fatalError("mkdtemp: errno \(errno)") }
        path = String(decoding: template.dropLast().map { UInt8(bitPattern: $0) }, as: UTF8.self)
    }

    deinit {
        for name in files { unlink("\(path)/\(name)") }
        rmdir(path)
    }

    var files: [String] {
        guard let stream = opendir(path) else { return [] }
        defer { closedir(stream) }
        var names: [String] = []
        while let entry = readdir(stream) {
            let name = withUnsafePointer(to: &entry.pointee.d_name) {
                $0.withMemoryRebound(to: CChar.self, capacity: 256) { String(cString: $0) }
            }
            if name != ".", name != ".." { names.append(name) }
        }
        return names.sorted()
    }

    func read(_ name: String) -> Bytes {
        guard let file = fopen("\(path)/\(name)", "r") else { return [] }
        defer { fclose(file) }
        fseek(file, 0, SEEK_END)
        var bytes = Bytes(repeating: 0, count: ftell(file))
        rewind(file)
        let count = fread(&bytes, 1, bytes.count, file)
        return Bytes(bytes[..<count])
    }

    func write(_ name: String, _ bytes: Bytes) {
        guard let file = fopen("\(path)/\(name)", "w") else { return }
        fwrite(bytes, 1, bytes.count, file)
        fclose(file)
    }
}

/// One form of the store with answers in place of completions.
final class StoreHarness {
    let form: StoreForm
    let directory = TemporaryDirectory()
    private(set) var store: any MetadataStore
    private var ownNow = Instant(nanoseconds: 1)
    private let world: QuorumWorld?

    var now: Instant { world?.now ?? ownNow }

    init(_ form: StoreForm) throws {
        self.form = form
        world = form.members.map { QuorumWorld(members: $0, seed: 7) }
        store = try Self.open(form, directory.path, ownNow)
        if let world { store = try Self.leader(of: world) }
    }

    private static func leader(of world: QuorumWorld) throws -> any MetadataStore {
        guard world.wait(until: { world.leader != nil }), let store = world.leader?.store else {
            throw DatabaseError(.unavailable, "nobody leads")
        }
        return store
    }

    /// Sends on what was submitted, and lets the answers come.
    func flush() {
        store.flush()
        world?.settle()
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
        store = MemoryMetadataStore(now: now)
        store = try Self.open(form, directory.path, now)
    }

    private static func open(_ form: StoreForm, _ path: String, _ now: Instant) throws
        -> any MetadataStore
    {
        switch form {
        case .memory, .quorumOfOne, .quorumOfThree: return MemoryMetadataStore(now: now)
        case .file: return try FileMetadataStore(directory: path, now: now)
        case .fileWithSnapshots:
            var options = FileMetadataStore.Options()
            options.snapshotAfterLogBytes = 100
            return try FileMetadataStore(directory: path, now: now, options: options)
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

    func pass(_ time: Nanoseconds) {
        if let world { return world.pass(time) }
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
