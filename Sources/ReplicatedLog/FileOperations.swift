// The system calls that change files, behind one seam, so that tests can make each of them fail.

import Glibc
import KVBase

/// Calls that change the log's directory. Each returns 0 or the errno of the failure; `write`
/// returns the bytes written or the negative errno.
public struct FileOperations: Sendable {
    /// Creates a file that must not exist and opens it for reading and writing: a descriptor, or the
    /// negative errno.
    public var create: @Sendable (_ path: String) -> Int32
    /// `pwritev`.
    public var write:
        @Sendable (
            _ file: Int32, _ parts: UnsafePointer<iovec>, _ count: Int32, _ offset: Int64
        ) -> Int
    /// Reserves disk space from byte 0 to `size` and makes the file at least that long. A file
    /// system that cannot reserve answers 0.
    public var allocate: @Sendable (_ file: Int32, _ size: Int64) -> Int32
    public var truncate: @Sendable (_ file: Int32, _ size: Int64) -> Int32
    /// `fdatasync`: the bytes and the length of the file are durable.
    public var synchronize: @Sendable (_ file: Int32) -> Int32
    public var rename: @Sendable (_ from: String, _ to: String) -> Int32
    public var remove: @Sendable (_ path: String) -> Int32
    /// Makes creations, renames and removals in the directory durable.
    public var synchronizeDirectory: @Sendable (_ path: String) -> Int32

    /// The real calls.
    public static let system = FileOperations(
        create: { path in
            let file = open(path, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0o640)
            return file >= 0 ? file : -errno
        },
        write: { file, parts, count, offset in
            let written = retryingInterrupts { pwritev(file, parts, count, off_t(offset)) }
            return written >= 0 ? written : -Int(errno)
        },
        allocate: { file, size in
            while true {
                let code = posix_fallocate(file, 0, off_t(size))
                if code != EINTR { return code == EOPNOTSUPP ? 0 : code }
            }
        },
        truncate: { file, size in
            retryingInterrupts { Int(ftruncate(file, off_t(size))) } < 0 ? errno : 0
        },
        synchronize: { file in fdatasync(file) < 0 ? errno : 0 },
        rename: { from, to in Glibc.rename(from, to) < 0 ? errno : 0 },
        remove: { path in unlink(path) < 0 ? errno : 0 },
        synchronizeDirectory: { path in
            let directory = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC)
            guard directory >= 0 else { return errno }
            defer { Glibc.close(directory) }
            return fsync(directory) < 0 ? errno : 0
        })
}

/// Repeats a call that a signal interrupted before it did anything.
func retryingInterrupts(_ call: () -> Int) -> Int {
    while true {
        let result = call()
        if result >= 0 || errno != EINTR { return result }
    }
}

/// The typed error of a failed call on a file.
func storageError(_ what: String, _ path: String, errno code: Int32) -> DatabaseError {
    DatabaseError(.storageFailed, "\(what) \(path): \(String(cString: strerror(code)))")
}

/// Throws unless `code` is 0. The path is put together only then.
func check(
    _ code: Int32, _ what: String, _ path: @autoclosure () -> String
) throws(DatabaseError) {
    if code != 0 { throw storageError(what, path(), errno: code) }
}

/// Reads a whole open file, or its first `limit` bytes. The caller frees the buffer. `progress` hears
/// of each piece.
func readFile(
    _ file: Int32, _ path: String, limit: Int = .max,
    progress: (_ bytesDone: Int) -> Void = { _ in }
) throws(DatabaseError) -> UnsafeMutableRawBufferPointer {
    var status = stat()
    guard fstat(file, &status) == 0 else { throw storageError("stat", path, errno: errno) }
    let size = min(Int(status.st_size), limit)
    let buffer = UnsafeMutableRawBufferPointer.allocate(byteCount: size, alignment: 64)
    var done = 0
    while done < size {
        let target = buffer.baseAddress! + done
        let wanted = min(size - done, 1 << 20)
        let count = retryingInterrupts { pread(file, target, wanted, off_t(done)) }
        guard count > 0 else {
            let code = count < 0 ? errno : EIO
            buffer.deallocate()
            throw storageError("read", path, errno: code)
        }
        done += count
        progress(done)
    }
    return buffer
}
