// The status line of the service and the time-outs of start and stop, kept current for systemd.

import EventLoop
import Glibc
import KVBase
import Synchronization
import SystemdSupport
import Threads

/// Tells systemd what goes on, from a thread of its own that does nothing else. Without systemd there
/// is no thread, and nothing happens.
final class StatusReporter: Sendable {
    /// By how much a start or a stop may go on after it made progress.
    private static let grace = Nanoseconds.seconds(30)
    private static let period = Nanoseconds.seconds(1)
    /// Bytes moved that count as progress: far more than this thread reads to look at itself.
    private static let progressBytes: UInt64 = 256 << 10

    private enum Phase {
        case starting
        case serving
        case stopping(reason: String)
    }

    private struct State {
        var phase = Phase.starting
        var line: @Sendable () -> String = { "starting" }
        /// Follows the line: what is to be known of the settings that were read last.
        var reloadNote = ""
        var sentenceAt = Instant.origin
    }

    private let state = Mutex(State())

    /// Throws when there can be no thread.
    func start() throws(DatabaseError) {
        guard ServiceManager.isPresent else { return }
        _ = try NamedThread(name: "status") { [self] in run() }
    }

    // MARK: Start

    /// How far the start is. Told once a second at most, the newest sentence in any case; true when it
    /// was told at once.
    func startupAdvanced(_ sentence: String) -> Bool {
        let now = EventLoop.monotonicNow()
        let isDue = state.withLock { state in
            state.line = { sentence }
            guard now - state.sentenceAt >= Self.period else { return false }
            state.sentenceAt = now
            return true
        }
        if isDue { ServiceManager.status(sentence) }
        return isDue
    }

    /// Start-up is over; `line` gives the status from now on.
    func ready(_ line: @escaping @Sendable () -> String) {
        state.withLock {
            $0.phase = .serving
            $0.line = line
        }
        ServiceManager.ready(status: current())
    }

    // MARK: Reload

    /// Runs `body` as a reload: it answers what the status line is to say of the settings from now on,
    /// or nil. Before the end of
    /// the start systemd is not told, or it would take the reload's end for the start's.
    func reload(_ body: () -> String?) {
        let isServing = state.withLock { state in
            if case .serving = state.phase { true } else { false }
        }
        if isServing { ServiceManager.reloading() }
        let note = body()
        state.withLock { $0.reloadNote = note.map { " (\($0))" } ?? "" }
        if isServing { ServiceManager.ready(status: current()) }
    }

    // MARK: Stop

    func stopping(reason: String) {
        state.withLock { $0.phase = .stopping(reason: reason) }
        ServiceManager.stopping(status: current())
    }

    // MARK: The thread

    private func current() -> String {
        let (phase, line, note) = state.withLock { ($0.phase, $0.line, $0.reloadNote) }
        if case .stopping(let reason) = phase { return "stopping (\(reason)): \(line())" }
        return line() + note
    }

    private func run() {
        var told = ""
        var moved = Moved()
        while true {
            let status = current()
            if status != told { ServiceManager.status(status) }
            told = status
            let counts = ProcessFiles.bytesMoved()
            switch state.withLock(\.phase) {
            // What is read now is the state on the disks: nobody is served yet.
            case .starting: extend(&moved, to: counts.readOrDisk)
            case .serving: moved = Moved()
            case .stopping: extend(&moved, to: counts.disk)
            }
            var time = timespec(tv_sec: Int(Self.period.count / 1_000_000_000), tv_nsec: 0)
            nanosleep(&time, nil)
        }
    }

    /// What had been moved at the last look that found progress in this phase.
    private struct Moved {
        var bytes: UInt64 = 0
        var looks = 0
    }

    /// A start that reads or a stop that writes its state is no hang. What the first second brings is
    /// the program itself being read.
    private func extend(_ moved: inout Moved, to bytes: UInt64) {
        moved.looks += 1
        guard moved.looks <= 2 || bytes >= moved.bytes + Self.progressBytes else { return }
        moved.bytes = bytes
        if moved.looks > 2 { ServiceManager.extendTimeout(Self.grace) }
    }
}
