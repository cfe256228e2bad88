// What only the form in etcd can get wrong: lost answers, failing endpoints, other stores, compaction.

import EtcdMetadata
import Glibc
import KVBase
import MetadataCore
import MetadataStore
import Testing

@Suite struct EtcdStoreTests {
    static let comment: Comment = "etcd is not installed (make deps): its form is not tried"

    @Test(.enabled(if: EtcdServer.isInstalled, EtcdStoreTests.comment))
    func etcdIsInstalled() { #expect(StoreForm.allCases.contains(.etcd)) }

    private func settings(
        _ endpoints: [String], prefix: String = EtcdServer.shared.newPrefix()
    ) -> EtcdSettings {
        EtcdSettings(endpoints: endpoints, prefix: prefix)
    }

    private func put(_ key: String, _ value: String, at revision: Revision? = nil)
        -> MetadataTransaction
    {
        MetadataTransaction(
            comparisons: revision.map { [.init(key, at: $0)] } ?? [],
            changes: [.put(key, value)])
    }

    /// An answer that is lost is not a transaction that is lost, and not one to be made twice.
    @Test(.enabled(if: EtcdServer.isInstalled, comment))
    func lostAnswersAreSettled() throws {
        let proxy = FaultyProxy(to: EtcdServer.shared.port)
        let store = try WaitingEtcdStore(settings([proxy.endpoint]))
        defer { store.close() }
        var answers: [Result<Revision, MetadataError>] = []
        for number in 0..<20 {
            if number % 4 == 1 { proxy.loseAnswers(number % 3 + 1, to: "/v3/kv/txn") }
            store.commit(put("k\(number)", "")) { answers.append($0) }
            store.flush()
        }
        #expect(answers == (1...20).map { .success(Revision(UInt64($0))) })
        #expect(proxy.answersLost >= 5)
        #expect(store.inner.state.revision == Revision(20))
    }

    /// While another store writes too, so that the lost one's place is soon some way back.
    @Test(.enabled(if: EtcdServer.isInstalled, comment))
    func lostAnswersAmongOtherWriters() throws {
        let prefix = EtcdServer.shared.newPrefix()
        let proxy = FaultyProxy(to: EtcdServer.shared.port)
        let store = try WaitingEtcdStore(settings([proxy.endpoint], prefix: prefix))
        let other = try WaitingEtcdStore(
            settings([EtcdServer.shared.endpoint], prefix: prefix))
        defer {
            store.close()
            other.close()
        }
        var made = 0
        for number in 0..<15 {
            proxy.loseAnswers(2, to: "/v3/kv/txn")
            var answer: Result<Revision, MetadataError>?
            store.commit(put("k\(number)", "", at: Revision.none)) { answer = $0 }
            store.inner.flush()
            for extra in 0..<3 {
                other.commit(put("other", "\(number) \(extra)")) { result in
                    if case .success = result { made += 1 }
                }
                other.flush()
            }
            store.flush()
            guard case .success = answer else {
                Issue.record("transaction \(number): \(String(describing: answer))")
                continue
            }
            made += 1
        }
        #expect(made == 60)
        var revision: Revision?
        other.range(prefix: []) { revision = try? $0.get().revision }
        other.flush()
        #expect(revision == Revision(60))
    }

    @Test(.enabled(if: EtcdServer.isInstalled, comment))
    func anEndpointThatFailsIsLeft() throws {
        let dead = "http://127.0.0.1:\(freePort())"
        let proxy = FaultyProxy(to: EtcdServer.shared.port)
        let store = try WaitingEtcdStore(
            settings([dead, proxy.endpoint, EtcdServer.shared.endpoint]))
        defer { store.close() }
        var answers: [Result<Revision, MetadataError>] = []
        store.commit(put("a", "1")) { answers.append($0) }
        store.flush()
        // Silent, not closed.
        proxy.stall(true)
        store.commit(put("a", "2")) { answers.append($0) }
        store.flush()
        #expect(answers == [.success(Revision(1)), .success(Revision(2))])
        #expect(store.inner.outage == nil)
        proxy.stall(false)
    }

    @Test(.enabled(if: EtcdServer.isInstalled, comment))
    func whoWaitsIsToldWhenNoEndpointAnswers() throws {
        let proxy = FaultyProxy(to: EtcdServer.shared.port)
        var settings = settings([proxy.endpoint])
        settings.attemptTimeout = .milliseconds(300)
        settings.patience = .milliseconds(900)
        let store = try WaitingEtcdStore(settings)
        defer { store.close() }
        proxy.stall(true)
        var codes: [ErrorCode] = []
        func note(_ result: Result<Revision, MetadataError>) {
            if case .failure(.failed(let error)) = result { codes.append(error.code) }
        }
        store.commit(put("a", "1"), note)
        store.commit(put("b", "2"), note)
        store.flush()
        #expect(codes == [.unknownOutcome, .unavailable])
        #expect(store.inner.outage != nil)
        proxy.stall(false)
        // Found out by itself.
        #expect(store.wait(until: { store.inner.outage == nil }))
        var answer: Result<Revision, MetadataError>?
        store.commit(put("c", "3")) { answer = $0 }
        store.flush()
        #expect(throws: Never.self) { try answer?.get() }
        // The second was surely not carried out, the first may have been, once.
        #expect(store.inner.state.get(Bytes("b".utf8)) == nil)
        let first = store.inner.state.get(Bytes("a".utf8))
        #expect(store.inner.state.revision == Revision(first == nil ? 1 : 2))
    }

    /// Two stores show the same; the second follows by its watch.
    @Test(.enabled(if: EtcdServer.isInstalled, comment))
    func anotherStoreFollows() throws {
        let prefix = EtcdServer.shared.newPrefix()
        let settings = settings([EtcdServer.shared.endpoint], prefix: prefix)
        let first = try WaitingEtcdStore(settings)
        let second = try WaitingEtcdStore(settings)
        defer {
            first.close()
            second.close()
        }
        var seen: [MetadataEvent] = []
        _ = try second.watch(prefix: [], from: Revision(1)) {
            if case .success(let event) = $0 { seen.append(event) }
        }
        var lease = LeaseID.none
        first.grantLease(ttl: .seconds(5), now: monotonicNow()) { lease = (try? $0.get()) ?? .none }
        first.flush()
        first.commit(
            MetadataTransaction(changes: [.put("a", "1", lease: lease), .put("b", "2")])
        ) { _ in }
        // In parts: one event all the same.
        let many = (0..<400).map { MetadataChange.put("m\($0)", "v", lease: lease) }
        first.commit(MetadataTransaction(changes: many)) { _ in }
        first.revoke(lease) { _ in }
        first.flush()
        #expect(second.wait(until: { seen.count == 3 }))
        #expect(seen.map(\.revision.rawValue) == [1, 2, 3])
        #expect(seen.first?.changes == [.put("a", "1", lease: lease), .put("b", "2")])
        #expect(seen[1].changes == many)
        #expect(seen[2].changes.count == 401)
        #expect(
            second.inner.state.range(prefix: []) == first.inner.state.range(prefix: []))
        #expect(second.inner.statistics.images == 1)
    }

