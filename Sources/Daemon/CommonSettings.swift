// The settings that every daemon has.

import Configuration
import EventLoop
import KVBase
import SystemdSupport

public enum CommonSettings {
    static let all: [Setting] = [
        Setting(
            "log.level", .choice(LogLevel.allCases.map(\.name)), default: "info",
            reloads: true, help: "Messages of lesser weight are dropped."),
        Setting(
            "log.format", .choice(Log.Format.allCases.map(\.rawValue)), default: "auto",
            help: "auto: the journal's fields, text on a terminal, else JSON lines."),
        Setting(
            "log.burst", .integer(0...1_000_000), default: String(Log.burstDefault), reloads: true,
            help:
                "Messages of one kind in ten seconds; what comes beyond is counted and left out. 0:"
                + " no limit."),
        Setting(
            "listen.admin", .address,
            help: "Address of /metrics, /livez, /readyz and /debug; without it there is no admin"
                + " HTTP."),
        Setting(
            "limits.open-files", .integer(256...10_000_000), default: "4096",
            help: "Warn at the start when fewer open files than this are allowed."),
    ]

    static func logLevel(_ settings: Settings) -> LogLevel {
        // The choice admits nothing else.
        LogLevel(name: settings.string("log.level"))!
    }

    static func logFormat(_ settings: Settings) -> Log.Format {
        Log.Format(rawValue: settings.string("log.format"))!
    }
}

extension Settings {
    /// An address setting, nil when it is unset.
    public func address(_ name: String) throws(DatabaseError) -> SocketAddress? {
        guard let text = optionalString(name) else { return nil }
        return try SocketAddress.parse(text)
    }

    /// A list of addresses, empty when unset.
    public func addresses(_ name: String) throws(DatabaseError) -> [SocketAddress] {
        var addresses: [SocketAddress] = []
        for text in list(name) { addresses.append(try SocketAddress.parse(text)) }
        return addresses
    }
}
