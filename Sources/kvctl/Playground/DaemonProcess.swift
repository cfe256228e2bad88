// Starting a daemon, and knowing later whether a pid is still that daemon.

import FoundationEssentials
import Glibc

/// A process that a playground started. A pid alone may have been given to another program since;
/// the start time and the command line say whether it is still the one.
struct DaemonProcess: Codable, Hashable {
    var pid: Int32
    /// When it started, in clock ticks since boot, as the kernel tells.
    var startTicks: UInt64

    /// POSIX_SPAWN_SETSID, which the headers hide behind a feature macro.
    private static let spawnInNewSession: Int32 = 0x80

    /// Starts `plan`'s program in a session of its own, so that a terminal's Ctrl-C does not reach
    /// it, with its output appended to its log.
    static func spawn(_ plan: DaemonPlan) throws(Failure) -> DaemonProcess {
        var actions = posix_spawn_file_actions_t()
        posix_spawn_file_actions_init(&actions)
        defer { posix_spawn_file_actions_destroy(&actions) }
        posix_spawn_file_actions_addopen(&actions, 0, "/dev/null", O_RDONLY, 0)
        posix_spawn_file_actions_addopen(
            &actions, 1, plan.log, O_WRONLY | O_CREAT | O_APPEND, 0o644)
        posix_spawn_file_actions_adddup2(&actions, 1, 2)
        closeOnExec()

        var attributes = posix_spawnattr_t()
        posix_spawnattr_init(&attributes)
        defer { posix_spawnattr_destroy(&attributes) }
        var none = sigset_t()
        sigemptyset(&none)
        var all = sigset_t()
        sigfillset(&all)
        posix_spawnattr_setsigmask(&attributes, &none)
        posix_spawnattr_setsigdefault(&attributes, &all)
        posix_spawnattr_setflags(
            &attributes,
            Int16(spawnInNewSession | POSIX_SPAWN_SETSIGMASK | POSIX_SPAWN_SETSIGDEF))

        var words = ([plan.binary] + plan.arguments).map {
            strdup($0) as UnsafeMutablePointer<CChar>?
        }
        defer { for word in words { free(word) } }
        words.append(nil)
        var pid: pid_t = 0
        let status = posix_spawn(&pid, plan.binary, &actions, &attributes, words, environ)
        guard status == 0 else {
            throw Failure(
                .failure,
                "cannot start \(plan.name) (\(plan.binary)): \(String(cString: strerror(status)))")
        }
        return DaemonProcess(pid: pid, startTicks: ProcessTable.startTicks(pid) ?? 0)
    }

    /// Keeps files that kvctl itself inherited (a test's pipes) from reaching its children.
    private static func closeOnExec() {
        let open = (try? FileManager.default.contentsOfDirectory(atPath: "/proc/self/fd")) ?? []
        for descriptor in open.compactMap({ Int32($0) }) where descriptor > 2 {
            _ = fcntl(descriptor, F_SETFD, FD_CLOEXEC)
        }
    }

    /// Whether it runs, and is the program of `plan` that was started then.
    func isRunning(_ plan: DaemonPlan) -> Bool {
        ProcessTable.reap(pid)
        guard let ticks = ProcessTable.startTicks(pid), ticks == startTicks else { return false }
        // The program's path is left out: a rebuilt tree may have been moved. A daemon that begins anew in
        // its process has no command line for a moment.
        return ProcessTable.commandLine(pid).map { $0.dropFirst().elementsEqual(plan.arguments) }
            ?? true
    }

    /// Sends `signal`. Precondition: `isRunning` was true a moment ago.
    func signal(_ signal: Int32) { kill(pid, signal) }
}

/// What /proc tells.
enum ProcessTable {
    /// Start time of a live process in clock ticks since boot; nil when there is none, or when it
    /// is dead and only waits to be reaped.
    static func startTicks(_ pid: Int32) -> UInt64? {
        guard let bytes = read("/proc/\(pid)/stat") else { return nil }
        // The program's name stands in parentheses and may hold anything.
        let text = String(decoding: bytes, as: UTF8.self)
        guard let close = text.lastIndex(of: ")") else { return nil }
        let fields = text[text.index(after: close)...].split(separator: " ")
        guard fields.count > 19, fields[0] != "Z", fields[0] != "X" else { return nil }
        return UInt64(fields[19])
    }

    static func commandLine(_ pid: Int32) -> [String]? {
        guard let bytes = read("/proc/\(pid)/cmdline"), !bytes.isEmpty else { return nil }
        return bytes.dropLast().split(separator: 0, omittingEmptySubsequences: false)
            .map { String(decoding: $0, as: UTF8.self) }
    }

    /// Takes note of the death of a child, so that it does not stay as a zombie. No effect on
    /// processes that are not children.
    static func reap(_ pid: Int32) { waitpid(pid, nil, WNOHANG) }

    private static func read(_ path: String) -> [UInt8]? {
        let descriptor = open(path, O_RDONLY | O_CLOEXEC)
        guard descriptor >= 0 else { return nil }
        defer { close(descriptor) }
        var bytes: [UInt8] = []
        var piece = [UInt8](repeating: 0, count: 4096)
        while true {
            let count = Glibc.read(descriptor, &piece, piece.count)
            guard count > 0 else { return count == 0 ? bytes : nil }
            bytes += piece[..<count]
        }
    }
}
