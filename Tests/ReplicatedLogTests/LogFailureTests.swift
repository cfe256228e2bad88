// Every failing call ends the log: nothing is acknowledged after it.

import Glibc
import KVBase
import ReplicationCore
import Synchronization
import TestKit
import Testing

@testable import ReplicatedLog

/// Counts the changing calls and makes one of them fail.
private final class Injector: Sendable {
    private let calls = Mutex((count: 0, failAt: Int.max, code: EIO))

    func arm(failAt: Int, code: Int32) {
        calls.withLock { $0 = (0, failAt, code) }
    }

    var count: Int { calls.withLock { $0.count } }

    /// The errno to fail with, or 0.
    private func next() -> Int32 {
        calls.withLock {
            $0.count += 1
            return $0.count == $0.failAt ? $0.code : 0
        }
    }

    /// A failed write leaves half of its first part behind.
    var operations: FileOperations {
        let system = FileOperations.system
        var operations = system
        operations.create = { path in
            let code = self.next()
            return code != 0 ? -code : system.create(path)
        }
        operations.write = { file, parts, count, offset in
            let code = self.next()
            guard code != 0 else { return system.write(file, parts, count, offset) }
            var half = parts[0]
            half.iov_len /= 2
            _ = system.write(file, &half, 1, offset)
            return -Int(code)
        }
        operations.allocate = { file, size in
            let code = self.next()
            return code != 0 ? code : system.allocate(file, size)
        }
        operations.synchronize = { file in
            let code = self.next()
            return code != 0 ? code : system.synchronize(file)
        }
        operations.rename = { from, to in
            let code = self.next()
            return code != 0 ? code : system.rename(from, to)
        }
        operations.remove = { path in
            let code = self.next()
            return code != 0 ? code : system.remove(path)
        }
        operations.synchronizeDirectory = { path in
            let code = self.next()
            return code != 0 ? code : system.synchronizeDirectory(path)
        }
        return operations
    }
}

@Suite struct LogFailureTests {
    /// Writes, releasing as it goes so that segments are made and removed, until the injected
    /// failure; then opens the directory again: all that was acknowledged must be there.
    @Test(arguments: [EIO, ENOSPC])
    func everyCallMayFail(code: Int32) throws {
        var failAt = 1
        while true {
            let directory = TemporaryDirectory()
            let injector = Injector()
            var options = LogOptions.small
            options.segmentBytes = 4 << 10
            options.operations = injector.operations
            let harness = try LogHarness(directory, options)
            injector.arm(failAt: failAt, code: code)
            var acknowledged: UInt64 = 0
            var failure: DatabaseError?
            do throws(DatabaseError) {
                harness.create(1)
                for index in 1...20 as ClosedRange<UInt64> {
                    harness.append(1, index...index, bytes: 1_000)
                    try harness.sync()
                    acknowledged = index
                    if index > 4 {
                        harness.log.release(group: GroupID(1), upTo: position(1, index - 4))
                    }
                }
            } catch {
                failure = error
            }
            harness.log.close()
            if failure == nil, injector.count < failAt { break }
            let context = "call \(failAt), errno \(code)"
            if let failure {
                #expect(failure.code == .storageFailed, "\(context)")
                #expect(failure.message.contains(String(cString: strerror(code))), "\(context)")
            }
            let again = try LogHarness(directory)
            let group = again.group(1)
            #expect((group?.entries.last?.index.rawValue ?? 0) >= acknowledged, "\(context)")
            #expect(
                group?.entries.allSatisfy {
                    $0 == entry(1, $0.index.rawValue, bytes: 1_000)
                } ?? (acknowledged == 0), "\(context)")
            again.log.close()
            failAt += 1
        }
        #expect(failAt > 60)
    }

    @Test func theFirstErrorIsFinal() throws {
        let directory = TemporaryDirectory()
        let injector = Injector()
        var options = LogOptions.small
        options.operations = injector.operations
        let harness = try LogHarness(directory, options)
        harness.create(1)
        try harness.sync()
        // The second call of the next batch is its sync.
        injector.arm(failAt: 2, code: EIO)
        harness.append(1, 1...1)
        let first = #expect(throws: DatabaseError.self) { try harness.sync() }
        let calls = injector.count
        harness.append(1, 2...2)
        let second = #expect(throws: DatabaseError.self) { try harness.log.submit() }
        #expect(first == second)
        #expect(harness.log.failure == first)
        harness.log.close()
        #expect(injector.count == calls)
        #expect(harness.completion.highest == 1)
    }
}
