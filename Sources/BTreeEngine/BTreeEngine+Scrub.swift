// Reading the tree's file at rest.
//
// LMDB's pages have no checksums. What a device cannot read any more is found here; bytes that it
// reads back changed are not: replicas are compared by the digests of their records
// (docs/internals/scrub.md).

import Glibc
import KVBase
import StorageAPI

extension BTreeEngine {
    private static let pieceBytes = 256 << 10

    public func scrub(_ pace: any ScrubPace) throws(DatabaseError) -> Bool {
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
