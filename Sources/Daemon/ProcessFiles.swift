// What the kernel tells about this process and its threads under /proc/self.

import Glibc
import KVBase

/// A thread as /proc shows it.
struct ThreadState: Sendable {
    var id: Int
    var name: String
    /// One letter: R runs, S sleeps, D waits for a disk, T is stopped.
    var state: Character
    /// The kernel's function in which it waits; empty when it runs or the kernel does not tell.
    var waitsIn: String

    /// The calling thread's id.
    static func currentID() -> Int? {
        var buffer = Bytes(repeating: 0, count: 64)
        let count = buffer.withUnsafeMutableBytes {
            readlink("/proc/thread-self", $0.baseAddress!, $0.count)
        }
        guard count > 0 else { return nil }
        let parts = String(decoding: buffer[..<count], as: UTF8.self).split(separator: "/")
        return parts.last.flatMap { Int($0) }
    }

    /// Nil when there is no such thread (any more).
    static func read(_ id: Int) -> ThreadState? {
        guard let stat = ProcessFiles.content("/proc/self/task/\(id)/stat"),
            let nameStart = stat.firstIndex(of: "("), let nameEnd = stat.lastIndex(of: ")")
        else { return nil }
        let rest = stat[stat.index(after: nameEnd)...].drop { $0 == " " }
        let waits = ProcessFiles.content("/proc/self/task/\(id)/wchan") ?? ""
        return ThreadState(
            id: id, name: String(stat[stat.index(after: nameStart)..<nameEnd]),
            state: rest.first ?? "?", waitsIn: waits == "0" ? "" : waits)
    }

    /// All threads of the process, by id.
    static func all() -> [ThreadState] {
        ProcessFiles.numbers(in: "/proc/self/task").compactMap { read($0) }
    }
}

enum ProcessFiles {
    /// Descriptors of this process, in order.
    static func openDescriptors() -> [Int32] {
        numbers(in: "/proc/self/fd").compactMap { Int32(exactly: $0) }
    }

    /// Entries of a directory that are numbers, in order.
    static func numbers(in path: String) -> [Int] {
        guard let directory = opendir(path) else { return [] }
        defer { closedir(directory) }
        var numbers: [Int] = []
        while let entry = readdir(directory) {
            let name = withUnsafeBytes(of: entry.pointee.d_name) { raw in
                String(decoding: raw.prefix { $0 != 0 }, as: UTF8.self)
            }
            if let number = Int(name) { numbers.append(number) }
        }
        return numbers.sorted()
    }

    /// Bytes that this process moved so far: from and to disks, and that plus all that it read, be it
    /// from memory. Zero when the kernel does not count.
    static func bytesMoved() -> (disk: UInt64, readOrDisk: UInt64) {
        var counts = (disk: UInt64(0), readOrDisk: UInt64(0))
        for line in (content("/proc/self/io") ?? "").split(separator: "\n") {
            let parts = line.split(separator: " ")
            guard parts.count == 2, let count = UInt64(parts[1]) else { continue }
            switch parts[0] {
            case "read_bytes:", "write_bytes:":
                counts.disk += count
                counts.readOrDisk += count
            case "rchar:": counts.readOrDisk += count
            default: break
            }
        }
        return counts
    }

    /// The first page of a file; nil when it cannot be read.
    static func content(_ path: String) -> String? {
        let descriptor = open(path, O_RDONLY | O_CLOEXEC)
        guard descriptor >= 0 else { return nil }
        defer { close(descriptor) }
        var buffer = Bytes(repeating: 0, count: 4096)
        let count = Glibc.read(descriptor, &buffer, buffer.count)
        guard count >= 0 else { return nil }
        return String(decoding: buffer[..<count], as: UTF8.self)
    }
}
