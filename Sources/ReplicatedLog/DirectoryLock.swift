// One process per data directory.

import Glibc
import KVBase

/// Holds `LOCK` in a directory with `flock` for as long as it lives; the kernel frees it when the
/// process dies, however that happens.
public final class DirectoryLock: Sendable {
    private let file: Int32

    /// Takes the lock, or throws `.refused` naming the process that holds it.
    public init(directory: String) throws(DatabaseError) {
        let path = directory + "/LOCK"
        let file = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0o640)
        guard file >= 0 else { throw storageError("open", path, errno: errno) }
        guard flock(file, LOCK_EX | LOCK_NB) == 0 else {
            let code = errno
            let holder = Self.holder(file)
            Glibc.close(file)
            guard code == EWOULDBLOCK else { throw storageError("lock", path, errno: code) }
            throw DatabaseError(.refused, "\(directory) is in use by process \(holder)")
        }
        var text = Array("\(getpid())\n".utf8)
        guard ftruncate(file, 0) == 0, pwrite(file, &text, text.count, 0) == text.count else {
            let code = errno
            Glibc.close(file)
            throw storageError("write", path, errno: code)
        }
        self.file = file
    }

    deinit {
        // Closing alone is not enough: a child that was just forked has the file too until it executes
        // its program.
        flock(file, LOCK_UN)
        Glibc.close(file)
    }

    private static func holder(_ file: Int32) -> String {
        var text = Bytes(repeating: 0, count: 16)
        let count = max(0, pread(file, &text, text.count, 0))
        let digits = text[..<count].prefix { $0 >= UInt8(ascii: "0") && $0 <= UInt8(ascii: "9") }
        return digits.isEmpty ? "(unknown)" : String(decoding: digits, as: UTF8.self)
    }
}
