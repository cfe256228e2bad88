// Objects as files in a directory, which may be a network mount.

import Glibc
import KVBase

public final class DirectoryStore: ObjectStore {
    public let path: String
    public var description: String { path }

    private let creates: Bool
    private static let partialSuffix = ".partial"
    /// Of one system call.
    private static let pieceBytes = 1 << 20
    /// Seconds without a change after which nobody writes a partial file any more: its writer died.
    private static let abandonedAfter = 3_600

    /// Does not look at it yet: a directory that is not there now may be there later. With `creates`
    /// it is made when it is first used, if its parent exists.
    public init(path: String, creates: Bool = true) {
        self.path = path
        self.creates = creates
    }

    private func prepare() throws(DatabaseError) {
        if creates, mkdir(path, 0o750) != 0, errno != EEXIST {
            throw Self.failure("create \(path)")
        }
    }

    public func put(
        _ name: String, _ bytes: Bytes, progress: (Int) -> Void
    ) throws(DatabaseError) {
        try prepare()
        let final = "\(path)/\(name)"
        let partial = final + Self.partialSuffix
        let descriptor = open(partial, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0o640)
        guard descriptor >= 0 else { throw Self.failure("create \(partial)") }
        do throws(DatabaseError) {
            defer { close(descriptor) }
            try write(bytes, to: descriptor, partial, progress)
            guard fsync(descriptor) == 0 else { throw Self.failure("sync \(partial)") }
        } catch {
            unlink(partial)
            throw error
        }
        guard rename(partial, final) == 0 else { throw Self.failure("rename \(partial)") }
        try syncDirectory()
    }

    public func get(
        _ name: String, progress: (Int) -> Void
    ) throws(DatabaseError) -> Bytes {
        try Self.read(file: "\(path)/\(name)", progress)
    }

    /// The whole of a file.
    static func read(
        file: String, _ progress: (Int) -> Void = { _ in }
    ) throws(DatabaseError) -> Bytes {
        let descriptor = open(file, O_RDONLY | O_CLOEXEC)
        guard descriptor >= 0 else { throw failure("open \(file)") }
        defer { close(descriptor) }
        var bytes: Bytes = []
        var piece = Bytes(repeating: 0, count: pieceBytes)
        while true {
            let count = piece.withUnsafeMutableBytes {
                Glibc.read(descriptor, $0.baseAddress, $0.count)
            }
            if count < 0, errno == EINTR { continue }
            guard count >= 0 else { throw failure("read \(file)") }
            if count == 0 { return bytes }
            bytes += piece[..<count]
            progress(bytes.count)
        }
    }

    /// Without the files that are being written: they are no objects yet.
    public func list() throws(DatabaseError) -> [String] {
        try files().filter { !$0.hasSuffix(Self.partialSuffix) }
    }

    public func sweep() throws(DatabaseError) {
        for name in try files() where name.hasSuffix(Self.partialSuffix) {
            var status = stat()
            // One that is gone was finished meanwhile.
            guard stat("\(path)/\(name)", &status) == 0,
                status.st_mtim.tv_sec + Self.abandonedAfter < time(nil)
            else { continue }
            try delete(name)
        }
    }

    public func delete(_ name: String) throws(DatabaseError) {
        guard unlink("\(path)/\(name)") == 0 || errno == ENOENT else {
            throw Self.failure("delete \(path)/\(name)")
        }
        try syncDirectory()
    }

    // MARK: Helpers

    /// Every name in the directory, in order.
    private func files() throws(DatabaseError) -> [String] {
        try prepare()
        guard let stream = opendir(path) else { throw Self.failure("read directory \(path)") }
        defer { closedir(stream) }
        var names: [String] = []
        while let entry = readdir(stream) {
            let name = withUnsafePointer(to: &entry.pointee.d_name) {
                $0.withMemoryRebound(to: CChar.self, capacity: 256) { String(cString: $0) }
            }
            if name != ".", name != ".." { names.append(name) }
        }
        return names.sorted()
    }

    private func write(
        _ bytes: Bytes, to descriptor: Int32, _ name: String, _ progress: (Int) -> Void
    ) throws(DatabaseError) {
        var offset = 0
        while offset < bytes.count {
            let length = min(Self.pieceBytes, bytes.count - offset)
            let count = bytes.withUnsafeBytes {
                Glibc.write(descriptor, $0.baseAddress! + offset, length)
            }
            if count < 0, errno == EINTR { continue }
            guard count > 0 else { throw Self.failure("write \(name)") }
            offset += count
            progress(offset)
        }
    }

    private func syncDirectory() throws(DatabaseError) {
        let descriptor = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC)
        guard descriptor >= 0 else { throw Self.failure("open \(path)") }
        defer { close(descriptor) }
        guard fsync(descriptor) == 0 else { throw Self.failure("sync \(path)") }
    }

    /// The error of the system call that just failed.
    private static func failure(_ what: String) -> DatabaseError {
        DatabaseError(.storageFailed, "\(what): \(String(cString: strerror(errno)))")
    }
}
