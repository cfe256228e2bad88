// Checking table files at rest.
//
// A scan would read less: it passes over what range deletions cover and takes blocks from caches. So
// each file is read by itself and whole, with its index and filters, past the caches. Every file is
// one that the database names when its turn comes; compaction may replace it meanwhile.

import CRocksDB
import CTableCheck
import KVBase
import StorageAPI

extension LSMEngine {
    public func scrub(_ pace: any ScrubPace) throws(DatabaseError) -> Bool {
        // Files that are made while this runs are left to the next time.
        for name in liveFiles() {
            // The database is long done with many of them when their turn comes.
            guard liveFiles().contains(name) else { continue }
            guard try check(name, pace) else { return false }
        }
        return true
    }

    /// The names of all table files, in order.
    func liveFiles() -> [String] {
        guard let list = rocksdb_livefiles(database) else { return [] }
        defer { rocksdb_livefiles_destroy(list) }
        return (0..<rocksdb_livefiles_count(list)).compactMap { index in
            rocksdb_livefiles_name(list, index).map { String(cString: $0) }
        }.sorted()
    }

    /// False when `pace` ended it.
    private func check(_ name: String, _ pace: any ScrubPace) throws(DatabaseError) -> Bool {
        let file = path + (name.hasPrefix("/") ? "" : "/") + name
        let holder = PaceHolder(pace)
        var message = [CChar](repeating: 0, count: 1_024)
        let result = withExtendedLifetime(holder) {
            var calls = rangekeeper_read_pace(
                context: Unmanaged.passUnretained(holder).toOpaque(),
                will_read: { context, bytes in
                    PaceHolder.of(context).pace.willRead(bytes) ? 1 : 0
                },
                did_read: { context, bytes in PaceHolder.of(context).pace.didRead(bytes) })
            return Int(rangekeeper_check_table(file, &calls, &message, message.count))
        }
        if result == RANGEKEEPER_TABLE_WHOLE { return true }
        if result == RANGEKEEPER_TABLE_STOPPED { return false }
        // A file that is no part of the database any more may be gone, and matters to nobody.
        guard liveFiles().contains(name) else { return true }
        let text = String(
            decoding: message.prefix { $0 != 0 }.map { UInt8(bitPattern: $0) }, as: UTF8.self)
        throw DatabaseError(.storageFailed, "scrub \(file): \(text)")
    }
}

/// Carries the pace through C.
private final class PaceHolder {
    let pace: any ScrubPace
    init(_ pace: any ScrubPace) { self.pace = pace }

    static func of(_ context: UnsafeMutableRawPointer?) -> PaceHolder {
        guard let context else { preconditionFailure("the context is the holder") }
        return Unmanaged<PaceHolder>.fromOpaque(context).takeUnretainedValue()
    }
}
