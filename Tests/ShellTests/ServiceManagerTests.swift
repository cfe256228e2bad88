import Glibc
import KVBase
import Testing

@testable import SystemdSupport

/// A datagram socket as the service manager has one.
private final class ManagerSocket {
    let path: String
    private let descriptor: Int32

    init(abstract isAbstract: Bool = false) {
        path =
            (isAbstract ? "@" : "/tmp/")
            + "rangekeeper-notify-\(getpid())-\(Int.random(in: 0...Int.max))"
        descriptor = socket(AF_UNIX, Int32(SOCK_DGRAM.rawValue | SOCK_CLOEXEC.rawValue), 0)
        precondition(descriptor >= 0)
        var address = sockaddr_un()
        address.sun_family = sa_family_t(AF_UNIX)
        var name = Bytes(path.utf8)
        if isAbstract { name[0] = 0 } else { name.append(0) }
        withUnsafeMutableBytes(of: &address.sun_path) { $0.copyBytes(from: name) }
        let length = socklen_t(2 + name.count)
        let status = withUnsafePointer(to: &address) {
            $0.withMemoryRebound(to: sockaddr.self, capacity: 1) { bind(descriptor, $0, length) }
        }
        precondition(status == 0)
    }

    deinit {
        close(descriptor)
        unlink(path)
    }

    func receive() -> String {
        var buffer = Bytes(repeating: 0, count: 4096)
        let count = recv(descriptor, &buffer, buffer.count, Int32(MSG_DONTWAIT))
        return count < 0 ? "nothing" : String(decoding: buffer[..<count], as: UTF8.self)
    }
}

@Suite(.serialized) struct ServiceManagerTests {
    @Test(arguments: [false, true]) func messagesArriveWhole(isAbstract: Bool) throws {
        let manager = ManagerSocket(abstract: isAbstract)
        let notify = try #require(NotifySocket(path: manager.path))
        notify.send("READY=1\nSTATUS=all is well")
        notify.send("WATCHDOG=1")
        #expect(manager.receive() == "READY=1\nSTATUS=all is well")
        #expect(manager.receive() == "WATCHDOG=1")
        #expect(manager.receive() == "nothing")
    }

    @Test func addressesThatAreNoneAreRefused() {
        for path in ["", "/", "relative", "vsock:2:1", "/" + String(repeating: "x", count: 200)] {
            #expect(NotifySocket(path: path) == nil, "\(path)")
        }
    }

    @Test func aManagerThatIsGoneHarmsNobody() throws {
        var manager: ManagerSocket? = ManagerSocket()
        let notify = try #require(NotifySocket(path: manager!.path))
        manager = nil
        notify.send("WATCHDOG=1")
    }

    /// Children inherit nothing with which to speak for the service.
    @Test func whatWasHandedOverLeavesTheEnvironment() throws {
        let manager = ManagerSocket()
        let variables = [
            "NOTIFY_SOCKET": manager.path, "WATCHDOG_USEC": "3000000",
            "WATCHDOG_PID": "\(getpid())", "LISTEN_PID": "\(getpid())", "LISTEN_FDS": "0",
            "LISTEN_FDNAMES": "",
        ]
        for (name, value) in variables { setenv(name, value, 1) }
        let handed = Handed.take()
        #expect(handed.watchdogInterval == .seconds(3))
        try #require(handed.socket != nil)
        for name in variables.keys { #expect(getenv(name) == nil, "\(name)") }
        handed.socket?.send("READY=1")
        #expect(manager.receive() == "READY=1")
        #expect(Handed.take().socket == nil)
    }

    @Test func aWatchdogOfAnotherProcessIsNotOurs() {
        setenv("WATCHDOG_USEC", "3000000", 1)
        setenv("WATCHDOG_PID", "1", 1)
        #expect(Handed.take().watchdogInterval == nil)
        #expect(getenv("WATCHDOG_USEC") == nil)
    }
}
