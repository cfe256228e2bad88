// Moves of the metadata between the stores: what is decided on which grounds, what a crash at any point
// leaves, and that a store which was left stays as it was.

import EtcdMetadata
import Glibc
import KVBase
import MetadataStore
import ReplicationCore
import TestKit
import Testing

@testable import MetadataCore

@Suite struct MoveTests {
    private static let comment: Comment = "etcd is not installed (make deps): its form is not tried"

    private func move(
        to: MetadataForm, revision: UInt64 = 9, id: UInt64 = 0xA, prefix: String = "rk/"
    ) -> MetadataMove {
        MetadataMove(
            id: id, to: to, revision: Revision(revision), cluster: 0xC1, at: 12,
            caller: "alice@host",
            endpoints: ["http://e:1"], prefix: prefix,
            members: to == .etcd
                ? []
                : ["c1", "c2", "c3"].enumerated().map {
                    MetadataMove.Member(
                        replica: ReplicaID(UInt32(100 + $0)), name: $1, address: "h:\($0)")
                })
    }

    private func state(_ keys: Int) -> RevisionedState {
        var state = RevisionedState()
        for key in 0..<keys { state.apply(.changes([.put("k\(key)", "v\(key)")]), now: .origin) }
        return state
    }

    // MARK: The record

    @Test func aMoveComesBackFromItsBytes() throws {
        for to in [MetadataForm.etcd, .embedded] {
            #expect(try MetadataMove(move(to: to).encode()) == move(to: to))
        }
        let bytes = move(to: .embedded).encode()
        for count in 0..<bytes.count {
            #expect(throws: DatabaseError.self, "cut to \(count)") {
                _ = try MetadataMove(Bytes(bytes[..<count]))
            }
        }
    }

    // MARK: Where the metadata is

    private func find(
        _ move: MetadataMove?, configured: MetadataForm, prefix: String = "rk/",
        name: String = "c1",
        hasGroup: Bool = false, hasIncoming: Bool = false
    ) throws(DatabaseError) -> MetadataPlace {
        try MetadataPlace.find(
            move, configured: configured, prefix: prefix, name: name, hasGroup: hasGroup,
            hasIncoming: hasIncoming)
    }

    @Test func theLastMoveDecidesWhereTheMetadataIs() throws {
        #expect(try find(nil, configured: .embedded, hasGroup: true) == .configured)
        let away = move(to: .etcd)
        #expect(try find(away, configured: .embedded, hasGroup: true) == .etcd(away))
        #expect(try find(away, configured: .etcd) == .etcd(away))
        let back = move(to: .embedded)
        for configured in [MetadataForm.etcd, .embedded] {
            #expect(
                try find(back, configured: configured, hasGroup: true, hasIncoming: true)
                    == .embedded(back, adopts: true))
            #expect(
                try find(back, configured: configured, hasGroup: true)
                    == .embedded(back, adopts: false))
        }
    }

    @Test func whatCannotBeFollowedNamesTheSettings() {
        #expect(throws: DatabaseError.self) {
            try find(move(to: .etcd), configured: .etcd, prefix: "other/")
        }
        for (name, words) in [("c9", "is none"), ("c2", "is gone")] {
            let error = #expect(throws: DatabaseError.self) {
                try find(move(to: .embedded), configured: .etcd, name: name)
            }
            #expect(error?.message.contains(words) == true)
            #expect(error?.message.contains("metadata = embedded") == true)
            #expect(error?.message.contains("c1=h:0,c2=h:1,c3=h:2") == true)
        }
    }

    @Test func whoseSettingsNameAnotherPlaceInEtcdObjectsBeforehand() {
        func objection(
            _ configured: MetadataForm, _ endpoints: [String] = ["http://e:1/", "http://e:2"],
            prefix: String
        ) -> String? {
            MetadataPlace.objection(
                toMoveTo: ["http://e:3", "http://e:1"], "rk/", configured: configured,
                endpoints: endpoints, prefix: prefix)
        }
        #expect(objection(.embedded, [], prefix: "other/") == nil)
        for prefix in ["rk/", "rk"] {
            #expect(objection(.etcd, prefix: prefix) == nil)
            #expect(throws: Never.self) {
                try find(move(to: .etcd), configured: .etcd, prefix: prefix)
            }
        }
        #expect(
            objection(.etcd, prefix: "other/")
                == "its settings say etcd.prefix = other/; move there, or change the settings first"
        )
        #expect(
            objection(.etcd, ["http://f:1"], prefix: "rk/")?.hasPrefix(
                "its settings say etcd.endpoints = http://f:1; move there") == true)
    }

    @Test func settingsOfTheOldStoreAreNamed() {
        #expect(MetadataPlace.objection(to: .embedded, after: nil) == nil)
        #expect(MetadataPlace.objection(to: .etcd, after: move(to: .etcd)) == nil)
        let away = MetadataPlace.objection(to: .embedded, after: move(to: .etcd))
        #expect(away?.contains("etcd.endpoints = http://e:1, etcd.prefix = rk/") == true)
        let back = MetadataPlace.objection(to: .etcd, after: move(to: .embedded))
        #expect(back?.contains("metadata = embedded") == true)
    }

    // MARK: The store that was left

    @Test func nothingChangesAStoreThatWasLeft() {
        var image = MetadataImage(founder: "c1", address: "h:1", state: state(3))
        func apply(_ command: MetadataCommand) -> Bool {
            if case .success = image.apply(command, now: .origin).0 { true } else { false }
        }
        let mark = MetadataChange.put(
            key: MetadataMove.key, value: move(to: .etcd, revision: 4).encode(), lease: .none)
        #expect(apply(.transaction(MetadataTransaction(changes: [mark]))))
        let left = image.state
        #expect(!apply(.transaction(MetadataTransaction(changes: [.put("k", "v")]))))
        #expect(!apply(.grantLease(ttl: .seconds(3))))
        #expect(!apply(.endLease(LeaseID(1))))
        #expect(image.state.revision == left.revision)
        #expect(image.state.range(prefix: []) == left.range(prefix: []))
        // Who the controllers are is another matter.
        #expect(apply(.admit(name: "c2", address: "h:2")))
    }

    @Test func aStoreThatWasComeToIsOpen() {
        var image = MetadataImage(founder: "c1", address: "h:1", state: state(3))
        let mark = MetadataChange.put(
            key: MetadataMove.key, value: move(to: .embedded, revision: 4).encode(), lease: .none)
        for change in [mark, .put("k", "v")] {
            let (result, _) = image.apply(
                .transaction(MetadataTransaction(changes: [change])), now: .origin)
            #expect(throws: Never.self) { try result.get() }
        }
    }

    // MARK: The history of the new store

    /// Two records by the mark, one of them new, as the audit log's and the move's own.
    private func marked(_ move: MetadataMove) -> (state: RevisionedState, mark: [MetadataChange]) {
        let mark: [MetadataChange] = [
            .put(key: MetadataMove.key, value: move.encode(), lease: .none), .put("k1", "anew"),
        ]
        var state = state(Int(move.revision.rawValue) - 1)
        state.apply(.changes(mark), now: .origin)
        return (state, mark)
    }

    private func read(_ state: RevisionedState) throws -> RevisionedState {
        var writer = ByteWriter()
        state.encode(into: &writer)
        return try ByteReader.decode(writer.take()) { (reader) throws(DatabaseError) in
            try RevisionedState(from: &reader, now: .origin)
        }
    }

    @Test func theHistoryOfTheNewStoreBeginsWithTheMark() throws {
        let (state, mark) = marked(move(to: .embedded, revision: 9))
        var opened = try read(state)
        #expect(opened.range(prefix: []) == state.range(prefix: []))
        let event = MetadataEvent(revision: Revision(9), changes: mark)
        #expect(try opened.events(prefix: [], from: Revision(9)) == [event])
        #expect(throws: MetadataError.compacted(oldest: Revision(9))) {
            try opened.events(prefix: [], from: Revision(8))
        }
        let next = opened.apply(.changes([.put("k1", "next")]), now: .origin)
        #expect(try opened.events(prefix: [], from: Revision(9)) == [event, try #require(next)])
        // What a state of any other revision followed from is not to be seen in it.
        let later = try read(opened)
        #expect(throws: MetadataError.compacted(oldest: Revision(11))) {
            try later.events(prefix: [], from: Revision(10))
        }
    }

    // MARK: The data directory

    /// Every rename of a move, in both directions; a crash between any two leaves what the next start finishes.
    @Test func aDirectoryFollowsBothWays() throws {
        let directory = TemporaryDirectory()
        let files = MoveFiles(data: directory.path)
        func place(_ configured: MetadataForm) throws(DatabaseError) -> MetadataPlace {
            try files.place(configured: configured, prefix: "rk/", name: "c2")
        }
        #expect(try place(.embedded) == .configured)
        do {
            let quorum = try QuorumFiles(directory: files.quorum)
            try quorum.create(
                QuorumIdentity(cluster: 0xC1, replica: ReplicaID(1), name: "c2"),
                image: MetadataImage(founder: "c2", address: "h:1", state: state(2)))
        }
        let away = move(to: .etcd, revision: 3)
        try files.note(away)
        for _ in 0..<2 {
            #expect(try place(.embedded) == .etcd(away))
            try files.settle(try place(.embedded))
            #expect(access(files.quorum, F_OK) != 0)
            #expect(access(files.quorum + ".moved-3/identity", F_OK) == 0)
        }
        let back = move(to: .embedded, revision: 9)
        let made = try files.prepare(back, name: "c2", state: state(8))
        #expect(made.range(prefix: []) == state(8).range(prefix: []))
        // Prepared, and not done: the metadata is where it was.
        #expect(try place(.embedded) == .etcd(away))
        try files.note(back)
        #expect(try place(.etcd) == .embedded(back, adopts: true))
        for _ in 0..<2 { try files.settle(try place(.etcd)) }
        #expect(try place(.etcd) == .embedded(back, adopts: false))
        let identity = try QuorumFiles(directory: files.quorum).identity()
        #expect(identity == QuorumIdentity(cluster: 0xC1, replica: ReplicaID(101), name: "c2"))
        // What an attempt prepared that came to nothing is never taken.
        _ = try files.prepare(
            move(to: .embedded, revision: 9, id: 0xB), name: "c2", state: state(1))
        #expect(try place(.etcd) == .embedded(back, adopts: false))
    }

    @Test func aDamagedNoteIsNamed() throws {
        let directory = TemporaryDirectory()
        let files = MoveFiles(data: directory.path)
        try files.note(move(to: .etcd))
        let path = directory.path + "/home"
        let descriptor = open(path, O_RDWR)
        defer { close(descriptor) }
        for offset in 0..<lseek(descriptor, 0, SEEK_END) {
            var byte: UInt8 = 0
            pread(descriptor, &byte, 1, offset)
            byte ^= 0x10
            pwrite(descriptor, &byte, 1, offset)
            let error = #expect(throws: DatabaseError.self, "byte \(offset)") { try files.move() }
            #expect(error?.message.contains(path) == true)
            byte ^= 0x10
            pwrite(descriptor, &byte, 1, offset)
        }
        #expect(try files.move() == move(to: .etcd))
        try files.forget()
        #expect(try files.move() == nil)
    }

    // MARK: etcd

    private func settings(_ prefix: String) -> EtcdSettings {
        EtcdSettings(endpoints: [EtcdServer.shared.endpoint], prefix: prefix)
    }

    @Test(.enabled(if: EtcdServer.isInstalled, comment))
    func whatComesCountsWhenItIsCompleted() throws {
        let prefix = EtcdServer.shared.newPrefix()
        let transfer = try EtcdTransfer(settings(prefix))
        try transfer.check(cluster: 0xC1, name: "c1")
        #expect(try transfer.look() == .nothing)
        // An attempt that came to nothing, with more records than the one that is completed.
        try transfer.bring(state(300), id: 0xB, cluster: 0xC1)
        #expect(throws: DatabaseError.self) { try transfer.check(cluster: 0xC2, name: "c1") }
        #expect(throws: DatabaseError.self) { try transfer.bring(state(1), id: 1, cluster: 0xC2) }
        let (moved, mark) = marked(move(to: .etcd, revision: 205))
        var seen: [Int] = []
        try transfer.bring(moved, id: 0xA, cluster: 0xC1) { seen.append($0) }
        #expect(seen.last == moved.records.count && seen.count > 1)
        #expect(try transfer.look() == .incoming(id: 0xA, cluster: 0xC1))
        #expect(throws: DatabaseError.self) { try transfer.complete(id: 0xB) }
        for _ in 0..<2 { try transfer.complete(id: 0xA) }
        #expect(try transfer.look() == .metadata(revision: Revision(205)))
        #expect(throws: DatabaseError.self) { try transfer.check(cluster: 0xC1, name: "c1") }
        let store = try WaitingEtcdStore(settings(prefix))
        defer { store.close() }
        #expect(store.inner.state.range(prefix: []) == moved.range(prefix: []))
        var answers: [Result<Revision, MetadataError>] = []
        store.commit(MetadataTransaction(changes: [.put("k", "v")])) { answers.append($0) }
        store.flush()
        #expect(answers == [.success(Revision(206))])
        var events: [MetadataEvent] = []
        _ = try store.watch(prefix: [], from: Revision(205)) {
            if case .success(let event) = $0 { events.append(event) }
        }
        store.flush()
        #expect(events.map(\.revision) == [Revision(205), Revision(206)])
        #expect(events.first?.changes == mark)
    }

    @Test(.enabled(if: EtcdServer.isInstalled, comment))
    func whatHasLeftChangesNoMore() throws {
        let prefix = EtcdServer.shared.newPrefix()
        let transfer = try EtcdTransfer(settings(prefix))
        let before = state(5)
        try transfer.bring(before, id: 1, cluster: 0xC1)
        try transfer.complete(id: 1)
        let store = try WaitingEtcdStore(settings(prefix))
        defer { store.close() }
        var final = before
        let mark = move(to: .embedded, revision: 6, prefix: prefix)
        final.apply(
            .changes([.put(key: MetadataMove.key, value: mark.encode(), lease: .none)]),
            now: .origin)
        let records = try [#require(final.get(MetadataMove.key))]
        // Of another revision, or of an election that is not: nothing happens.
        #expect(throws: DatabaseError.self) {
            try transfer.close(with: records, move: move(to: .embedded, revision: 7), election: 0)
        }
        #expect(throws: DatabaseError.self) {
            try transfer.close(with: records, move: mark, election: 77)
        }
        #expect(try transfer.look() == .metadata(revision: Revision(5)))
        for _ in 0..<2 { try transfer.closeOrClosed(with: records, move: mark) }
        #expect(try transfer.look() == .moved(mark))
        var answers: [Result<Revision, MetadataError>] = []
        store.commit(MetadataTransaction(changes: [.put("k", "v")])) { answers.append($0) }
        store.flush()
        guard case .failure = answers.first else {
            Issue.record("a store that was left took \(answers)")
            return
        }
        // The same cluster may come back.
        try transfer.check(cluster: 0xC1, name: "c1")
        #expect(throws: DatabaseError.self) { try transfer.check(cluster: 0xC2, name: "c1") }
    }
}

extension EtcdTransfer {
    /// Closing what is closed already is refused, and changes nothing.
    fileprivate func closeOrClosed(
        with records: [MetadataRecord], move: MetadataMove
    ) throws(DatabaseError) {
        guard try look() == .moved(move) else {
            return try close(with: records, move: move, election: 0)
        }
        #expect(throws: DatabaseError.self) {
            try close(with: records, move: move, election: 0)
        }
    }
}
