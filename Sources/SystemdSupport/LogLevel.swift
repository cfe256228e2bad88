// The levels of log messages.

/// How much a message matters, most first. Raw values are syslog's priorities.
public enum LogLevel: UInt8, Sendable, CaseIterable, Comparable {
    /// Something failed that the program exists to do.
    case error = 3
    /// Something is wrong that the program copes with.
    case warning = 4
    /// A rare event that an operator should see: a leader change, a disk given up.
    case notice = 5
    /// Ordinary life.
    case info = 6
    /// For those who read the source.
    case debug = 7

    public static func < (left: LogLevel, right: LogLevel) -> Bool {
        left.rawValue < right.rawValue
    }

    public var name: String { "\(self)" }

    public init?(name: some StringProtocol) {
        guard let level = Self.allCases.first(where: { $0.name == name }) else { return nil }
        self = level
    }
}
