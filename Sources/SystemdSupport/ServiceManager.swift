// What a service tells systemd, and what it is handed: sd_notify(3), sd_listen_fds(3),
// sd_watchdog_enabled(3).

import CSystemd
import Glibc
import KVBase

/// Every call does nothing when the process was not started by systemd. Safe on every thread.
public enum ServiceManager {
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

    /// The time within which systemd wants a ping; nil when it wants none from this process.
    public static func watchdogInterval() -> Nanoseconds? {
        var microseconds: UInt64 = 0
        guard sd_watchdog_enabled(0, &microseconds) > 0 else { return nil }
        return Nanoseconds.microseconds(microseconds)
    }

    /// A listening socket that systemd opened for this process.
    public struct ListeningSocket: Sendable {
        public let descriptor: Int32
        /// `FileDescriptorName=` of the socket unit.
        public let name: String
    }

    /// The sockets handed over, which the caller then owns; empty when there are none. A second
    /// call gives nothing.
    public static func takeListeningSockets() -> [ListeningSocket] {
        var names: UnsafeMutablePointer<UnsafeMutablePointer<CChar>?>?
        let count = sd_listen_fds_with_names(1, &names)
        guard count > 0 else { return [] }
        defer { free(names) }
        return (0..<Int(count)).map { index in
            let name = names?[index].map { String(cString: $0) } ?? ""
            free(names?[index])
            // SD_LISTEN_FDS_START
            return ListeningSocket(descriptor: 3 + Int32(index), name: name)
        }
    }

    private static func notify(_ state: String) { sd_notify(0, state) }

    private static func line(_ text: String) -> String {
        String(text.map { $0.isNewline ? " " : $0 })
    }
}
