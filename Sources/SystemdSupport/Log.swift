// The structured log: one message, some fields, to wherever standard error goes, and never a flood.

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
    private let burstMax: Atomic<Int>
    private let counts: [LevelCount]
    private let limiter = LogLimiter()

    private final class LevelCount: Sendable {
        let count = Atomic<UInt64>(0)
        let leftOut = Atomic<UInt64>(0)
    }

    /// Messages that one place in the sources may write in ten seconds, unless told otherwise.
    public static let burstDefault = 200

    /// Where the journal takes messages with fields.
    private static let journalSocket = "/run/systemd/journal/socket"

    /// Writes to `descriptor`, standard error unless told otherwise. Where there is no journal that
    /// was asked for, as lines of JSON: its library would drop every message without a word.
    public convenience init(
        program: String, format: Format = .automatic, level: LogLevel = .info,
        burst: Int = burstDefault, descriptor: Int32 = STDERR_FILENO
    ) {
        self.init(
            program: program, format: format, level: level, burst: burst, descriptor: descriptor,
            journalSocket: Self.journalSocket)
    }

    init(
        program: String, format: Format, level: LogLevel, burst: Int, descriptor: Int32,
        journalSocket: String
    ) {
        self.program = program
        self.descriptor = descriptor
        let wanted = format == .automatic ? Self.choose(descriptor) : format
        let hasNoJournal = wanted == .journal && access(journalSocket, W_OK) != 0
        self.format = hasNoJournal ? .json : wanted
        levelMax = Atomic(level.rawValue)
        burstMax = Atomic(burst)
        counts = LogLevel.allCases.map { _ in LevelCount() }
        if hasNoJournal {
            component("log").warning(
                "there is no journal: messages are lines of JSON",
                [LogField("socket", journalSocket)])
        }
    }

    /// Messages of lesser weight than this are dropped. May change at any time.
    public var level: LogLevel {
        get { LogLevel(rawValue: levelMax.load(ordering: .relaxed))! }
        set { levelMax.store(newValue.rawValue, ordering: .relaxed) }
    }

    /// Messages that one place in the sources may write in ten seconds; 0 is no limit. May change at
    /// any time.
    public var burst: Int {
        get { burstMax.load(ordering: .relaxed) }
        set { burstMax.store(newValue, ordering: .relaxed) }
    }

    /// Messages written at this level so far.
    public func count(_ level: LogLevel) -> UInt64 {
        counts[Self.index(level)].count.load(ordering: .relaxed)
    }

    /// Messages of this level that the rate limit left out so far.
    public func countLeftOut(_ level: LogLevel) -> UInt64 {
        counts[Self.index(level)].leftOut.load(ordering: .relaxed)
    }

    /// A log that names its part of the program in every message.
    public func component(_ name: String) -> ComponentLog {
        ComponentLog(log: self, component: name)
    }

    /// Writes one message; fields are built only if it is written. A place in the sources that writes
    /// more than `burst` in ten seconds is held back, and what was left out is told with its next
    /// message.
    public func write(
        _ level: LogLevel, component: String, _ message: @autoclosure () -> String,
        _ fields: @autoclosure () -> [LogField] = [], event: LogEvent? = nil,
        file: StaticString = #fileID, line: UInt = #line
    ) {
        guard level.rawValue <= levelMax.load(ordering: .relaxed) else { return }
        let site = LogLimiter.Site(file: UInt(bitPattern: file.utf8Start), line: line)
        switch limiter.judge(site, burst: burst, now: LogLimiter.now()) {
        case .write: break
        case .writeAfter(let leftOut):
            emit(
                .warning, component, "messages were left out", [LogField("count", leftOut)],
                .messagesLeftOut)
        case .leaveOutFirst:
            counts[Self.index(level)].leftOut.wrappingAdd(1, ordering: .relaxed)
            return emit(
                .warning, component, "more messages of this kind are left out for up to 10 s",
                [LogField("example", message())], .messagesLeftOut)
        case .leaveOut:
            counts[Self.index(level)].leftOut.wrappingAdd(1, ordering: .relaxed)
            return
        }
        emit(level, component, message(), fields(), event)
    }

    private func emit(
        _ level: LogLevel, _ component: String, _ message: String, _ fields: [LogField],
        _ event: LogEvent?
    ) {
        counts[Self.index(level)].count.wrappingAdd(1, ordering: .relaxed)
        let record = LogRecord(
            program: program, level: level, component: component, message: message,
            fields: fields, event: event)
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
        if isJournal(descriptor) { return .journal }
        return isatty(descriptor) == 1 ? .text : .json
    }
}

extension Log {
    /// Whether what is written to the descriptor goes to the journal: systemd says which stream does.
    public static func isJournal(_ descriptor: Int32) -> Bool {
        guard let stream = getenv("JOURNAL_STREAM").map({ String(cString: $0) }) else {
            return false
        }
        var status = stat()
        return fstat(descriptor, &status) == 0 && stream == "\(status.st_dev):\(status.st_ino)"
    }
}

/// A log with the name of a part of the program. A value: hand it around.
public struct ComponentLog: Sendable {
    public let log: Log
    public let component: String

    public func error(
        _ message: @autoclosure () -> String, _ fields: @autoclosure () -> [LogField] = [],
        event: LogEvent? = nil, file: StaticString = #fileID, line: UInt = #line
    ) {
        log.write(
            .error, component: component, message(), fields(), event: event, file: file, line: line)
    }

    public func warning(
        _ message: @autoclosure () -> String, _ fields: @autoclosure () -> [LogField] = [],
        event: LogEvent? = nil, file: StaticString = #fileID, line: UInt = #line
    ) {
        log.write(
            .warning, component: component, message(), fields(), event: event, file: file,
            line: line)
    }

    public func notice(
        _ message: @autoclosure () -> String, _ fields: @autoclosure () -> [LogField] = [],
        event: LogEvent? = nil, file: StaticString = #fileID, line: UInt = #line
    ) {
        log.write(
            .notice, component: component, message(), fields(), event: event, file: file, line: line
        )
    }

    public func info(
        _ message: @autoclosure () -> String, _ fields: @autoclosure () -> [LogField] = [],
        event: LogEvent? = nil, file: StaticString = #fileID, line: UInt = #line
    ) {
        log.write(
            .info, component: component, message(), fields(), event: event, file: file, line: line)
    }

    public func debug(
        _ message: @autoclosure () -> String, _ fields: @autoclosure () -> [LogField] = [],
        event: LogEvent? = nil, file: StaticString = #fileID, line: UInt = #line
    ) {
        log.write(
            .debug, component: component, message(), fields(), event: event, file: file, line: line)
    }
}
