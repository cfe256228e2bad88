import EventLoop
import KVBase
import Testing

@Suite struct SocketAddressTests {
    @Test(arguments: [
        ("127.0.0.1:7000", "127.0.0.1", 7000), ("[::1]:7000", "::1", 7000),
        ("node-1.example:0", "node-1.example", 0), (":9", "0.0.0.0", 9),
    ])
    func addressesParse(text: String, host: String, port: Int) throws {
        let address = try SocketAddress.parse(text)
        #expect(address == SocketAddress(host: host, port: UInt16(port)))
    }

    @Test(arguments: [
        "", "host", "host:", "host:65536", "host:-1", "::1:7000", "[::1:7000", "[]:1", "[a]:1",
        "a b:1", "host:+1",
    ])
    func wrongAddressesAreRefused(text: String) {
        #expect(throws: DatabaseError.self) { try SocketAddress.parse(text) }
    }
}
