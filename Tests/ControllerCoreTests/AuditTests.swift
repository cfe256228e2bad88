// The audit log: what is stored, that it outlives a controller, and that tampering shows.

import Digest
import KVBase
import Testing

@testable import ControllerCore

@Suite struct AuditTests {
    /// A log of `count` requests, as a controller stores it.
    private func store(_ count: Int, kept: UInt64 = 100) throws -> SimulatedStore {
        var store = SimulatedStore()
        var controller = try begin(&store, kept: kept)
        for number in 0..<count { note("command \(number)", &controller, &store) }
        return store
    }

    private func begin(_ store: inout SimulatedStore, kept: UInt64 = 100) throws -> Controller {
        store.endLease()
        var settings = ControllerSettings(name: "c")
        settings.auditEntriesMax = kept
        var controller = try Controller(
            settings: settings, snapshot: store.snapshot, lease: LeaseID(1),
            clusterCandidate: 7, now: .origin)
        step(.start, &controller, &store)
        return controller
    }

    private func note(
        _ verb: String, _ controller: inout Controller, _ store: inout SimulatedStore
    ) {
        let entry = AuditEntry(
            after: controller.auditHead, at: 1, caller: "alice@host", address: "127.0.0.1:9",
            verb: verb, event: .requested(arguments: "{}"), hash: SHA256.digest)
        step(.audit(entry), &controller, &store)
    }

    private func step(
        _ event: ControllerEvent, _ controller: inout Controller, _ store: inout SimulatedStore
    ) {
        var events = [event]
        while !events.isEmpty {
            var effects = ControllerEffects()
            controller.step(events.removeFirst(), now: .origin, into: &effects)
            for case .store(let transaction, let ticket) in effects.list {
                switch store.commit(transaction) {
                case .success(let revision): events.append(.stored(ticket, revision))
                case .failure(let error): events.append(.storeFailed(ticket, error))
                }
            }
        }
    }

    private func trail(_ store: SimulatedStore) throws -> AuditTrail {
        AuditTrail(
            store.snapshot.records.filter { $0.key.starts(with: AuditEntry.storePrefix) },
            head: store.durable.auditHead)
    }

    private func fault(_ store: SimulatedStore, since anchor: String? = nil) throws -> String? {
        try trail(store).fault(since: try anchor.map { try AuditAnchor($0) }, hash: SHA256.digest)
    }

    @Test func theNextControllerGoesOnWithTheChain() throws {
        var store = try store(3)
        var next = try begin(&store)
        note("later", &next, &store)
        let trail = try trail(store)
        #expect(trail.entries.map(\.number) == [1, 2, 3, 4])
        #expect(trail.entries.last?.verb == "later")
        #expect(try fault(store) == nil)
        #expect(store.violations.isEmpty)
    }

    @Test func theOldestEntriesGoAndTheRestStillProvesItself() throws {
        let store = try store(9, kept: 4)
        let trail = try trail(store)
        #expect(trail.entries.map(\.number) == [6, 7, 8, 9])
        #expect(trail.head.first == 6)
        #expect(try fault(store) == nil)
    }

    /// Each byte of each entry: what is changed is named, or cannot be read.
    @Test func everyFlippedBitShows() throws {
        let store = try store(4)
        let records = store.snapshot.records.filter {
            $0.key.starts(with: AuditEntry.storePrefix)
        }
        for index in records.indices {
            for byte in records[index].value.indices {
                var damaged = records
                damaged[index].value[byte] ^= 1 << (byte % 8)
                let trail = AuditTrail(damaged, head: store.durable.auditHead)
                #expect(
                    trail.fault(since: nil, hash: SHA256.digest) != nil,
                    "entry \(index), byte \(byte)")
            }
        }
    }

    @Test func entriesThatAreTakenOutShow() throws {
        let store = try store(4)
        let whole = try trail(store)
        let records = store.snapshot.records.filter {
            $0.key.starts(with: AuditEntry.storePrefix)
        }
        for index in records.indices {
            var fewer = records
            fewer.remove(at: index)
            let fault = AuditTrail(fewer, head: whole.head).fault(
                since: nil, hash: SHA256.digest)
            #expect(fault?.contains("missing") == true, "without \(index): \(fault ?? "whole")")
        }
    }

    /// A chain that was made anew from some entry on is whole in itself; a noted head gives it away.
    @Test func aNotedHeadShowsAnExchangedLog() throws {
        let store = try store(4)
        let noted = try #require(AuditAnchor.text(try trail(store).head))
        #expect(try fault(store, since: noted) == nil)
        var forged = SimulatedStore()
        var controller = try begin(&forged)
        for number in 0..<6 { note("other \(number)", &controller, &forged) }
        #expect(try fault(forged) == nil)
        #expect(try fault(forged, since: noted)?.contains("another one") == true)
        let short = try self.store(2)
        #expect(try fault(short, since: noted)?.contains("missing") == true)
    }

    @Test(arguments: ["", "7", "7:", "x:" + String(repeating: "0", count: 64), "7:abc", "7:1:2"])
    func aHeadHasOneForm(text: String) {
        #expect(throws: DatabaseError.self) { try AuditAnchor(text) }
    }

    /// The mark of a move and the audit log's word on it come together, and only if nobody came in between.
    @Test func theMarkOfAMoveIsInTheLog() throws {
        var store = try store(3)
        let records = store.snapshot.records
        func get(_ key: Bytes) -> MetadataRecord? { records.first { $0.key == key } }
        let request = MoveMark.Request(
            number: 3, caller: "alice@host", address: "127.0.0.1:9", verb: "metadata.migrate")
        let mark = try MoveMark.transaction(
            get, move: [1, 2], request: request, said: "moved", at: 5, hash: SHA256.digest)
        var late = store
        _ = try begin(&late)
        #expect(throws: DatabaseError.self) { try late.commit(mark).get() }
        let before = store.snapshot.revision
        #expect(try store.commit(mark).get() == before.next())
        #expect(try fault(store) == nil)
        let entry = try #require(try trail(store).entries.last)
        #expect(entry.event == .answered(request: 3, isDone: true, text: "moved"))
        #expect(store.snapshot.records.contains { $0.key == StoreKey.home && $0.value == [1, 2] })
        // A controller reads on from there, in either store.
        let next = try begin(&store)
        #expect(next.auditHead.next == 5)
        #expect(next.term == Term(2))
    }
}
