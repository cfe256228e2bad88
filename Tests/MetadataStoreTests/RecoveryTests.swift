// Crashes, rot and failing disks under the durable form.

import Glibc
import KVBase
import MetadataStore
import Synchronization
import TestKit
import Testing

@Suite struct RecoveryTests {
    private let logName = "log-0000000000000000"

    /// A directory with three transactions in its log, the last one at the returned offset.
    private func threeTransactions() throws -> (TemporaryDirectory, lastStart: Int) {
        let directory = TemporaryDirectory()
        var lastStart = 0
        let store = try FileMetadataStore(directory: directory.path, now: .origin)
        for value in 1...3 {
            lastStart = store.logBytes
            store.commit(MetadataTransaction(changes: [.put("key", "value \(value)")])) { _ in }
            store.flush()
        }
        return (directory, lastStart)
    }

    private func reopen(_ directory: TemporaryDirectory) throws -> (
        revision: Revision, value: String
    ) {
        let store = try FileMetadataStore(directory: directory.path, now: .origin)
        var value = ""
        store.get(Bytes("key".utf8)) {
            if case .success(let record?) = $0 {
                value = String(decoding: record.value, as: UTF8.self)
            }
        }
        store.flush()
        return (store.revision, value)
    }

    @Test func aTornTailIsCutOffAtEveryByte() throws {
        let (directory, lastStart) = try threeTransactions()
        let whole = directory.read(logName)
        for length in lastStart..<whole.count {
            directory.write(logName, Bytes(whole[..<length]))
            let state = try reopen(directory)
            #expect(state.revision == Revision(2), "cut to \(length) bytes")
            #expect(state.value == "value 2", "cut to \(length) bytes")
            #expect(directory.read(logName).count == lastStart, "cut to \(length) bytes")
        }
        directory.write(logName, whole)
        #expect(try reopen(directory).value == "value 3")
    }

    @Test func spaceThatNoWriteReachedIsCutOff() throws {
        let (directory, lastStart) = try threeTransactions()
        let whole = directory.read(logName)
        for length in [lastStart, lastStart + 10, lastStart + 30, whole.count - 1] {
            directory.write(
                logName, Bytes(whole[..<length]) + Bytes(repeating: 0, count: 4_096))
            #expect(try reopen(directory).revision == Revision(2), "zeros from \(length)")
        }
        directory.write(logName, whole + Bytes(repeating: 0, count: 4_096))
        #expect(try reopen(directory).revision == Revision(3))
    }

    @Test func goesOnAfterATornTail() throws {
        let (directory, lastStart) = try threeTransactions()
        directory.write(logName, Bytes(directory.read(logName)[..<(lastStart + 7)]))
        do {
            let store = try FileMetadataStore(directory: directory.path, now: .origin)
            var answer: Result<Revision, MetadataError>?
            store.commit(MetadataTransaction(changes: [.put("key", "again")])) { answer = $0 }
            store.flush()
            #expect(answer == .success(Revision(3)))
        }
        #expect(try reopen(directory).value == "again")
    }

    /// Every bit of a finished record, the last one too, is told from a torn write.
    @Test func everyFlippedBitIsRefusedByName() throws {
        let (directory, _) = try threeTransactions()
        let whole = directory.read(logName)
        for offset in whole.indices {
            for bit in 0..<8 {
                var rotten = whole
                rotten[offset] ^= 1 << bit
                directory.write(logName, rotten)
                do {
                    _ = try reopen(directory)
                    Issue.record("bit \(bit) of byte \(offset) was not noticed")
                } catch let error as DatabaseError {
                    #expect(error.code == .storageFailed)
                    #expect(error.message.contains(logName), "\(error)")
                }
            }
        }
    }