    /// The watch goes on over broken connections, and begins anew when etcd has forgotten its place.
    @Test(.enabled(if: EtcdServer.isInstalled, comment), arguments: [false, true])
    func aBrokenWatchIsTakenUpAgain(isCompacted: Bool) throws {
        let prefix = EtcdServer.shared.newPrefix()
        let writer = try WaitingEtcdStore(
            settings([EtcdServer.shared.endpoint], prefix: prefix))
        let proxy = FaultyProxy(to: EtcdServer.shared.port)
        let follower = try WaitingEtcdStore(settings([proxy.endpoint], prefix: prefix))
        defer {
            writer.close()
            follower.close()
        }
        var seen: [UInt64] = []
        var ends: [MetadataError] = []
        _ = try follower.watch(prefix: [], from: Revision(1)) { result in
            switch result {
            case .success(let event): seen.append(event.revision.rawValue)
            case .failure(let error): ends.append(error)
            }
        }
        writer.commit(put("a", "1")) { _ in }
        writer.flush()
        #expect(follower.wait(until: { seen == [1] }))
        proxy.cut(true)
        for value in 2...6 { writer.commit(put("a", "\(value)")) { _ in } }
        writer.flush()
        if isCompacted { EtcdServer.shared.compact() }
        proxy.cut(false)
        #expect(follower.wait(until: { follower.inner.state.revision == Revision(6) }))
        if isCompacted {
            #expect(ends == [.compacted(oldest: Revision(7))])
            #expect(seen == [1])
            _ = try follower.watch(prefix: [], from: Revision(7)) { result in
                if case .success(let event) = result { seen.append(event.revision.rawValue) }
            }
        } else {
            // A compaction for another test may have come in between.
            #expect(seen == [1, 2, 3, 4, 5, 6] || !ends.isEmpty)
        }
        writer.commit(put("b", "7")) { _ in }
        writer.flush()
        #expect(follower.wait(until: { follower.inner.state.revision == Revision(7) }))
        if isCompacted { #expect(seen == [1, 7]) }
        #expect(
            follower.inner.state.range(prefix: []) == writer.inner.state.range(prefix: []))
    }

    /// What somebody did to the head while stores run.
    enum Tampering: CaseIterable {
        case deleted
        /// The state of a while ago, as after a restore of an older snapshot.
        case older
        /// The mutation of the same number of another history.
        case another

