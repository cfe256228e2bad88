// What every form of the metadata store promises.

import KVBase
import MetadataStore
import Testing

@Suite struct ConformanceTests {
    @Test(arguments: StoreForm.allCases)
    func keepsValuesAndRevisions(form: StoreForm) throws {
        let harness = try StoreHarness(form)
        #expect(harness.get("a") == nil)
        #expect(harness.put("a", "1") == .success(Revision(1)))
        #expect(harness.put("b", "2") == .success(Revision(2)))
        #expect(harness.put("a", "3") == .success(Revision(3)))
        try harness.reopen()
        if form == .memory { return }
        let record = try #require(harness.get("a"))
        #expect(harness.value("a") == "3")
        #expect(record.createRevision == Revision(1))
        #expect(record.modRevision == Revision(3))
        #expect(harness.delete("a") == .success(Revision(4)))
        #expect(harness.get("a") == nil)
        #expect(harness.put("a", "4") == .success(Revision(5)))
        #expect(harness.get("a")?.createRevision == Revision(5))
        #expect(harness.commit(MetadataTransaction()) == .success(Revision(5)))
    }

    @Test(arguments: StoreForm.allCases)
    func transactionsAreAllOrNothing(form: StoreForm) throws {
        let harness = try StoreHarness(form)
        harness.put("a", "1")
        let refused = MetadataTransaction(
            comparisons: [.init("a", at: Revision(1)), .init("b", at: Revision(1))],
            changes: [.put("a", "x"), .put("c", "y")])
        #expect(harness.commit(refused) == .failure(.conditionFailed(at: Revision(1))))
        #expect(harness.value("a") == "1")
        #expect(harness.get("c") == nil)
        let accepted = MetadataTransaction(
            comparisons: [.init("a", at: Revision(1)), .init("b", at: .none)],
            changes: [.put("a", "x"), .put("c", "y")])
        #expect(harness.commit(accepted) == .success(Revision(2)))
        #expect(harness.get("a")?.modRevision == Revision(2))
        #expect(harness.get("c")?.modRevision == Revision(2))
        let lost = MetadataTransaction(changes: [.put("d", "z", lease: LeaseID(9))])
        #expect(harness.commit(lost) == .failure(.leaseNotFound(LeaseID(9))))
        // The second of two in one flush is judged after the first.
        var answers: [Result<Revision, MetadataError>] = []
        for value in ["p", "q"] {
            harness.store.commit(
                MetadataTransaction(
                    comparisons: [.init("e", at: .none)], changes: [.put("e", value)])
            ) { answers.append($0) }
        }
        #expect(answers.isEmpty)
        harness.flush()
        #expect(answers == [.success(Revision(3)), .failure(.conditionFailed(at: Revision(3)))])
        #expect(harness.value("e") == "p")
    }

