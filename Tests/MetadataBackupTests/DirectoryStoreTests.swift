import Foundation
import KVBase
import ObjectStore
import Testing

@Suite struct DirectoryStoreTests {
    private let directory = FileManager.default.temporaryDirectory
        .appendingPathComponent("rangekeeper-objects-\(UUID().uuidString)").path

    /// As a writer leaves it that is killed while it writes, or is still writing.
    private func writePartial(_ name: String, age: TimeInterval) throws {
        let path = "\(directory)/\(name).partial"
        #expect(FileManager.default.createFile(atPath: path, contents: Data([1])))
        try FileManager.default.setAttributes(
            [.modificationDate: Date(timeIntervalSinceNow: -age)], ofItemAtPath: path)
    }

    @Test func aHalfWrittenFileIsNoObject() throws {
        defer { try? FileManager.default.removeItem(atPath: directory) }
        let store = DirectoryStore(path: directory)
        try store.put("whole", [1, 2, 3])
        try writePartial("half", age: 0)
        #expect(try store.list() == ["whole"])
    }

    @Test func whatAnInterruptedWriteLeftIsSweptOnceNobodyCanBeAtIt() throws {
        defer { try? FileManager.default.removeItem(atPath: directory) }
        let store = DirectoryStore(path: directory)
        try store.put("whole", [1, 2, 3])
        try writePartial("dead", age: 3_700)
        try writePartial("alive", age: 60)
        try store.sweep()
        let files = try FileManager.default.contentsOfDirectory(atPath: directory)
        #expect(files.sorted() == ["alive.partial", "whole"])
    }
}