        func tamper(_ prefix: String, older: String, another: String) {
            switch self {
            case .deleted: EtcdServer.shared.delete(prefix + "head")
            case .older: EtcdServer.shared.put(prefix + "head", older)
            case .another: EtcdServer.shared.put(prefix + "head", another)
            }
        }

        var words: String {
            switch self {
            case .deleted: "was deleted"
            case .older: "went back"
            case .another: "is another one"
            }
        }
    }

    /// Whoever follows notices by the watch, whoever writes by the answer; nobody writes on.
    @Test(.enabled(if: EtcdServer.isInstalled, comment), arguments: Tampering.allCases)
    func anotherHistoryIsNoticed(tampering: Tampering) throws {
        let prefix = EtcdServer.shared.newPrefix()
        let direct = settings([EtcdServer.shared.endpoint], prefix: prefix)
        let proxy = FaultyProxy(to: EtcdServer.shared.port)
        let writer = try WaitingEtcdStore(settings([proxy.endpoint], prefix: prefix))
        let follower = try WaitingEtcdStore(direct)
        // The same number of mutations by another writer.
        let elsewhere = EtcdServer.shared.newPrefix()
        let double = try WaitingEtcdStore(
            settings([EtcdServer.shared.endpoint], prefix: elsewhere))
        defer {
            writer.close()
            follower.close()
            double.close()
        }
        var older = ""
        for number in 1...4 {
            writer.commit(put("a", "\(number)")) { _ in }
            writer.flush()
            double.commit(put("a", "\(number)")) { _ in }
            double.flush()
            if number == 2 { older = EtcdServer.shared.value(of: prefix + "head") }
        }
        #expect(follower.wait(until: { follower.inner.state.revision == Revision(4) }))
        // The writer's watch is behind: only its next answer can tell it.
        proxy.loseAnswers(1_000, to: "/v3/watch")
        proxy.cut(true)
        proxy.cut(false)
        tampering.tamper(
            prefix, older: older, another: EtcdServer.shared.value(of: elsewhere + "head"))
        var answer: Result<Revision, MetadataError>?
        writer.commit(put("a", "5")) { answer = $0 }
        #expect(writer.wait(until: { answer != nil }))
        guard case .failure(.failed(let error)) = answer else {
            Issue.record("\(String(describing: answer))")
            return
        }
        #expect(error.message.contains(tampering.words))
        #expect(follower.wait(until: { follower.inner.failure != nil }))
        for store in [writer.inner, follower.inner] {
            #expect(store.isHistoryLost)
            #expect(store.failure?.message.contains(tampering.words) == true)
            #expect(store.state.revision == Revision(4))
        }
        let reader = try? WaitingEtcdStore(direct)
        #expect(reader?.inner.state.get(Bytes("a".utf8))?.value == Bytes("4".utf8))
        reader?.close()
    }

    @Test(.enabled(if: EtcdServer.isInstalled, comment))
    func aDeposedStoreChangesNothing() throws {
        let prefix = EtcdServer.shared.newPrefix()
        let settings = settings([EtcdServer.shared.endpoint], prefix: prefix)
        // Nobody holds the election key, so no create revision is right.
        let deposed = try WaitingEtcdStore(settings, fence: .held(12_345))
        defer { deposed.close() }
        var answer: Result<Revision, MetadataError>?
        deposed.commit(put("a", "1")) { answer = $0 }
        deposed.flush()
        guard case .failure(.failed(let error)) = answer else {
            Issue.record("\(String(describing: answer))")
            return
        }
        #expect(error.code == .fenced)
        #expect(deposed.inner.fence == .closed)
        let large = MetadataTransaction(changes: (0..<300).map { .put("k\($0)", "") })
        deposed.inner.fence = .held(12_345)
        deposed.commit(large) { answer = $0 }
        deposed.flush()
        let reader = try WaitingEtcdStore(settings)
        defer { reader.close() }
        #expect(reader.inner.state.revision == .none)
        #expect(reader.inner.state.records.count == 0)
    }

    @Test(.enabled(if: EtcdServer.isInstalled, comment))
    func whatEtcdCannotTakeIsRefused() throws {
        let store = try WaitingEtcdStore(settings([EtcdServer.shared.endpoint]))
        defer { store.close() }
        var answers: [Result<Revision, MetadataError>] = []
        for count in [2 << 20, 1_000_000] {
            store.commit(put("a", String(repeating: "v", count: count))) { answers.append($0) }
        }
        store.flush()
        guard case .failure(.failed(let error)) = answers[0] else {
            Issue.record("\(answers)")
            return
        }
        #expect(error.code == .tooLarge)
        #expect(error.message.contains("1.5 MiB"))
        #expect(answers[1] == .success(Revision(1)))
    }
}