    @Test func aDamagedOrMissingSnapshotIsRefused() throws {
        let directory = TemporaryDirectory()
        do {
            var options = FileMetadataStore.Options()
            options.snapshotAfterLogBytes = 1
            let store = try FileMetadataStore(
                directory: directory.path, now: .origin, options: options)
            store.commit(MetadataTransaction(changes: [.put("key", "value")])) { _ in }
            store.flush()
        }
        let names = directory.files
        #expect(names == ["lock", "log-0000000000000001", "snapshot-0000000000000001"])
        #expect(try reopen(directory).value == "value")
        let whole = directory.read(names[2])
        for offset in whole.indices {
            var rotten = whole
            rotten[offset] ^= 0x10
            directory.write(names[2], rotten)
            #expect(throws: DatabaseError.self, "byte \(offset)") { try reopen(directory) }
        }
        unlink("\(directory.path)/\(names[2])")
        #expect(throws: DatabaseError.self) { try reopen(directory) }
    }

    /// A crash between the steps of a snapshot leaves both old and new files.
    @Test func everyStepOfASnapshotMayBeTheLast() throws {
        let (directory, _) = try threeTransactions()
        let oldLog = directory.read(logName)
        do {
            var options = FileMetadataStore.Options()
            options.snapshotAfterLogBytes = 1
            let store = try FileMetadataStore(
                directory: directory.path, now: .origin, options: options)
            store.commit(MetadataTransaction(changes: [.put("other", "x")])) { _ in }
            store.flush()
        }
        let snapshot = directory.read("snapshot-0000000000000004")
        #expect(!snapshot.isEmpty)
        // An unfinished snapshot beside the old log.
        let first = TemporaryDirectory()
        first.write(logName, oldLog)
        first.write("snapshot.new", Bytes(snapshot[..<10]))
        #expect(try reopen(first).value == "value 3")
        #expect(!first.files.contains("snapshot.new"))
        // The snapshot is there, its log is not yet, the old log still is.
        let second = TemporaryDirectory()
        second.write(logName, oldLog)
        second.write("snapshot-0000000000000004", snapshot)
        #expect(try reopen(second).revision == Revision(4))
        // Both logs are there.
        second.write("log-0000000000000004", [])
        #expect(try reopen(second).revision == Revision(4))
    }

    @Test func aFailedSyncIsFinal() throws {
        let directory = TemporaryDirectory()
        let fails = FailingSync()
        var options = FileMetadataStore.Options()
        options.sync = { fails.sync($0) }
        let store = try FileMetadataStore(directory: directory.path, now: .origin, options: options)
        var answers: [Result<Revision, MetadataError>] = []
        var ended = 0
        _ = try store.watch(prefix: [], from: Revision(1)) {
            if case .failure = $0 { ended += 1 }
        }
        store.commit(MetadataTransaction(changes: [.put("key", "1")])) { answers.append($0) }
        store.flush()
        fails.isFailing.store(true, ordering: .relaxed)
        store.commit(MetadataTransaction(changes: [.put("key", "2")])) { answers.append($0) }
        store.flush()
        fails.isFailing.store(false, ordering: .relaxed)
        store.commit(MetadataTransaction(changes: [.put("key", "3")])) { answers.append($0) }
        store.flush()
        #expect(answers.count == 3)
        #expect(answers[0] == .success(Revision(1)))
        for answer in answers[1...] {
            guard case .failure(.failed(let error)) = answer else {
                Issue.record("\(answer) after a failed sync")
                continue
            }
            #expect(error.code == .storageFailed)
        }
        #expect(ended == 1)
    }

    @Test func aDirectoryHasOneOwner() throws {
        let directory = TemporaryDirectory()
        let store = try FileMetadataStore(directory: directory.path, now: .origin)
        do {
            _ = try FileMetadataStore(directory: directory.path, now: .origin)
            Issue.record("a second owner was let in")
        } catch {
            #expect(error.code == .refused)
        }
        withExtendedLifetime(store) {}
    }
}

private final class FailingSync: Sendable {
    let isFailing = Atomic(false)

    func sync(_ descriptor: Int32) -> Int32 {
        if isFailing.load(ordering: .relaxed) {
            errno = EIO
            return -1
        }
        return fsync(descriptor)
    }
}
