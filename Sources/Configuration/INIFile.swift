// The INI file, read with libinih line by line so that every key knows its line.

import CINIH
import Glibc
import KVBase

/// One `key = value` of a file.
struct INIEntry: Hashable {
    let section: String
    let key: String
    let value: String
    let line: Int
}

enum INIFile {
    /// libinih holds a line in a buffer of this size, its end and a zero byte included.
    private static let lineBufferBytes = 200

    private final class Reading {
        let lines: [[UInt8]]
        var next = 0
        var entries: [INIEntry] = []
        init(lines: [[UInt8]]) { self.lines = lines }
    }

    /// Reads the file at `path`.
    static func read(path: String) throws(ConfigurationError) -> [INIEntry] {
        try parse(content(of: path), path: path)
    }

    /// The bytes of a file of a megabyte at most.
    static func content(of path: String) throws(ConfigurationError) -> Bytes {
        let descriptor = open(path, O_RDONLY | O_CLOEXEC)
        guard descriptor >= 0 else {
            let reason = String(cString: strerror(errno))
            throw ConfigurationError(["\(path): \(reason)"], exitCode: .configuration)
        }
        defer { close(descriptor) }
        var content: Bytes = []
        var buffer: Bytes = Array(repeating: 0, count: 64 << 10)
        while true {
            let count = Glibc.read(descriptor, &buffer, buffer.count)
            guard count >= 0 else {
                let reason = String(cString: strerror(errno))
                throw ConfigurationError(["\(path): \(reason)"], exitCode: .configuration)
            }
            if count == 0 { break }
            content.append(contentsOf: buffer[..<count])
            guard content.count <= 1 << 20 else {
                throw ConfigurationError(
                    ["\(path): larger than 1 MiB, hardly a configuration"],
                    exitCode: .configuration)
            }
        }
        return content
    }

    /// The entries of a file's content, in order.
    static func parse(_ content: Bytes, path: String) throws(ConfigurationError) -> [INIEntry] {
        let lines = content.split(separator: 0x0A, omittingEmptySubsequences: false).map(Array.init)
        for (index, line) in lines.enumerated() {
            let why: String
            if line.count > lineBufferBytes - 3 {
                why = "longer than \(lineBufferBytes - 3) bytes; a list may repeat its key"
            } else if line.contains(0) || String(validating: line, as: UTF8.self) == nil {
                why = "not UTF-8 text"
            } else {
                continue
            }
            throw ConfigurationError(["\(path):\(index + 1): \(why)"], exitCode: .configuration)
        }
        let reading = Reading(lines: lines)
        let status = ini_parse_stream(
            { target, capacity, stream in
                let reading = Unmanaged<Reading>.fromOpaque(stream!).takeUnretainedValue()
                guard reading.next < reading.lines.count else { return nil }
                let line = reading.lines[reading.next]
                reading.next += 1
                // `parse` has checked the lengths against libinih's buffer.
                precondition(line.count + 2 <= Int(capacity))
                for (offset, byte) in line.enumerated() {
                    target![offset] = CChar(bitPattern: byte)
                }
                target![line.count] = 0x0A
                target![line.count + 1] = 0
                return target
            }, Unmanaged.passUnretained(reading).toOpaque(),
            { user, section, key, value in
                let reading = Unmanaged<Reading>.fromOpaque(user!).takeUnretainedValue()
                reading.entries.append(
                    INIEntry(
                        section: String(cString: section!), key: String(cString: key!),
                        value: value.map { String(cString: $0) } ?? "", line: reading.next))
                return 1
            }, Unmanaged.passUnretained(reading).toOpaque())
        guard status == 0 else {
            throw ConfigurationError(
                ["\(path):\(status): neither [section] nor key = value"], exitCode: .configuration)
        }
        return reading.entries
    }
}
