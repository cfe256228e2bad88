// A TCP connection for a program that does one thing at a time.

import Glibc
import KVBase

/// A connected socket that closes when it goes away. Every call is bounded by its deadline.
final class BlockingSocket {
    let address: String
    private let descriptor: Int32

    /// Connects to `host:port` (`[v6]:port` for IPv6 literals).
    init(address: String, deadline: Deadline) throws(ClientError) {
        self.address = address
        guard let (host, port) = Self.split(address) else {
            throw ClientError(.answered(.invalidRequest), "'\(address)' is not HOST:PORT")
        }
        var hints = addrinfo()
        hints.ai_socktype = Int32(SOCK_STREAM.rawValue)
        var list: UnsafeMutablePointer<addrinfo>?
        let status = getaddrinfo(host, port, &hints, &list)
        guard status == 0 else {
            throw ClientError(
                .unreachable, "cannot resolve \(address): \(String(cString: gai_strerror(status)))")
        }
        defer { freeaddrinfo(list) }
        var failure = ClientError(.unreachable, "\(address) has no address")
        var entry = list
        while let candidate = entry?.pointee {
            switch Self.connect(candidate, address: address, deadline: deadline) {
            case .success(let descriptor):
                self.descriptor = descriptor
                return
            case .failure(let error): failure = error
            }
            entry = candidate.ai_next
        }
        throw failure
    }

    deinit { close(descriptor) }

    func send(_ bytes: Bytes, deadline: Deadline) throws(ClientError) {
        var sent = 0
        while sent < bytes.count {
            let count = bytes.withUnsafeBytes {
                Glibc.send(
                    descriptor, $0.baseAddress! + sent, bytes.count - sent, Int32(MSG_NOSIGNAL))
            }
            if count >= 0 {
                sent += count
            } else if errno == EAGAIN {
                try wait(for: Int16(POLLOUT), deadline: deadline)
            } else if errno != EINTR {
                throw broken()
            }
        }
    }

    /// Appends what has arrived to `buffer`, at least one byte; false at the end of the stream.
    func receive(into buffer: inout Bytes, deadline: Deadline) throws(ClientError) -> Bool {
        while true {
            let old = buffer.count
            let room = 64 << 10
            buffer.append(contentsOf: repeatElement(0, count: room))
            let count = buffer.withUnsafeMutableBytes {
                recv(descriptor, $0.baseAddress! + old, room, 0)
            }
            let error = errno
            buffer.removeLast(room - max(0, count))
            if count > 0 { return true }
            if count == 0 { return false }
            if error == EAGAIN {
                try wait(for: Int16(POLLIN), deadline: deadline)
            } else if error != EINTR {
                throw broken()
            }
        }
    }

    private func wait(for events: Int16, deadline: Deadline) throws(ClientError) {
        guard Self.poll(descriptor, events, deadline) else {
            throw ClientError(.timeout, "\(address) did not answer in time")
        }
    }

    private func broken() -> ClientError {
        ClientError(
            .unreachable, "connection to \(address) broke: \(String(cString: strerror(errno)))")
    }

    private static func poll(_ descriptor: Int32, _ events: Int16, _ deadline: Deadline) -> Bool {
        var entry = pollfd(fd: descriptor, events: events, revents: 0)
        while true {
            let count = Glibc.poll(&entry, 1, deadline.millisecondsLeft)
            if count > 0 { return true }
            if count == 0 && deadline.hasPassed { return false }
        }
    }

    private static func connect(
        _ candidate: addrinfo, address: String, deadline: Deadline
    ) -> Result<Int32, ClientError> {
        let type =
            candidate.ai_socktype | Int32(SOCK_CLOEXEC.rawValue) | Int32(SOCK_NONBLOCK.rawValue)
        let descriptor = socket(candidate.ai_family, type, candidate.ai_protocol)
        guard descriptor >= 0 else {
            return .failure(ClientError(.unreachable, String(cString: strerror(errno))))
        }
        var error: Int32 = 0
        if Glibc.connect(descriptor, candidate.ai_addr, candidate.ai_addrlen) != 0 { error = errno }
        if error == EINPROGRESS {
            guard poll(descriptor, Int16(POLLOUT), deadline) else {
                close(descriptor)
                return .failure(ClientError(.timeout, "\(address) did not answer in time"))
            }
            var size = socklen_t(MemoryLayout<Int32>.size)
            getsockopt(descriptor, SOL_SOCKET, SO_ERROR, &error, &size)
        }
        guard error == 0 else {
            close(descriptor)
            return .failure(
                ClientError(
                    .unreachable,
                    "cannot connect to \(address): \(String(cString: strerror(error)))"))
        }
        var on: Int32 = 1
        setsockopt(
            descriptor, Int32(IPPROTO_TCP), TCP_NODELAY, &on, socklen_t(MemoryLayout<Int32>.size))
        return .success(descriptor)
    }

    private static func split(_ address: String) -> (host: String, port: String)? {
        guard let colon = address.lastIndex(of: ":") else { return nil }
        var host = address[..<colon]
        let port = address[address.index(after: colon)...]
        guard !host.isEmpty, let number = UInt16(port), number > 0 else { return nil }
        if host.hasPrefix("["), host.hasSuffix("]") { host = host.dropFirst().dropLast() }
        return (String(host), String(port))
    }
}
