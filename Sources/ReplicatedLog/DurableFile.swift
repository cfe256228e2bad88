// Small files that are replaced whole: after a crash either the old or the new content is there.

import Glibc
import KVBase

/// Reading and atomic replacement of small files such as identities and settings.
public enum DurableFile {
    /// Replaces (or creates) `path` with `content`: written beside it, synced, renamed over it, and
    /// the directory synced. When it returns the new content is durable.
    public static func replace(
        _ path: String, with content: Bytes, operations: FileOperations = .system
    ) throws(DatabaseError) {
        let temporary = path + ".tmp"
        _ = operations.remove(temporary)
        let file = operations.create(temporary)
        guard file >= 0 else { throw storageError("create", temporary, errno: -file) }
        defer { Glibc.close(file) }
        try write(content, to: file, at: 0, temporary, operations)
        try check(operations.synchronize(file), "sync", temporary)
        try check(operations.rename(temporary, path), "rename", temporary)
        try check(operations.synchronizeDirectory(directory(of: path)), "sync", directory(of: path))
    }

    /// The content of `path`; nil when there is no such file. Over `bytesMax` it throws.
    public static func read(_ path: String, bytesMax: Int = 1 << 20) throws(DatabaseError)
        -> Bytes?
    {
        let file = open(path, O_RDONLY | O_CLOEXEC)
        guard file >= 0 else {
            if errno == ENOENT { return nil }
            throw storageError("open", path, errno: errno)
        }
        defer { Glibc.close(file) }
        let buffer = try readFile(file, path, limit: bytesMax + 1)
        defer { buffer.deallocate() }
        guard buffer.count <= bytesMax else {
            throw DatabaseError(.storageFailed, "\(path) is longer than \(bytesMax) bytes")
        }
        return Bytes(buffer)
    }

    /// Creates a directory, durably, unless it is there. Its parent must exist.
    public static func createDirectory(
        _ path: String, operations: FileOperations = .system
    ) throws(DatabaseError) {
        if mkdir(path, 0o750) < 0 {
            if errno == EEXIST { return }
            throw storageError("create directory", path, errno: errno)
        }
        try check(operations.synchronizeDirectory(directory(of: path)), "sync", path)
    }

    static func write(
        _ content: Bytes, to file: Int32, at offset: Int64, _ path: String,
        _ operations: FileOperations
    ) throws(DatabaseError) {
        var failure: Int32 = 0
        content.withUnsafeBytes { buffer in
            var done = 0
            while done < buffer.count {
                var part = iovec(
                    iov_base: UnsafeMutableRawPointer(mutating: buffer.baseAddress! + done),
                    iov_len: buffer.count - done)
                let written = operations.write(file, &part, 1, offset + Int64(done))
                guard written > 0 else {
                    failure = written < 0 ? Int32(-written) : EIO
                    return
                }
                done += written
            }
        }
        try check(failure, "write", path)
    }

    static func directory(of path: String) -> String {
        guard let slash = path.lastIndex(of: "/") else { return "." }
        return slash == path.startIndex ? "/" : String(path[..<slash])
    }
}
