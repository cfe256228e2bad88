// Stands between a store and etcd, and loses what it is told to lose.

import Glibc
import Synchronization

/// Forwards connections on a loopback port to another. One thread per direction of a connection.
final class FaultyProxy: Sendable {
    private struct State {
        /// Answers that are not passed on: the connection is closed in their place.
        var answersToLose = 0
        var answersLost = 0
        /// What a request must hold to lose its answer.
        var marker = ""
        var isStalled = false
        var isCut = false
        /// Of the clients.
        var open: Set<Int32> = []
        var connections = 0
    }

    let port: UInt16
    private let target: UInt16
    private let listener: Int32
    private let state = Mutex(State())

    init(to target: UInt16) {
        self.target = target
        (listener, port) = listeningSocket()
        spawn { [self] in accept() }
    }

    var endpoint: String { "http://127.0.0.1:\(port)" }
    var answersLost: Int { state.withLock { $0.answersLost } }
    var connections: Int { state.withLock { $0.connections } }

    /// The next `count` requests whose path holds `marker` reach etcd, and their answers go nowhere.
    func loseAnswers(_ count: Int, to marker: String) {
        state.withLock { state in
            state.answersToLose = count
            state.marker = marker
        }
    }

    /// While stalled, nothing is passed on in either direction, and nothing is closed.
    func stall(_ isStalled: Bool) { state.withLock { $0.isStalled = isStalled } }

    /// While cut, connections break, those that are open too.
    func cut(_ isCut: Bool) {
        state.withLock { state in
            state.isCut = isCut
            guard isCut else { return }
            for client in state.open { shutdown(client, Int32(SHUT_RDWR)) }
        }
    }

    // MARK: Threads

    private func accept() {
        while true {
            let client = Glibc.accept(listener, nil, nil)
            guard client >= 0 else { return }
            let server = socket(AF_INET, Int32(SOCK_STREAM.rawValue | SOCK_CLOEXEC.rawValue), 0)
            var address = loopback(port: target)
            let status = withUnsafePointer(to: &address) { pointer in
                pointer.withMemoryRebound(to: sockaddr.self, capacity: 1) {
                    connect(server, $0, socklen_t(MemoryLayout<sockaddr_in>.size))
                }
            }
            guard status == 0, !state.withLock({ $0.isCut }) else {
                close(client)
                close(server)
                continue
            }
            state.withLock { state in
                state.connections += 1
                state.open.insert(client)
            }
            let loses = Mutex(false)
            let shared = Loss(value: loses)
            spawn { [self] in
                pass(from: client, to: server) { bytes in
                    let text = String(decoding: bytes, as: UTF8.self)
                    let isMarked = state.withLock { state in
                        !state.marker.isEmpty && state.answersToLose > 0
                            && text.contains(state.marker)
                    }
                    if isMarked { shared.value.withLock { $0 = true } }
                    return true
                }
                shutdown(server, Int32(SHUT_WR))
            }
            spawn { [self] in
                pass(from: server, to: client) { _ in
                    guard shared.value.withLock({ $0 }) else { return true }
                    state.withLock { state in
                        state.answersToLose -= 1
                        state.answersLost += 1
                    }
                    return false
                }
                shutdown(client, Int32(SHUT_RDWR))
                shutdown(server, Int32(SHUT_RDWR))
            }
        }
    }

    private final class Loss: Sendable {
        let value: Mutex<Bool>
        init(value: consuming Mutex<Bool>) { self.value = value }
    }

    private func pass(
        from: Int32, to: Int32, _ mayPass: (ArraySlice<UInt8>) -> Bool
    ) {
        var buffer = [UInt8](repeating: 0, count: 64 << 10)
        while true {
            let count = read(from, &buffer, buffer.count)
            guard count > 0 else { return }
            while state.withLock({ $0.isStalled }) { usleep(5_000) }
            guard mayPass(buffer[..<count]) else { return }
            var sent = 0
            while sent < count {
                let written = buffer.withUnsafeBytes {
                    send(to, $0.baseAddress! + sent, count - sent, Int32(MSG_NOSIGNAL))
                }
                guard written > 0 else { return }
                sent += written
            }
        }
    }
}

/// A thread that nobody waits for.
private func spawn(_ body: @escaping @Sendable () -> Void) {
    final class Box {
        let body: @Sendable () -> Void
        init(_ body: @escaping @Sendable () -> Void) { self.body = body }
    }
    var thread = pthread_t()
    let status = pthread_create(
        &thread, nil,
        { argument in
            Unmanaged<Box>.fromOpaque(argument!).takeRetainedValue().body()
            return nil
        }, Unmanaged.passRetained(Box(body)).toOpaque())
    guard status == 0 else { fatalError("pthread_create: \(status)") }
    pthread_detach(thread)
}
