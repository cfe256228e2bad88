// Segment files: listing, creating, removing.

import Glibc
import KVBase

/// The directory of a log's segments.
struct SegmentDirectory: Sendable {
    var path: String
    var operations: FileOperations

    func path(of segment: UInt64) -> String { path + "/" + LogFormat.segmentName(segment) }

    /// The numbers of all segments, rising. Left-overs of an interrupted creation are removed.
    func list() throws(DatabaseError) -> [UInt64] {
        let (numbers, unfinished) = try scan()
        for name in unfinished {
            try check(operations.remove(path + "/" + name), "remove", path + "/" + name)
        }
        return numbers
    }

    /// The numbers of all segments, rising.
    func numbers() throws(DatabaseError) -> [UInt64] { try scan().numbers }

    private func scan() throws(DatabaseError) -> (numbers: [UInt64], unfinished: [String]) {
        guard let directory = opendir(path) else {
            throw storageError("open directory", path, errno: errno)
        }
        defer { closedir(directory) }
        var numbers: [UInt64] = []
        var unfinished: [String] = []
        errno = 0
        while let item = readdir(directory) {
            let name = withUnsafePointer(to: &item.pointee.d_name) {
                $0.withMemoryRebound(to: CChar.self, capacity: 256) { String(cString: $0) }
            }
            if let number = LogFormat.segmentNumber(name) {
                numbers.append(number)
            } else if name.hasSuffix(".log.tmp") {
                unfinished.append(name)
            }
        }
        if errno != 0 { throw storageError("list", path, errno: errno) }
        return (numbers.sorted(), unfinished)
    }

    /// Creates a segment with its header, durably, with room for `bytes`, and opens it. Either the
    /// whole header is there after a crash or there is no such segment.
    func create(_ header: SegmentHeader, bytes: Int) throws(DatabaseError) -> Int32 {
        let name = path(of: header.segment)
        let temporary = name + ".tmp"
        let file = operations.create(temporary)
        guard file >= 0 else { throw storageError("create", temporary, errno: -file) }
        do throws(DatabaseError) {
            try check(operations.allocate(file, Int64(bytes)), "allocate", temporary)
            try DurableFile.write(header.encoded(), to: file, at: 0, temporary, operations)
            try check(operations.synchronize(file), "sync", temporary)
            try check(operations.rename(temporary, name), "rename", temporary)
            try check(operations.synchronizeDirectory(path), "sync", path)
        } catch {
            Glibc.close(file)
            throw error
        }
        return file
    }

    /// Removes segments, the oldest first so that a kill leaves no hole, and makes that durable.
    func remove(_ segments: ClosedRange<UInt64>) throws(DatabaseError) {
        for segment in segments {
            let name = path(of: segment)
            try check(operations.remove(name), "remove", name)
        }
        try check(operations.synchronizeDirectory(path), "sync", path)
    }
}
