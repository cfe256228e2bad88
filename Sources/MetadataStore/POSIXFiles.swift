// The few file operations the store needs, with errors that name the file.

import Glibc
import KVBase

/// `fsync` that goes on after an interrupt; every other failure is the caller's to treat as final.
func fsyncRetryingInterrupts(_ descriptor: Int32) -> Int32 {
    while true {
        let result = fsync(descriptor)
        if result == 0 || errno != EINTR { return result }
    }
}

/// The error of the system call that just failed.
func systemError(_ what: String) -> DatabaseError {
    DatabaseError(.storageFailed, "\(what): \(String(cString: strerror(errno)))")
}

func monotonicNanoseconds() -> UInt64 {
    var time = timespec()
    clock_gettime(CLOCK_MONOTONIC, &time)
    return UInt64(time.tv_sec) * 1_000_000_000 + UInt64(time.tv_nsec)
}

/// Names in a directory, sorted.
func listDirectory(_ path: String) throws(DatabaseError) -> [String] {
    guard let stream = opendir(path) else { throw systemError("read directory \(path)") }
    defer { closedir(stream) }
    var names: [String] = []
    while let entry = readdir(stream) {
        let name = withUnsafePointer(to: &entry.pointee.d_name) {
            $0.withMemoryRebound(to: CChar.self, capacity: 256) { String(cString: $0) }
        }
        names.append(name)
    }
    return names.sorted()
}

func readFile(_ path: String) throws(DatabaseError) -> Bytes {
    let descriptor = open(path, O_RDONLY | O_CLOEXEC)
    guard descriptor >= 0 else { throw systemError("open \(path)") }
    defer { close(descriptor) }
    let size = Int(lseek(descriptor, 0, SEEK_END))
    guard size >= 0 else { throw systemError("seek \(path)") }
    var bytes = Bytes(repeating: 0, count: size)
    var offset = 0
    while offset < size {
        let count = bytes.withUnsafeMutableBytes {
            pread(descriptor, $0.baseAddress! + offset, size - offset, off_t(offset))
        }
        if count < 0, errno == EINTR { continue }
        guard count > 0 else { throw systemError("read \(path)") }
        offset += count
    }
    return bytes
}

/// Creates an empty file, in place of any old one.
func createFile(_ path: String) throws(DatabaseError) -> Int32 {
    let descriptor = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0o640)
    guard descriptor >= 0 else { throw systemError("create \(path)") }
    return descriptor
}

func writeAll(_ descriptor: Int32, _ bytes: Bytes, name: String) throws(DatabaseError) {
    var offset = 0
    while offset < bytes.count {
        let count = bytes.withUnsafeBytes {
            write(descriptor, $0.baseAddress! + offset, bytes.count - offset)
        }
        if count < 0, errno == EINTR { continue }
        guard count > 0 else { throw systemError("write \(name)") }
        offset += count
    }
}

func truncateFile(_ path: String, to length: Int) throws(DatabaseError) {
    guard truncate(path, off_t(length)) == 0 else { throw systemError("truncate \(path)") }
}
