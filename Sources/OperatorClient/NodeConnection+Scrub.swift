// Having a node check its disks.

import KVBase
import WireProtocol

extension NodeConnection {
    /// The checks of the disks of the node at `address` (`host:port` of its RPC), after those that
    /// have none under way were started when `starts` says so.
    public static func scrub(
        address: String, starts: Bool, deadline: Deadline
    ) throws(ClientError) -> [ScrubStatus] {
        let socket = try BlockingSocket(address: address, deadline: deadline)
        var received: Bytes = []
        let peer = try ToolGreeting.exchange(socket, &received, deadline: deadline)
        guard peer.role == .node else {
            throw ClientError(
                .answered(.invalidRequest), "\(address) is no node but a \(peer.role)")
        }
        var writer = ByteWriter()
        Frame.append(.scrubRequest, to: &writer) {
            ScrubRequest(starts: starts).encode(into: &$0)
        }
        try socket.send(writer.take(), deadline: deadline)
        while true {
            let (kind, body) = try ToolGreeting.readFrame(socket, &received, deadline)
            // A node tells whoever is connected about leaders.
            guard kind == .scrubStatus else { continue }
            do throws(DatabaseError) {
                return try ByteReader.decode(body) { (reader) throws(DatabaseError) in
                    try reader.readList(elementBytesMin: 33) { (reader) throws(DatabaseError) in
                        try ScrubStatus(from: &reader)
                    }
                }
            } catch {
                throw ClientError(.malformed, "the scrubs of \(address): \(error.message)")
            }
        }
    }
}
