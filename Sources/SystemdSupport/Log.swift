// The structured log: one message, some fields, to wherever standard error goes.

import Glibc
import KVBase
import Synchronization

/// A named value beside a message. Keys are lower case with underscores.
public struct LogField: Sendable {
    public let key: String
    public let value: String
    public init(_ key: String, _ value: some CustomStringConvertible) {
        self.key = key
        self.value = value.description
    }
}

/// Writes messages of one program. Safe on every thread; a message is one write, without a lock.
/// Not for the data path: a request logs nothing when all is well.
public final class Log: Sendable {
    /// How messages look.
    public enum Format: String, Sendable, CaseIterable {
        /// What fits standard error: the journal's own protocol, text on a terminal, else JSON.
        case automatic = "auto"
        /// `time level component: message key=value`
        case text
        /// One JSON object per line.
        case json
        /// systemd's journal, with fields.
        case journal
    }

    public let program: String
    private let format: Format
    private let descriptor: Int32
    private let levelMax: Atomic<UInt8>
    private let counts: [LevelCount]

    private final class LevelCount: Sendable {
        let count = Atomic<UInt64>(0)
    }

    /// Writes to `descriptor`, standard error unless told otherwise.
    public init(
        program: String, format: Format = .automatic, level: LogLevel = .info,
        descriptor: Int32 = STDERR_FILENO
    ) {
        self.program = program
        self.descriptor = descriptor
        self.format = format == .automatic ? Self.choose(descriptor) : format
        levelMax = Atomic(level.rawValue)
        counts = LogLevel.allCases.map { _ in LevelCount() }
    }

    /// Messages of lesser weight than this are dropped. May change at any time.
    public var level: LogLevel {
        get { LogLevel(rawValue: levelMax.load(ordering: .relaxed))! }
        set { levelMax.store(newValue.rawValue, ordering: .relaxed) }
    }

    /// Messages written at this level so far.
    public func count(_ level: LogLevel) -> UInt64 {
        counts[Self.index(level)].count.load(ordering: .relaxed)
    }

    /// A log that names its part of the program in every message.
    public func component(_ name: String) -> ComponentLog {
        ComponentLog(log: self, component: name)
    }

    /// Writes one message; fields are built only if it is written.
    public func write(
        _ level: LogLevel, component: String, _ message: @autoclosure () -> String,
        _ fields: @autoclosure () -> [LogField] = []
    ) {
        guard level.rawValue <= levelMax.load(ordering: .relaxed) else { return }
        counts[Self.index(level)].count.wrappingAdd(1, ordering: .relaxed)
        let record = LogRecord(
            program: program, level: level, component: component, message: message(),
            fields: fields())
        switch format {
        case .journal:
            // A journal that does not take it must not silence an error.
            if !record.sendToJournal() { writeLine(record.jsonLine()) }
        case .json: writeLine(record.jsonLine())
        case .text, .automatic: writeLine(record.textLine())
        }
    }

    private func writeLine(_ line: Bytes) {
        var offset = 0
        while offset < line.count {
            let written = line.withUnsafeBytes { raw in
                Glibc.write(descriptor, raw.baseAddress! + offset, raw.count - offset)
            }
            if written < 0, errno == EINTR { continue }
            // A log that cannot be written is no reason to stop serving.
            guard written > 0 else { return }
            offset += written
        }
    }

    private static func index(_ level: LogLevel) -> Int {
        Int(level.rawValue - LogLevel.error.rawValue)
    }

    private static func choose(_ descriptor: Int32) -> Format {
        if let stream = getenv("JOURNAL_STREAM").map({ String(cString: $0) }) {
            var status = stat()
            if fstat(descriptor, &status) == 0, stream == "\(status.st_dev):\(status.st_ino)" {
                return .journal
            }
        }
        return isatty(descriptor) == 1 ? .text : .json
    }
}

/// A log with the name of a part of the program. A value: hand it around.
public struct ComponentLog: Sendable {
    public let log: Log
    public let component: String

    public func error(
        _ message: @autoclosure () -> String, _ fields: @autoclosure () -> [LogField] = []
    ) {
        log.write(.error, component: component, message(), fields())
    }

    public func warning(
        _ message: @autoclosure () -> String, _ fields: @autoclosure () -> [LogField] = []
    ) {
        log.write(.warning, component: component, message(), fields())
    }

    public func notice(
        _ message: @autoclosure () -> String, _ fields: @autoclosure () -> [LogField] = []
    ) {
        log.write(.notice, component: component, message(), fields())
    }

    public func info(
        _ message: @autoclosure () -> String, _ fields: @autoclosure () -> [LogField] = []
    ) {
        log.write(.info, component: component, message(), fields())
    }

    public func debug(
        _ message: @autoclosure () -> String, _ fields: @autoclosure () -> [LogField] = []
    ) {
        log.write(.debug, component: component, message(), fields())
    }
}
