// The engines as the conformance suite sees them: open, crash, reopen.

import BTreeEngine
import Foundation
import KVBase
import LSMEngine
import StorageAPI
import TestKit
import Testing

enum EngineKind: String, CaseIterable, Sendable {
    case memory, lsm, btree

    func open(_ path: String, expectExisting: Bool = false) throws(DatabaseError)
        -> any StorageEngine
    {
        switch self {
        case .memory: return MemoryEngine()
        case .lsm:
            var options = LSMOptions()
            // Small, so that memtables change by themselves.
            options.writeBufferBytes = 256 << 10
            options.cacheBytes = 4 << 20
            options.expectExisting = expectExisting
            return try LSMEngine(path: path, options: options)
        case .btree:
            var options = BTreeOptions()
            options.expectExisting = expectExisting
            return try BTreeEngine(path: path, options: options)
        }
    }
}

final class EngineFixture {
    let kind: EngineKind
    private(set) var directory = TemporaryDirectory()
    private(set) var engine: any StorageEngine

    init(_ kind: EngineKind) throws {
        self.kind = kind
        engine = try kind.open(directory.path + "/engine")
    }

    deinit { engine.close() }

    /// Leaves the process's memory behind: the engine comes back from what the files hold now.
    func crash() throws {
        if let memory = engine as? MemoryEngine {
            memory.crash()
            return
        }
        // A compaction may remove a file while it is copied: then the copy is no state that a crash
        // leaves, and is made again.
        var attempts = 0
        while true {
            attempts += 1
            do {
                let copy = try copied()
                let reopened = try kind.open(copy.path + "/engine", expectExisting: true)
                engine.close()
                directory = copy
                engine = reopened
                return
            } catch {
                if attempts == 20 { throw error }
            }
        }
    }

    /// What names other files comes first, so that all it names is there or missed at once.
    private func copied() throws -> TemporaryDirectory {
        let copy = TemporaryDirectory()
        let source = directory.path + "/engine"
        let target = copy.path + "/engine"
        try FileManager.default.createDirectory(
            atPath: target, withIntermediateDirectories: true)
        func rank(_ name: String) -> Int {
            name == "CURRENT" ? 0 : name.hasPrefix("MANIFEST") ? 1 : 2
        }
        let names = try FileManager.default.contentsOfDirectory(atPath: source)
        for name in names.sorted(by: { (rank($0), $0) < (rank($1), $1) }) {
            try FileManager.default.copyItem(
                atPath: source + "/" + name, toPath: target + "/" + name)
        }
        return copy
    }

    func put(_ records: (Bytes, Bytes)...) throws(DatabaseError) {
        var batch = EngineBatch()
        for (key, value) in records { batch.put(key, value) }
        try engine.apply(batch)
    }

    func apply(_ fill: (inout EngineBatch) -> Void) throws(DatabaseError) {
        var batch = EngineBatch()
        fill(&batch)
        try engine.apply(batch)
    }
}

extension EngineBatch {
    mutating func put(_ key: Bytes, _ value: Bytes) {
        key.withUnsafeBytes { key in value.withUnsafeBytes { put(key: key, value: $0) } }
    }

    mutating func delete(_ key: Bytes) { key.withUnsafeBytes { delete(key: $0) } }

    mutating func deleteRange(_ from: Bytes, _ to: Bytes) {
        from.withUnsafeBytes { from in to.withUnsafeBytes { deleteRange(from: from, to: $0) } }
    }
}

extension EngineReader {
    /// All records of a range, at most `limit`.
    func records(
        from: Bytes = [], to: Bytes? = nil, limit: Int = .max
    ) throws(DatabaseError) -> [Record] {
        var records: [Record] = []
        var failure: DatabaseError?
        from.withUnsafeBytes { from in
            func scan(_ to: UnsafeRawBufferPointer?) {
                do throws(DatabaseError) {
                    try self.scan(from: from, to: to) { key, value in
                        records.append(Record(key: Bytes(key), value: Bytes(value)))
                        return records.count < limit
                    }
                } catch { failure = error }
            }
            if let to { to.withUnsafeBytes { scan($0) } } else { scan(nil) }
        }
        if let failure { throw failure }
        return records
    }
}

struct Record: Hashable, CustomStringConvertible {
    var key: Bytes
    var value: Bytes

    var description: String {
        "\(key.prefix(8))+\(key.count): \(value.prefix(4))+\(value.count)"
    }
}

func bytes(_ text: String) -> Bytes { Bytes(text.utf8) }
