// Continuations of background jobs: kept on the loop, run there when the job reports.

import EventLoop
import KVBase

/// A job carries only the number of its continuation to the other thread. Continuations run on the
/// loop, in whatever order the jobs end; that of a failed job is dropped and `onError` called.
final class Completions {
    private(set) var mailbox: Mailbox<(UInt64, DatabaseError?)>
    private var waiting: [UInt64: () -> Void] = [:]
    private var nextNumber: UInt64 = 1
    private let onError: (DatabaseError) -> Void

    init(_ loop: EventLoop, onError: @escaping (DatabaseError) -> Void) {
        self.onError = onError
        var deliver: ([(UInt64, DatabaseError?)]) -> Void = { _ in }
        mailbox = loop.makeMailbox(capacity: 1 << 16) { deliver($0) }
        deliver = { [unowned self] results in
            for (number, error) in results { finish(number, error) }
        }
    }

    func add(_ body: @escaping () -> Void) -> UInt64 {
        defer { nextNumber += 1 }
        waiting[nextNumber] = body
        return nextNumber
    }

    /// The job was not begun.
    func forget(_ number: UInt64) { waiting[number] = nil }

    private func finish(_ number: UInt64, _ error: DatabaseError?) {
        let body = waiting.removeValue(forKey: number)
        if let error { onError(error) } else { body?() }
    }
}