    @Test(arguments: StoreForm.allCases)
    func rangesAreByPrefixInOrder(form: StoreForm) throws {
        let harness = try StoreHarness(form)
        for key in ["n/3", "m", "n/1", "n/2", "n0", "n"] { harness.put(key, key) }
        let snapshot = try #require(harness.range("n/"))
        #expect(
            snapshot.records.map { String(decoding: $0.key, as: UTF8.self) }
                == ["n/1", "n/2", "n/3"])
        #expect(snapshot.revision == Revision(6))
        #expect(harness.range("")?.records.count == 6)
    }

    @Test(arguments: StoreForm.allCases)
    func watchesDeliverEveryChangeInOrder(form: StoreForm) throws {
        let harness = try StoreHarness(form)
        harness.put("w/a", "1")
        harness.put("x", "2")
        var seen: [MetadataEvent] = []
        let watch = try harness.store.watch(prefix: Bytes("w/".utf8), from: Revision(1)) {
            if case .success(let event) = $0 { seen.append(event) }
        }
        #expect(seen.isEmpty)
        harness.flush()
        #expect(seen.map(\.revision) == [Revision(1)])
        harness.commit(MetadataTransaction(changes: [.put("w/b", "3"), .put("y", "4")]))
        harness.delete("w/a")
        harness.put("z", "5")
        #expect(seen.map(\.revision.rawValue) == [1, 3, 4])
        #expect(seen[1].changes == [.put("w/b", "3")])
        #expect(seen[2].changes == [.delete(key: Bytes("w/a".utf8))])
        harness.store.cancel(watch)
        harness.put("w/c", "6")
        #expect(seen.count == 3)
        // Resumed from where it stood.
        _ = try harness.store.watch(prefix: Bytes("w/".utf8), from: Revision(5)) {
            if case .success(let event) = $0 { seen.append(event) }
        }
        harness.flush()
        #expect(seen.map(\.revision.rawValue) == [1, 3, 4, 6])
    }

    @Test(arguments: StoreForm.allCases)
    func compactedHistoryIsRefused(form: StoreForm) throws {
        let harness = try StoreHarness(form)
        for value in 1...5 { harness.put("a", "\(value)") }
        harness.store.compact(below: Revision(4))
        #expect(throws: MetadataError.compacted(oldest: Revision(4))) {
            try harness.store.watch(prefix: [], from: Revision(3)) { _ in }
        }
        var seen: [Revision] = []
        _ = try harness.store.watch(prefix: [], from: Revision(4)) {
            if case .success(let event) = $0 { seen.append(event.revision) }
        }
        harness.flush()
        #expect(seen == [Revision(4), Revision(5)])
        #expect(harness.value("a") == "5")
    }

    @Test func historyIsBounded() throws {
        let harness = try StoreHarness(.memory)
        let changes = (0..<1_000).map { MetadataChange.put("k\($0)", "") }
        for _ in 0..<60 { harness.commit(MetadataTransaction(changes: changes)) }
        #expect(throws: MetadataError.self) {
            try harness.store.watch(prefix: [], from: Revision(1)) { _ in }
        }
        var seen = 0
        _ = try harness.store.watch(prefix: [], from: Revision(41)) { _ in seen += 1 }
        harness.flush()
        #expect(seen == 20)
    }

    @Test(arguments: StoreForm.allCases)
    func leasesTakeTheirKeysAlong(form: StoreForm) throws {
        let harness = try StoreHarness(form)
        let lease = harness.grant(.seconds(3))
        let other = harness.grant(.seconds(30))
        #expect(lease != .none && other > lease)
        harness.put("a", "1", lease: lease)
        harness.put("b", "1", lease: lease)
        harness.put("c", "1", lease: other)
        harness.put("d", "1")
        // A key put again without the lease outlives it.
        harness.put("b", "2")
        harness.pass(.seconds(2))
        #expect(throws: Never.self) { try harness.keepAlive(lease).get() }
        harness.pass(.seconds(2))
        #expect(harness.value("a") == "1")
        var deleted: [MetadataEvent] = []
        _ = try harness.store.watch(prefix: [], from: Revision(6)) {
            if case .success(let event) = $0 { deleted.append(event) }
        }
        harness.pass(.seconds(1), until: { !deleted.isEmpty })
        #expect(
            deleted == [
                MetadataEvent(
                    revision: Revision(6), changes: [.delete(key: Bytes("a".utf8))])
            ])
        #expect(harness.get("a") == nil)
        #expect(harness.value("b") == "2")
        #expect(throws: MetadataError.leaseNotFound(lease)) { try harness.keepAlive(lease).get() }
        let revoked: Result<Void, MetadataError> = harness.answer {
            harness.store.revoke(other, $0)
        }
        #expect(throws: Never.self) { try revoked.get() }
        #expect(harness.get("c") == nil)
        #expect(harness.value("d") == "1")
    }

    /// Those of etcd go on where they stood.
    @Test(arguments: StoreForm.allCases.filter { $0.isDurable && !$0.isOutside })
    func leasesRunAnewAfterARestart(form: StoreForm) throws {
        let harness = try StoreHarness(form)
        let lease = harness.grant(.seconds(3))
        harness.put("a", "1", lease: lease)
        harness.pass(.seconds(2))
        try harness.reopen()
        harness.pass(.seconds(2))
        #expect(harness.value("a") == "1")
        harness.pass(.seconds(1))
        #expect(harness.get("a") == nil)
        #expect(harness.grant(.seconds(1)) > lease)
    }

    /// More records than a page of any form, written in transactions larger than a request to etcd.
    @Test(arguments: StoreForm.allCases)
    func largeTransactionsAndRanges(form: StoreForm) throws {
        let harness = try StoreHarness(form)
        var events: [MetadataEvent] = []
        _ = try harness.store.watch(prefix: Bytes("s/".utf8), from: Revision(1)) {
            if case .success(let event) = $0 { events.append(event) }
        }
        func key(_ number: Int) -> String { "s/" + String(100_000 + number) }
        for start in stride(from: 0, to: 6_000, by: 1_500) {
            let changes = (start..<start + 1_500).map {
                MetadataChange.put(key($0), String(repeating: "v", count: $0 % 2_000))
            }
            #expect(
                harness.commit(MetadataTransaction(changes: changes))
                    == .success(Revision(UInt64(start / 1_500 + 1))))
        }
        // A comparison that fails keeps all of a large one away.
        let refused = MetadataTransaction(
            comparisons: [.init(key(7), at: Revision(2))],
            changes: (0..<1_500).map { MetadataChange.delete(key: Bytes(key($0).utf8)) })
        #expect(harness.commit(refused) == .failure(.conditionFailed(at: Revision(4))))
        #expect(
            harness.commit(
                MetadataTransaction(
                    comparisons: [.init(key(7), at: Revision(1))], changes: refused.changes))
                == .success(Revision(5)))
        #expect(events.map(\.changes.count) == [1_500, 1_500, 1_500, 1_500, 1_500])
        try harness.reopen()
        let records = try #require(harness.range("s/")).records
        #expect(records.count == 4_500)
        #expect(
            records.map { String(decoding: $0.key, as: UTF8.self) }
                == (1_500..<6_000).map { key($0) })
        #expect(records.allSatisfy { $0.value.count == (Self.number($0.key) - 100_000) % 2_000 })
        #expect(records.first?.modRevision == Revision(2))
        #expect(records.last?.createRevision == Revision(4))
        #expect(harness.put("t", "") == .success(Revision(6)))
    }

    private static func number(_ key: Bytes) -> Int {
        Int(String(decoding: key.dropFirst(2), as: UTF8.self)) ?? 0
    }

    /// Writers that each read and then compare and put: none of their additions is lost or made twice.
    /// In etcd the watch of one overtakes answers to it, which then are old and not a sign of a store
    /// that went back.
    @Test(arguments: StoreForm.allCases)
    func concurrentWritersLoseNothing(form: StoreForm) throws {
        final class Writer {
            let store: any MetadataStore
            var left = 8
            var conflicts = 0
            var error: MetadataError?
            init(_ store: any MetadataStore) { self.store = store }

            func add() {
                guard left > 0 else { return }
                store.get(Bytes("sum".utf8)) { [self] result in
                    let record: MetadataRecord?
                    switch result {
                    case .success(let read): record = read
                    case .failure(let error): return failed(error)
                    }
                    let sum = record.map { Int(String(decoding: $0.value, as: UTF8.self)) ?? 0 }
                    store.commit(
                        MetadataTransaction(
                            comparisons: [.init("sum", at: record?.modRevision ?? .none)],
                            changes: [.put("sum", String((sum ?? 0) + 1))])
                    ) { [self] result in
                        switch result {
                        case .success: left -= 1
                        case .failure(.conditionFailed): conflicts += 1
                        case .failure(let error): return failed(error)
                        }
                        add()
                    }
                }
            }

            /// A store that did not answer in time on a busy machine was asked for nothing.
            private func failed(_ error: MetadataError) {
                if case .failed(let cause) = error, cause.code == .unavailable { return add() }
                self.error = error
            }
        }
        let harness = try StoreHarness(form)
        let writers = try (0..<4).map { _ in Writer(try harness.another()) }
        for writer in writers { writer.add() }
        let end = monotonicNow() + .seconds(60)
        while writers.contains(where: { $0.left > 0 }), monotonicNow() < end {
            // Those of etcd send on only, so that the requests of the others come in between.
            for writer in writers { harness.sendOn(writer.store) }
        }
        #expect(writers.compactMap(\.error).isEmpty)
        #expect(writers.map(\.left) == [0, 0, 0, 0], "conflicts \(writers.map(\.conflicts))")
        #expect(harness.value("sum") == "32")
        #expect(harness.get("sum")?.modRevision == Revision(32))
    }

    /// Random operations against a dictionary, with restarts in between.
    @Test(arguments: StoreForm.allCases, 0..<8)
    func agreesWithAModel(form: StoreForm, seed: UInt64) throws {
        var random = SeededRandom(seed: seed)
        let harness = try StoreHarness(form)
        var model: [String: (value: String, mod: UInt64)] = [:]
        var revision: UInt64 = 0
        for step in 0..<300 {
            let key = "k\(random.below(12))"
            switch random.below(12) {
            case 0: try harness.reopen()
            case 1, 2:
                #expect(harness.delete(key) == .success(Revision(revision + 1)), "seed \(seed)")
                revision += 1
                model[key] = nil
            case 3, 4:
                let guess = random.chance(1, in: 2) ? model[key]?.mod ?? 0 : random.below(50)
                let result = harness.commit(
                    MetadataTransaction(
                        comparisons: [.init(key, at: Revision(guess))],
                        changes: [.put(key, "\(step)"), .put("other", "\(step)")]))
                if guess == model[key]?.mod ?? 0 {
                    revision += 1
                    #expect(result == .success(Revision(revision)), "seed \(seed)")
                    model[key] = ("\(step)", revision)
                    model["other"] = ("\(step)", revision)
                } else {
                    #expect(
                        result == .failure(.conditionFailed(at: Revision(revision))),
                        "seed \(seed)")
                }
            default:
                revision += 1
                #expect(harness.put(key, "\(step)") == .success(Revision(revision)))
                model[key] = ("\(step)", revision)
            }
        }
        let records = try #require(harness.range("")).records
        #expect(records.count == model.count, "seed \(seed)")
        for record in records {
            let expected = model[String(decoding: record.key, as: UTF8.self)]
            #expect(
                String(decoding: record.value, as: UTF8.self) == expected?.value, "seed \(seed)")
            #expect(record.modRevision.rawValue == expected?.mod, "seed \(seed)")
        }
    }
}
