// The files of a controller of the metadata group: creation, snapshots, conversion, damage.

import Glibc
import KVBase
import MetadataCore
import MetadataStore
import ReplicatedLog
import ReplicationCore
import TestKit
import Testing

@Suite struct QuorumFilesTests {
    private let identity = QuorumIdentity(cluster: 0xC1, replica: ReplicaID(1), name: "c1")

    private func image(_ keys: Int, index: UInt64 = 1) -> MetadataImage {
        var state = RevisionedState()
        for key in 0..<keys { state.apply(.changes([.put("k\(key)", "v\(key)")]), now: .origin) }
        let founding = MetadataImage(founder: "c1", address: "h:1", state: state)
        return MetadataImage(
            position: LogPosition(index: LogIndex(index), term: Term(1)),
            membership: founding.membership, roster: founding.roster, state: state)
    }

    private func files(_ directory: TemporaryDirectory) throws -> QuorumFiles {
        try QuorumFiles(directory: directory.path + "/quorum")
    }

    private func remove(_ directory: TemporaryDirectory) {
        for name in ["quorum/log", "quorum", "metadata", "metadata.converted"] {
            let path = directory.path + "/" + name
            guard let stream = opendir(path) else { continue }
            while let entry = readdir(stream) {
                let file = withUnsafePointer(to: &entry.pointee.d_name) {
                    $0.withMemoryRebound(to: CChar.self, capacity: 256) { String(cString: $0) }
                }
                unlink(path + "/" + file)
            }
            closedir(stream)
            rmdir(path)
        }
    }

    @Test func whatWasFoundedComesBack() throws {
        let directory = TemporaryDirectory()
        defer { remove(directory) }
        do {
            let files = try files(directory)
            #expect(try files.identity() == nil)
            try files.create(identity, image: image(3))
            #expect(try files.identity() == identity)
            let opened = try files.open(identity, now: .origin)
            defer { opened.log.close() }
            #expect(opened.image.state.get(Bytes("k2".utf8)) != nil)
            #expect(opened.restored.applied == LogPosition(index: LogIndex(1), term: Term(1)))
            #expect(opened.restored.hardState.term == Term(1))
            #expect(opened.image.roster.members.map(\.name) == ["c1"])
            _ = try files.write(image(5, index: 9))
        }
        let again = try files(directory)
        let opened = try again.open(identity, now: .origin)
        defer { opened.log.close() }
        #expect(opened.image.position.index == LogIndex(9))
        #expect(opened.image.state.get(Bytes("k4".utf8)) != nil)
    }

    @Test func twoProcessesDoNotShareADirectory() throws {
        let directory = TemporaryDirectory()
        defer { remove(directory) }
        let first = try files(directory)
        #expect(throws: DatabaseError.self) { try files(directory) }
        withExtendedLifetime(first) {}
    }

    /// A crash before the identity was written leaves nothing that counts.
    @Test func anUnfinishedCreationIsRepeated() throws {
        let directory = TemporaryDirectory()
        defer { remove(directory) }
        let files = try files(directory)
        try files.create(identity, image: image(3))
        unlink(directory.path + "/quorum/identity")
        #expect(try files.identity() == nil)
        try files.create(identity, image: image(1))
        let opened = try files.open(identity, now: .origin)
        defer { opened.log.close() }
        #expect(opened.image.state.get(Bytes("k2".utf8)) == nil)
        #expect(opened.image.state.get(Bytes("k0".utf8)) != nil)
    }

    @Test func everyFlippedByteOfASnapshotIsFound() throws {
        let bytes = QuorumFiles.encode(image(2))
        for place in bytes.indices {
            var damaged = bytes
            damaged[place] ^= 0x10
            #expect(throws: DatabaseError.self, "byte \(place)") {
                try QuorumFiles.decode(damaged, now: .origin)
            }
        }
        for length in bytes.indices {
            #expect(throws: DatabaseError.self, "cut to \(length)") {
                try QuorumFiles.decode(Bytes(bytes[..<length]), now: .origin)
            }
        }
    }

    @Test func aMissingPartRefusesTheStart() throws {
        let directory = TemporaryDirectory()
        defer { remove(directory) }
        let files = try files(directory)
        try files.create(identity, image: image(3))
        unlink(directory.path + "/quorum/log/0000000000000001.log")
        #expect(throws: DatabaseError.self) { try files.open(identity, now: .origin) }
    }

    /// A directory of the form for one process becomes the first replica of a group, whenever the
    /// conversion is cut off.
    @Test func convertsTheFormForOneProcess() throws {
        let directory = TemporaryDirectory()
        defer { remove(directory) }
        let older = directory.path + "/metadata"
        mkdir(older, 0o750)
        var options = FileMetadataStore.Options()
        options.snapshotAfterLogBytes = 100
        var lease = LeaseID.none
        do {
            let store = try FileMetadataStore(directory: older, now: .origin, options: options)
            store.grantLease(ttl: .seconds(3), now: .origin) { lease = (try? $0.get()) ?? .none }
            store.flush()
            for key in 0..<40 {
                store.commit(
                    MetadataTransaction(changes: [.put("k\(key)", "v\(key)", lease: lease)])
                ) { _ in }
                store.flush()
            }
        }
        func convert() throws -> QuorumIdentity? {
            try files(directory).convert(
                older: older, name: "c1", address: "h:1", now: .origin, cluster: { _ in 0xAB })
        }
        // Cut off before the identity: the older form still counts.
        do {
            let interrupted = try files(directory)
            try interrupted.create(identity, image: image(1))
            unlink(directory.path + "/quorum/identity")
        }
        func check() throws {
            let found = try #require(try convert())
            #expect(found == QuorumIdentity(cluster: 0xAB, replica: ReplicaID(1), name: "c1"))
            let opened = try files(directory).open(found, now: .origin)
            defer { opened.log.close() }
            #expect(opened.image.state.revision == Revision(40))
            #expect(opened.image.state.range(prefix: []).count == 40)
            #expect(opened.image.state.hasLease(lease))
            #expect(access(older, F_OK) != 0)
        }
        try check()
        // Cut off between identity and renaming.
        rename(older + ".converted", older)
        try check()
        // Nothing to convert any more.
        try check()
    }
}
