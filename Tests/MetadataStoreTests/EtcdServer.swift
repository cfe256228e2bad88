// An etcd of the tests' own: one process on loopback, with its data below /tmp, that ends with the tests.

import Glibc
import Synchronization

/// The one server of this test run. Tests keep apart by their prefixes.
final class EtcdServer: Sendable {
    static let isInstalled = ["/usr/bin/etcd", "/usr/local/bin/etcd"].contains {
        (path: String) in access(path, X_OK) == 0
    }
    static let shared = EtcdServer()

    let endpoint: String
    let port: UInt16
    /// Held open: the shell below ends etcd when the last copy is closed, however the tests end.
    private let leash: Int32
    private let prefixes = Mutex(0)

    private init() {
        let port = freePort()
        let peer = freePort()
        self.port = port
        endpoint = "http://127.0.0.1:\(port)"
        // Tests are many and small: in memory, where there is such a place, their syncs cost nothing.
        let place = access("/dev/shm", W_OK) == 0 ? "/dev/shm" : "/tmp"
        var template = Array("\(place)/rangekeeper-etcd-XXXXXX".utf8CString)
        guard mkdtemp(&template) != nil else { fatalError("mkdtemp: errno \(errno)") }
        let path = String(
            decoding: template.dropLast().map { UInt8(bitPattern: $0) }, as: UTF8.self)
        let script = """
            etcd --name t --data-dir \(path) --log-level error \
                --listen-client-urls \(endpoint) --advertise-client-urls \(endpoint) \
                --listen-peer-urls http://127.0.0.1:\(peer) \
                --initial-advertise-peer-urls http://127.0.0.1:\(peer) \
                --initial-cluster t=http://127.0.0.1:\(peer) </dev/null &
            child=$!
            read end
            kill -9 $child
            until rm -rf \(path); do :; done
            """
        var ends: [Int32] = [0, 0]
        guard pipe(&ends) == 0 else { fatalError("pipe: errno \(errno)") }
        for end in ends { _ = fcntl(end, F_SETFD, FD_CLOEXEC) }
        var actions = posix_spawn_file_actions_t()
        posix_spawn_file_actions_init(&actions)
        posix_spawn_file_actions_adddup2(&actions, ends[0], 0)
        posix_spawn_file_actions_addopen(&actions, 1, "/dev/null", O_WRONLY, 0)
        posix_spawn_file_actions_addopen(&actions, 2, "/dev/null", O_WRONLY, 0)
        var arguments: [UnsafeMutablePointer<CChar>?] = ["sh", "-c", script].map {
            (text: String) in strdup(text)
        }
        arguments.append(nil)
        var pid = pid_t()
        let status = posix_spawn(&pid, "/bin/sh", &actions, nil, arguments, environ)
        guard status == 0 else { fatalError("posix_spawn: \(status)") }
        close(ends[0])
        leash = ends[1]
    }

    /// Forgets the history of etcd up to now.
    func compact() {
        let answer = post("/v3/kv/range", #"{"key":"AA==","limit":"1"}"#)
        guard let start = answer.firstRange(of: #""revision":""#) else {
            fatalError("etcd answers \(answer)")
        }
        let revision = answer[start.upperBound...].prefix { $0.isNumber }
        let result = post("/v3/kv/compaction", #"{"revision":"\#(revision)","physical":true}"#)
        // Another test's may have come in between.
        precondition(result.contains("200 OK") || result.contains("compacted"), result)
    }

    /// The value of a key, in base64.
    func value(of key: String) -> String {
        let answer = post("/v3/kv/range", #"{"key":"\#(base64(key))"}"#)
        guard let start = answer.firstRange(of: #""value":""#) else {
            fatalError("etcd answers \(answer)")
        }
        return String(answer[start.upperBound...].prefix { $0 != "\"" })
    }

    /// Puts a value, in base64, behind the back of every store.
    func put(_ key: String, _ value: String) {
        let answer = post("/v3/kv/put", #"{"key":"\#(base64(key))","value":"\#(value)"}"#)
        precondition(answer.contains("200 OK"), answer)
    }

    /// Deletes a key behind the back of every store.
    func delete(_ key: String) {
        let answer = post("/v3/kv/deleterange", #"{"key":"\#(base64(key))"}"#)
        precondition(answer.contains("200 OK"), answer)
    }

    private func base64(_ text: String) -> String {
        let digits = Array("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/")
        var result = ""
        var rest = Array(text.utf8)[...]
        while !rest.isEmpty {
            let three = Array(rest.prefix(3))
            rest = rest.dropFirst(3)
            let bits = (0..<3).reduce(0) { $0 << 8 | ($1 < three.count ? Int(three[$1]) : 0) }
            for index in 0..<4 {
                result.append(
                    index <= three.count ? digits[bits >> (18 - 6 * index) & 63] : "=")
            }
        }
        return result
    }

    /// The whole answer.
    private func post(_ path: String, _ body: String) -> String {
        let descriptor = socket(
            AF_INET, Int32(SOCK_STREAM.rawValue | SOCK_CLOEXEC.rawValue), 0)
        defer { close(descriptor) }
        var address = loopback(port: port)
        let status = withUnsafePointer(to: &address) { pointer in
            pointer.withMemoryRebound(to: sockaddr.self, capacity: 1) {
                connect(descriptor, $0, socklen_t(MemoryLayout<sockaddr_in>.size))
            }
        }
        guard status == 0 else { fatalError("connect: errno \(errno)") }
        let request =
            "POST \(path) HTTP/1.1\r\nHost: etcd\r\nConnection: close\r\n"
            + "Content-Length: \(body.utf8.count)\r\n\r\n\(body)"
        let bytes = Array(request.utf8)
        guard send(descriptor, bytes, bytes.count, Int32(MSG_NOSIGNAL)) == bytes.count else {
            fatalError("send: errno \(errno)")
        }
        var answer: [UInt8] = []
        var buffer = [UInt8](repeating: 0, count: 4_096)
        while true {
            let count = read(descriptor, &buffer, buffer.count)
            guard count > 0 else { return String(decoding: answer, as: UTF8.self) }
            answer += buffer[..<count]
        }
    }

    /// A prefix that no other test uses.
    func newPrefix() -> String {
        prefixes.withLock { count in
            count += 1
            return "test/\(count)/"
        }
    }
}

/// A port that the kernel chose, free for a moment.
func freePort() -> UInt16 {
    let (socket, port) = listeningSocket()
    close(socket)
    return port
}

/// A socket that listens on a port of loopback that the kernel chose.
func listeningSocket() -> (descriptor: Int32, port: UInt16) {
    let descriptor = socket(AF_INET, Int32(SOCK_STREAM.rawValue | SOCK_CLOEXEC.rawValue), 0)
    var address = loopback(port: 0)
    var length = socklen_t(MemoryLayout<sockaddr_in>.size)
    let status = withUnsafeMutablePointer(to: &address) { pointer in
        pointer.withMemoryRebound(to: sockaddr.self, capacity: 1) { address in
            bind(descriptor, address, length) == 0 && listen(descriptor, 16) == 0
                && getsockname(descriptor, address, &length) == 0
        }
    }
    guard status else { fatalError("listen: errno \(errno)") }
    return (descriptor, UInt16(bigEndian: address.sin_port))
}

func loopback(port: UInt16) -> sockaddr_in {
    var address = sockaddr_in()
    address.sin_family = sa_family_t(AF_INET)
    address.sin_addr.s_addr = UInt32(0x7F00_0001).bigEndian
    address.sin_port = port.bigEndian
    return address
}
