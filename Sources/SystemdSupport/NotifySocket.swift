// The service manager's datagram socket: the protocol of sd_notify(3).
//
// Spoken here rather than by libsystemd, which looks the address up in the environment at each call:
// so it can be removed there, and no child speaks in this service's name.

import Glibc
import KVBase

/// Where to tell the service manager something. Safe on every thread; lives as long as the process.
struct NotifySocket: Sendable {
    private let descriptor: Int32
    private let address: Bytes

    /// `path` is that of a socket in the file system, or begins with `@` for an abstract one. Nil when
    /// it is neither, or too long.
    init?(path: String) {
        var name = Bytes(path.utf8)
        guard name.count > 1, name.count < MemoryLayout.size(ofValue: sockaddr_un().sun_path)
        else { return nil }
        if name[0] == UInt8(ascii: "@") {
            name[0] = 0
        } else if name[0] == UInt8(ascii: "/") {
            name.append(0)
        } else {
            return nil
        }
        descriptor = socket(AF_UNIX, Int32(SOCK_DGRAM.rawValue | SOCK_CLOEXEC.rawValue), 0)
        guard descriptor >= 0 else { return nil }
        address = name
    }

    /// Sends one message. Waits while the service manager's queue is full, as it is for a moment when
    /// it starts itself anew; a message that cannot be sent is lost.
    func send(_ message: String) {
        var target = sockaddr_un()
        target.sun_family = sa_family_t(AF_UNIX)
        withUnsafeMutableBytes(of: &target.sun_path) { $0.copyBytes(from: address) }
        let offset = MemoryLayout<sockaddr_un>.offset(of: \.sun_path)!
        let length = socklen_t(offset + address.count)
        let bytes = Bytes(message.utf8)
        withUnsafePointer(to: &target) { pointer in
            pointer.withMemoryRebound(to: sockaddr.self, capacity: 1) { target in
                while sendto(
                    descriptor, bytes, bytes.count, Int32(MSG_NOSIGNAL), target, length)
                    < 0
                {
                    guard errno == EINTR else { return }
                }
            }
        }
    }
}
