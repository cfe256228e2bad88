// Reading the tree at rest: first its file, for what the device cannot read any more, then every record
// with its checksum (docs/internals/scrub.md).

import CLMDB
import Glibc
import KVBase
import StorageAPI

extension BTreeEngine {
    private static let pieceBytes = 256 << 10

    public func scrub(_ pace: any ScrubPace) throws(DatabaseError) -> Bool {
        guard try readFile(pace) else { return false }
        var next: Bytes? = []
        while let name = next {
            guard pace.willRead(Self.pieceBytes) else { return false }
            let (bytes, last) = try tree.verify(behind: name, bytesMax: Self.pieceBytes)
            pace.didRead(bytes)
            next = last
        }
        return true
    }

    private func readFile(_ pace: any ScrubPace) throws(DatabaseError) -> Bool {
        let file = path + "/data.mdb"
        var descriptor = open(file, O_RDONLY | O_CLOEXEC | __O_DIRECT)
        if descriptor < 0, errno == EINVAL { descriptor = open(file, O_RDONLY | O_CLOEXEC) }
        guard descriptor >= 0 else { throw unreadable(file, errno) }
        defer { Glibc.close(descriptor) }
        let buffer = UnsafeMutableRawBufferPointer.allocate(
            byteCount: Self.pieceBytes, alignment: 4_096)
        defer { buffer.deallocate() }
        // What lies behind was never written: the file is as long as the map may become.
        let end = Int(statistics.diskBytes)
        var offset = 0
        while offset < end {
            guard pace.willRead(buffer.count) else { return false }
            let count = pread(descriptor, buffer.baseAddress, buffer.count, off_t(offset))
            let code = errno
            pace.didRead(max(0, count))
            guard count >= 0 else { throw unreadable("\(file): offset \(offset)", code) }
            guard count > 0 else { break }
            offset += count
        }
        return true
    }

    private func unreadable(_ what: String, _ code: Int32) -> DatabaseError {
        DatabaseError(.storageFailed, "scrub \(what): \(String(cString: strerror(code)))")
    }
}

extension Tree {
    /// Checks what is stored behind `name` in the order of names, about `bytesMax` bytes of it. Returns how
    /// much that was, and its last name, nil at the end. A transaction of its own each time: one for the
    /// whole tree would keep freed pages from being used for as long as that takes.
    fileprivate func verify(
        behind name: Bytes, bytesMax: Int
    ) throws(DatabaseError) -> (bytes: Int, last: Bytes?) {
        let transaction = try beginRead()
        defer { mdb_txn_abort(transaction) }
        var opened: OpaquePointer?
        try check(mdb_cursor_open(transaction, database, &opened), "scrub")
        let cursor = opened!
        defer { mdb_cursor_close(cursor) }
        var last = name
        var bytes = 0
        var code = name.isEmpty ? first(cursor) : name.withUnsafeBytes { seekBehind(cursor, $0) }
        while code == 0 {
            guard bytes < bytesMax else { return (bytes, last) }
            var found = MDB_val()
            var data = MDB_val()
            try check(mdb_cursor_get(cursor, &found, &data, MDB_GET_CURRENT), "scrub")
            let content = try content(data.bytes, of: found.bytes)
            let isBehind = last.withUnsafeBytes { compareBytes($0, found.bytes) } < 0
            guard isBehind, Bucket.isWhole(content, of: found.bytes) else {
                throw damage(in: found.bytes)
            }
            bytes += found.mv_size + data.mv_size
            last = Bytes(found.bytes)
            code = mdb_cursor_get(cursor, &found, &data, MDB_NEXT)
        }
        if code != MDB_NOTFOUND { try check(code, "scrub") }
        return (bytes, nil)
    }

    private func first(_ cursor: OpaquePointer) -> Int32 {
        var name = MDB_val()
        var data = MDB_val()
        return mdb_cursor_get(cursor, &name, &data, MDB_FIRST)
    }
}
