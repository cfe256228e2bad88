// What is wrong with the settings, for a person at a terminal.

/// How a program ends that could not start.
public enum StartupExitCode: Int32, Sendable {
    /// The command line was not understood.
    case usage = 2
    /// `EX_CONFIG`: a value is wrong or missing. systemd does not restart on it.
    case configuration = 78
    /// `EX_DATAERR`: a disk failed, or what is on it is damaged or not what belongs there. A person
    /// must look; systemd does not restart on it.
    case storage = 65
}

/// One or more problems; each message says where the value stands and what is wrong with it.
public struct ConfigurationError: Error, Hashable, Sendable, CustomStringConvertible {
    public var messages: [String]
    public var exitCode: StartupExitCode

    public init(_ messages: [String], exitCode: StartupExitCode) {
        self.messages = messages
        self.exitCode = exitCode
    }

    public var description: String { messages.joined(separator: "\n") }
}
