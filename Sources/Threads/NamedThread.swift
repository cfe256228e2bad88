// A POSIX thread with a name that operators see.

import Glibc
import KVBase

/// A thread that must be joined or lives as long as the process.
///
/// `@unchecked`: the handle does not change once the thread runs.
public final class NamedThread: @unchecked Sendable {
    private final class Start {
        let name: String
        let body: () -> Void
        init(name: String, body: @escaping () -> Void) {
            self.name = name
            self.body = body
        }
    }

    private static let stackBytes = 2 << 20
    private var thread = pthread_t()

    /// Starts a thread with a stack of 2 MiB. `name` shows in `ps -T`, cut to 15 bytes.
    public init(name: String, _ body: sending @escaping () -> Void) throws(DatabaseError) {
        let start = Unmanaged.passRetained(Start(name: name, body: body))
        var attributes = pthread_attr_t()
        pthread_attr_init(&attributes)
        pthread_attr_setstacksize(&attributes, Self.stackBytes)
        let status = pthread_create(
            &thread, &attributes,
            { argument in
                let start = Unmanaged<Start>.fromOpaque(argument!).takeRetainedValue()
                NamedThread.nameThisThread(start.name)
                start.body()
                return nil
            }, start.toOpaque())
        pthread_attr_destroy(&attributes)
        guard status == 0 else {
            start.release()
            throw DatabaseError(
                .unavailable, "thread \(name): \(String(cString: strerror(status)))")
        }
    }

    /// Waits for the thread to end. At most once, and not from the thread itself.
    public func join() { pthread_join(thread, nil) }

    /// For tools that list threads; a failure changes nothing else. The kernel cuts the name.
    private static func nameThisThread(_ name: String) {
        let file = open("/proc/thread-self/comm", O_WRONLY | O_CLOEXEC)
        guard file >= 0 else { return }
        defer { close(file) }
        _ = name.withCString { write(file, $0, strlen($0)) }
    }
}
