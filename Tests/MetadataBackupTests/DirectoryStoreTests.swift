import Foundation
import KVBase
import ObjectStore
import TestKit
import Testing

@Suite struct DirectoryStoreTests {
    private let directory = TemporaryDirectory()

    /// As a writer leaves it that is killed while it writes, or is still writing.
    private func writePartial(_ name: String, age: TimeInterval) throws {
        directory.write("\(name).partial", [1])
        try FileManager.default.setAttributes(
            [.modificationDate: Date(timeIntervalSinceNow: -age)],
            ofItemAtPath: "\(directory.path)/\(name).partial")
    }

    @Test func aHalfWrittenFileIsNoObject() throws {
        let store = DirectoryStore(path: directory.path)
        try store.put("whole", [1, 2, 3])
        try writePartial("half", age: 0)
        #expect(try store.list() == ["whole"])
    }

    @Test func whatAnInterruptedWriteLeftIsSweptOnceNobodyCanBeAtIt() throws {
        let store = DirectoryStore(path: directory.path)
        try store.put("whole", [1, 2, 3])
        try writePartial("dead", age: 3_700)
        try writePartial("alive", age: 60)
        try store.sweep()
        #expect(directory.files == ["alive.partial", "whole"])
    }
}
