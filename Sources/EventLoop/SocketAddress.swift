// Addresses of TCP sockets as people write them, and their translation for the system.

import CUV
import Glibc
import KVBase

/// A host and a port. The host is an IPv4 address, an IPv6 address or a name; a name is looked up
/// at each use, so that it may move.
public struct SocketAddress: Hashable, Sendable, CustomStringConvertible {
    /// Without the brackets of an IPv6 address.
    public let host: String
    public let port: UInt16

    public init(host: String, port: UInt16) {
        self.host = host
        self.port = port
    }

    /// Reads `127.0.0.1:7000`, `[::1]:7000`, `name:7000`, and `:7000` for every interface.
    public static func parse(_ text: String) throws(DatabaseError) -> SocketAddress {
        func refuse(_ why: String) -> DatabaseError {
            DatabaseError(.invalidRequest, "address \"\(text)\": \(why)")
        }
        guard let colon = text.lastIndex(of: ":") else { throw refuse("no port") }
        let digits = text[text.index(after: colon)...]
        guard !digits.isEmpty, digits.utf8.allSatisfy({ (0x30...0x39).contains($0) }),
            let port = UInt16(digits)
        else { throw refuse("the port is not a number from 0 to 65535") }
        var host = text[..<colon]
        if host.hasPrefix("[") {
            guard host.hasSuffix("]"), host.count > 2 else { throw refuse("unbalanced brackets") }
            host = host.dropFirst().dropLast()
            guard host.contains(":") else { throw refuse("brackets are for IPv6 addresses") }
        } else if host.contains(":") {
            throw refuse("an IPv6 address stands in brackets")
        }
        guard !host.utf8.contains(where: { $0 <= 0x20 || $0 >= 0x7F }) else {
            throw refuse("the host holds a character that no host name has")
        }
        return SocketAddress(host: host.isEmpty ? "0.0.0.0" : String(host), port: port)
    }

    public var description: String { host.contains(":") ? "[\(host)]:\(port)" : "\(host):\(port)" }

    /// The system's form when the host is a number, nil when it is a name.
    var numeric: sockaddr_storage? {
        var storage = sockaddr_storage()
        let status = withUnsafeMutableBytes(of: &storage) { raw in
            host.contains(":")
                ? uv_ip6_addr(
                    host, Int32(port),
                    raw.baseAddress!.assumingMemoryBound(to: sockaddr_in6.self))
                : uv_ip4_addr(
                    host, Int32(port), raw.baseAddress!.assumingMemoryBound(to: sockaddr_in.self))
        }
        return status == 0 ? storage : nil
    }

    /// The system's form; a name is looked up, which may block for seconds.
    func resolve() throws(DatabaseError) -> sockaddr_storage {
        if let numeric { return numeric }
        var hints = addrinfo()
        hints.ai_socktype = Int32(SOCK_STREAM.rawValue)
        var list: UnsafeMutablePointer<addrinfo>?
        let status = getaddrinfo(host, String(port), &hints, &list)
        guard status == 0, let list else {
            throw DatabaseError(.unavailable, "\(self): \(String(cString: gai_strerror(status)))")
        }
        defer { freeaddrinfo(list) }
        return Self.storage(of: list)
    }

    /// The first address of a look-up's answer.
    static func storage(of info: UnsafeMutablePointer<addrinfo>) -> sockaddr_storage {
        var storage = sockaddr_storage()
        withUnsafeMutableBytes(of: &storage) { target in
            target.copyMemory(
                from: UnsafeRawBufferPointer(
                    start: info.pointee.ai_addr, count: Int(info.pointee.ai_addrlen)))
        }
        return storage
    }

    /// The address in the system's form; nil for another family than IPv4 and IPv6.
    init?(_ storage: sockaddr_storage) {
        let family = Int32(storage.ss_family)
        var text: [CChar] = Array(repeating: 0, count: 64)
        let port: UInt16? = withUnsafeBytes(of: storage) { raw in
            switch family {
            case AF_INET:
                let address = raw.baseAddress!.assumingMemoryBound(to: sockaddr_in.self)
                uv_ip4_name(address, &text, text.count)
                return UInt16(bigEndian: address.pointee.sin_port)
            case AF_INET6:
                let address = raw.baseAddress!.assumingMemoryBound(to: sockaddr_in6.self)
                uv_ip6_name(address, &text, text.count)
                return UInt16(bigEndian: address.pointee.sin6_port)
            default: return nil
            }
        }
        guard let port else { return nil }
        let host = text.prefix { $0 != 0 }.map { UInt8(bitPattern: $0) }
        self.init(host: String(decoding: host, as: UTF8.self), port: port)
    }

    /// What `uv_tcp_getsockname` or `uv_tcp_getpeername` say about a socket.
    static func of(
        _ tcp: UnsafeMutablePointer<uv_tcp_t>,
        _ query: (
            UnsafePointer<uv_tcp_t>?, UnsafeMutablePointer<sockaddr>?, UnsafeMutablePointer<Int32>?
        ) -> Int32
    ) -> SocketAddress? {
        var storage = sockaddr_storage()
        var length = Int32(MemoryLayout<sockaddr_storage>.size)
        let status = withUnsafeMutableBytes(of: &storage) { raw in
            query(tcp, raw.baseAddress!.assumingMemoryBound(to: sockaddr.self), &length)
        }
        return status == 0 ? SocketAddress(storage) : nil
    }

    /// Passes the system's form to a C function.
    static func withSockaddr(
        _ storage: sockaddr_storage, _ body: (UnsafePointer<sockaddr>) -> Int32
    ) -> Int32 {
        withUnsafeBytes(of: storage) { raw in
            body(raw.baseAddress!.assumingMemoryBound(to: sockaddr.self))
        }
    }
}
