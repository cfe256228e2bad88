// What one thread leaves for another.

/// A value that is set once and waited for.
///
/// `@unchecked`: the value is under the monitor.
public final class Latch<Value: Sendable>: @unchecked Sendable {
    private let monitor = Monitor()
    private var value: Value?

    public init() {}

    /// Sets the value and lets the waiters go on. The first value stays.
    public func open(_ value: Value) {
        monitor.locked {
            if self.value == nil { self.value = value }
            monitor.wakeAll()
        }
    }

    /// Waits for the value.
    public func wait() -> Value {
        monitor.locked {
            while true {
                if let value { return value }
                monitor.wait()
            }
        }
    }
}
