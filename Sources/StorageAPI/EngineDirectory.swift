// The directory of a disk engine: created durably, or found where it must be.

import Glibc
import KVBase

public enum EngineDirectory {
    /// Creates `path` durably unless it is there; its parent must exist. With `expectExisting` the
    /// file `marker` must be in it: an engine that held data never starts empty.
    public static func prepare(
        _ path: String, marker: String, expectExisting: Bool
    ) throws(DatabaseError) {
        if expectExisting {
            var status = stat()
            guard stat(path + "/" + marker, &status) == 0, status.st_size > 0 else {
                throw DatabaseError(
                    .storageFailed,
                    "\(path) holds no engine (\(marker) is missing), and one is known to have "
                        + "been there")
            }
            return
        }
        if mkdir(path, 0o750) < 0 {
            guard errno == EEXIST else { throw failure("create directory", path) }
            return
        }
        try synchronize(path + "/..")
    }

    /// Makes the creation of files in the directory durable.
    public static func synchronize(_ path: String) throws(DatabaseError) {
        let directory = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC)
        guard directory >= 0 else { throw failure("open", path) }
        defer { close(directory) }
        guard fsync(directory) == 0 else { throw failure("sync", path) }
    }

    private static func failure(_ what: String, _ path: String) -> DatabaseError {
        DatabaseError(.storageFailed, "\(what) \(path): \(String(cString: strerror(errno)))")
    }
}
