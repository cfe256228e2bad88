// What a service tells systemd, and what it is handed: sd_notify(3), sd_listen_fds(3),
// sd_watchdog_enabled(3).

import CSystemd
import Glibc
import KVBase

/// Every call does nothing when the process was not started by systemd. Safe on every thread.
public enum ServiceManager {
    private static let handed = Handed.take()

    /// Takes over what the service manager put into the environment for this process, and removes it
    /// there: children must neither speak for the service nor take its sockets. To be called before
    /// any thread exists.
    public static func adopt() { _ = handed }

    /// Puts back into the environment what `adopt` took, but for sockets: for the same program that begins
    /// anew in this process.
    public static func handBack() {
        if let path = handed.socketPath { setenv("NOTIFY_SOCKET", path, 1) }
        if let interval = handed.watchdogInterval {
            setenv("WATCHDOG_PID", String(getpid()), 1)
            setenv("WATCHDOG_USEC", String(interval.count / 1_000), 1)
        }
    }

    /// Whether someone listens.
    public static var isPresent: Bool { handed.socket != nil }

    /// Start-up is over, or a reload is.
    public static func ready(status: String) { notify("READY=1\nSTATUS=\(line(status))") }

    /// One line for `systemctl status`.
    public static func status(_ status: String) { notify("STATUS=\(line(status))") }

    /// The settings are being read again; `ready` ends it.
    public static func reloading() {
        var time = timespec()
        clock_gettime(CLOCK_MONOTONIC, &time)
        let microseconds = Int64(time.tv_sec) * 1_000_000 + Int64(time.tv_nsec) / 1_000
        notify("RELOADING=1\nMONOTONIC_USEC=\(microseconds)")
    }

    public static func stopping(status: String) { notify("STOPPING=1\nSTATUS=\(line(status))") }

    /// Start-up or stop needs this much more time from now on. Only to be sent when progress was
    /// made, or a hang would go unseen.
    public static func extendTimeout(_ time: Nanoseconds) {
        notify("EXTEND_TIMEOUT_USEC=\(time.count / 1_000)")
    }

    public static func watchdogPing() { notify("WATCHDOG=1") }

    /// Has systemd end the service at once as if it had not pinged in time.
    public static func watchdogTrigger() { notify("WATCHDOG=trigger") }

    /// The time within which systemd wants a ping; nil when it wants none from this process.
    public static var watchdogInterval: Nanoseconds? { handed.watchdogInterval }

    /// A listening socket that systemd opened for this process.
    public struct ListeningSocket: Sendable {
        public let descriptor: Int32
        /// `FileDescriptorName=` of the socket unit.
        public let name: String
    }

    /// The sockets handed over, which the one who takes them then owns; empty when there are none.
    public static var listeningSockets: [ListeningSocket] { handed.sockets }

    private static func notify(_ state: String) { handed.socket?.send(state) }

    private static func line(_ text: String) -> String {
        String(text.map { $0.isNewline ? " " : $0 })
    }
}

/// What stood in the environment.
struct Handed: Sendable {
    var socket: NotifySocket?
    var socketPath: String?
    var watchdogInterval: Nanoseconds?
    var sockets: [ServiceManager.ListeningSocket] = []

    /// Reads the variables and removes them.
    static func take() -> Handed {
        var handed = Handed()
        var microseconds: UInt64 = 0
        // Only if WATCHDOG_PID names this process.
        if sd_watchdog_enabled(1, &microseconds) > 0 {
            handed.watchdogInterval = .microseconds(microseconds)
        }
        handed.sockets = takeSockets()
        if let path = getenv("NOTIFY_SOCKET") {
            let path = String(cString: path)
            handed.socketPath = path
            handed.socket = NotifySocket(path: path)
            unsetenv("NOTIFY_SOCKET")
        }
        return handed
    }

    private static func takeSockets() -> [ServiceManager.ListeningSocket] {
        var names: UnsafeMutablePointer<UnsafeMutablePointer<CChar>?>?
        // Only if LISTEN_PID names this process; sets close-on-exec.
        let count = sd_listen_fds_with_names(1, &names)
        guard count > 0 else { return [] }
        defer { free(names) }
        return (0..<Int(count)).map { index in
            let name = names?[index].map { String(cString: $0) } ?? ""
            free(names?[index])
            // SD_LISTEN_FDS_START
            return ServiceManager.ListeningSocket(descriptor: 3 + Int32(index), name: name)
        }
    }
}
