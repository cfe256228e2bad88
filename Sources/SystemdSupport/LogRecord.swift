// One log message in its three forms.

import CSystemd
import Glibc
import KVBase

struct LogRecord {
    let program: String
    let level: LogLevel
    let component: String
    let message: String
    let fields: [LogField]
    let event: LogEvent?

    /// `2026-01-31T12:00:00.123Z warning raft: message key=value`
    func textLine() -> Bytes {
        var line = Bytes("\(Self.timestamp()) \(level.name) \(component): ".utf8)
        Self.append(oneLine: message, to: &line)
        for field in fields {
            line.append(contentsOf: " \(field.key)=".utf8)
            let isPlain =
                !field.value.isEmpty
                && field.value.utf8.allSatisfy { $0 > 0x20 && $0 != 0x22 && $0 != 0x7F }
            if isPlain {
                line.append(contentsOf: field.value.utf8)
            } else {
                JSONText.append(field.value, to: &line)
            }
        }
        line.append(0x0A)
        return line
    }

    func jsonLine() -> Bytes {
        var line = Bytes("{\"time\":\"\(Self.timestamp())\",\"level\":\"\(level.name)\"".utf8)
        func append(_ key: String, _ value: String) {
            line.append(UInt8(ascii: ","))
            JSONText.append(key, to: &line)
            line.append(UInt8(ascii: ":"))
            JSONText.append(value, to: &line)
        }
        append("program", program)
        append("component", component)
        if let event { append("event", event.name) }
        append("message", message)
        for field in fields { append(field.key, field.value) }
        line.append(contentsOf: "}\n".utf8)
        return line
    }

    /// Fields as the journal knows them: `KV_COMPONENT=`, `KV_` and the key in capitals; an event has
    /// its `MESSAGE_ID=` and `KV_EVENT=`. False when the journal refused.
    func sendToJournal() -> Bool {
        var parts = [
            "MESSAGE=\(message)", "PRIORITY=\(level.rawValue)", "SYSLOG_IDENTIFIER=\(program)",
            "KV_COMPONENT=\(component)",
        ]
        if let event {
            parts.append("MESSAGE_ID=\(event.id)")
            parts.append("KV_EVENT=\(event.name)")
        }
        for field in fields { parts.append("KV_\(field.key.uppercased())=\(field.value)") }
        // One buffer for all, since the vector points into it.
        var bytes: Bytes = []
        var ends: [Int] = []
        for part in parts {
            bytes.append(contentsOf: part.utf8)
            ends.append(bytes.count)
        }
        return bytes.withUnsafeMutableBytes { raw in
            var start = 0
            let vector = ends.map { end in
                defer { start = end }
                return iovec(iov_base: raw.baseAddress! + start, iov_len: end - start)
            }
            return sd_journal_sendv(vector, Int32(vector.count)) == 0
        }
    }

    private static func append(oneLine text: String, to line: inout Bytes) {
        for byte in text.utf8 { line.append(byte < 0x20 ? 0x20 : byte) }
    }

    /// RFC 3339, UTC, milliseconds.
    private static func timestamp() -> String {
        var time = timespec()
        clock_gettime(CLOCK_REALTIME, &time)
        var parts = tm()
        gmtime_r(&time.tv_sec, &parts)
        func padded(_ number: Int, _ digits: Int) -> String {
            let text = String(number)
            return String(repeating: "0", count: max(0, digits - text.utf8.count)) + text
        }
        return padded(Int(parts.tm_year) + 1900, 4) + "-" + padded(Int(parts.tm_mon) + 1, 2) + "-"
            + padded(Int(parts.tm_mday), 2) + "T" + padded(Int(parts.tm_hour), 2) + ":"
            + padded(Int(parts.tm_min), 2) + ":" + padded(Int(parts.tm_sec), 2) + "."
            + padded(Int(time.tv_nsec) / 1_000_000, 3) + "Z"
    }
}
